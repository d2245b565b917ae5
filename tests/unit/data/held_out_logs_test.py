"""Parts of a split of logs, of a source that has nothing but logs and clocks."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import gin
import pytest

from recogdrive.data.held_out_logs import LogPart
from recogdrive.data.samples import NavsimSplit, TimedScenes

REPOSITORY = Path(__file__).resolve().parents[3]


class Source:
    """Scenes as pairs of log and clock in microseconds; clocks are known only of scenes that are built."""

    name, report = "logs", {}

    def __init__(self, scenes):
        self.scenes = list(scenes)
        self.tokens = tuple(f"{log} at {time_us}" for log, time_us in self.scenes)

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        return SimpleNamespace(token=self.tokens[index], timestamp_us=self.scenes[index][1])

    def log_of(self, index):
        return self.scenes[index][0]


def drive(log, count):
    return [(log, 500_000 * k) for k in range(count)]


def city(logs, scenes=2):
    return Source(scene for k in range(logs) for scene in drive(f"log_{k}", scenes))


def parts(source, **arguments):
    return tuple(LogPart(lambda: source, part, **arguments) for part in ("train", "held_out"))


def logs_of(part):
    return {part.log_of(i) for i in range(len(part))}


def test_of_many_logs_about_the_share_is_held_out_whole():
    source = city(logs=200)
    train, held_out = parts(source)
    assert not logs_of(train) & logs_of(held_out)
    assert sorted(train.tokens + held_out.tokens) == sorted(source.tokens)
    # Binomial: 40 with a standard deviation of 5.7.
    assert 25 <= len(logs_of(held_out)) <= 55


def test_further_logs_move_none_to_the_other_part():
    few, many = parts(city(logs=50)), parts(city(logs=80))
    assert logs_of(few[0]) < logs_of(many[0]) and logs_of(few[1]) <= logs_of(many[1])


def test_scenes_keep_tokens_and_order_of_the_source():
    source = city(logs=30)
    for part in parts(source):
        assert list(part.tokens) == [token for token in source.tokens if token in set(part.tokens)]
        assert [part[i].token for i in range(len(part))] == list(part.tokens)
        assert part[-1].token == part.tokens[-1]
        assert [part.time_of(i) for i in range(len(part))] == [part[i].timestamp_us for i in range(len(part))]


@pytest.mark.parametrize("share", [0.001, 0.2, 0.999])
@pytest.mark.parametrize("logs", [5, 6, 7, 1000])
def test_neither_part_of_many_logs_is_ever_empty(logs, share):
    if logs * share >= 1:
        train, held_out = parts(city(logs, scenes=1), held_out_share=share)
        assert len(train) and len(held_out) and len(train) + len(held_out) == logs


def test_of_few_logs_the_end_of_each_in_time_is_held_out():
    source = Source([*reversed(drive("b", 10)), *drive("a", 5)])
    train, held_out = parts(source)
    assert set(held_out.tokens) == {"b at 4500000", "b at 4000000", "a at 2000000"}
    assert set(train.tokens) == set(source.tokens) - set(held_out.tokens)


def test_scenes_in_the_gap_belong_to_neither_part():
    source = city(logs=1, scenes=40)
    train, held_out = parts(source, gap_scenes=13)
    assert (train.tokens, held_out.tokens) == (source.tokens[:19], source.tokens[32:])
    assert train.report == {"scenes": 19, "logs": 1, "other_part": 8, "gap": 13}
    # A scene is seen from 1.5 s before to 5 s after its clock.
    assert held_out.time_of(0) - 1_500_000 > train.time_of(len(train) - 1) + 5_000_000


def test_a_log_of_two_scenes_is_trained_on_whole():
    train, held_out = parts(Source([*drive("a", 2), *drive("b", 10)]), gap_scenes=3)
    assert logs_of(held_out) == {"b"} and len(train) == 2 + 5


def test_a_part_travels_to_workers():
    train, _ = parts(city(logs=30))
    assert pickle.loads(pickle.dumps(train))[3].token == train.tokens[3]


def test_names_say_which_part_it_is_unless_one_is_given():
    assert parts(city(logs=9))[1].name == "logs, held_out"
    assert LogPart(lambda: city(logs=9), "train", name="mine").name == "mine"


def test_a_part_says_which_of_navsims_splits_its_scenes_are_from():
    source = city(logs=9)
    assert [part.split for part in parts(source)] == ["", ""]
    source.split = "test"
    part = parts(source)[1]
    assert part.split == "test" and isinstance(part, NavsimSplit)


def test_clocks_that_the_source_knows_are_asked_of_it():
    class Timed(Source):
        def __getitem__(self, index):
            raise AssertionError("a scene was built")

        def time_of(self, index):
            return self.scenes[index][1]

    train, _ = parts(Timed(drive("a", 10)))
    assert isinstance(train, TimedScenes) and train.time_of(3) == 1_500_000


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"part": "heldout"}, "part='heldout' must be one of 'train', 'held_out'. Did you mean 'held_out'"),
        ({"part": "train", "held_out_share": 1.0}, "held_out_share=1.0 must be above 0 and below 1"),
        ({"part": "train", "held_out_share": 0.0}, "held_out_share=0.0 must be"),
        ({"part": "train", "gap_scenes": -1}, "gap_scenes=-1 must be a whole number"),
        ({"part": "train", "gap_scenes": 40}, "'train' of logs, which has 40 scenes, is empty; .*gap_scenes than 40"),
        (
            {"part": "held_out", "held_out_share": 0.01},
            "'held_out' of logs, .* is empty; choose another held_out_share",
        ),
    ],
)
def test_what_gives_no_part_is_refused_with_the_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        LogPart(lambda: city(logs=1, scenes=40), **arguments)


def test_the_real_log_to_train_on_is_read_once_and_divided_by_its_fragment(navsim_mini, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "recogdrive.data.navsim.find_data_root", lambda given, real=None: opened.append(given) or navsim_mini
    )
    monkeypatch.chdir(REPOSITORY)
    gin.parse_config_file("gin/data/navsim_mini_rl.gin")
    splits = gin.get_configurable("PlanningSplits")()
    train, held_out = splits.open_train(), splits.open_validate()["held_out"]
    assert (len(train), len(held_out), len(opened)) == (14, 4, 1)
    whole = splits.open_evaluate()["train"]
    assert train.tokens + held_out.tokens == whole.tokens
    assert [held_out.time_of(i) for i in range(3)] == [whole[i].timestamp_us for i in range(14, 17)]
    assert held_out.split == whole.split == "mini"
