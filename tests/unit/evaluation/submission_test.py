"""The leaderboard's file: what a server with navsim would read of it, and what is refused on either way."""

import collections
import os
import pickle
import pickletools
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from recogdrive.evaluation.submission import Team, read_submission, write_submission

TOKENS = ("00000000000000aa", "00000000000000bb")
TEAM = Team(name="Blau", authors="A. Ost, B. Süd", email="a@b.org", institution="Haus", country="Österreich")
TRAJECTORY = "navsim.common.dataclasses"
SAMPLING = "nuplan.planning.simulation.trajectory.trajectory_sampling"


def seed_of(offset, tokens=TOKENS):
    """Plans that name their token's place and their seed in every number."""
    return {t: (np.arange(24).reshape(8, 3) / 7 + offset + 100 * i).astype(np.float32) for i, t in enumerate(tokens)}


def write(path, predictions, team=TEAM, tokens=TOKENS, **second):
    return write_submission(path / "submission.pkl", predictions, team, tokens=tokens, **second)


@pytest.fixture
def official(monkeypatch):
    """Throw-away modules under the official names, as the server has them; classes that refuse to be called."""

    @dataclass
    class TrajectorySampling:
        num_poses: int
        time_horizon: float
        interval_length: float

        def __post_init__(self):
            raise AssertionError("unpickling calls no constructor")

    @dataclass
    class Trajectory:
        poses: np.ndarray
        trajectory_sampling: TrajectorySampling

        def __post_init__(self):
            raise AssertionError("unpickling calls no constructor")

    for kind, name in ((Trajectory, TRAJECTORY), (TrajectorySampling, SAMPLING)):
        kind.__module__, kind.__qualname__ = name, kind.__name__
        for end in range(1, len(name.split(".")) + 1):
            parent = ".".join(name.split(".")[:end])
            module = types.ModuleType(parent)
            if parent == name:
                setattr(module, kind.__name__, kind)
            monkeypatch.setitem(sys.modules, parent, module)
    return types.SimpleNamespace(Trajectory=Trajectory, TrajectorySampling=TrajectorySampling)


def official_object(kind, **state):
    made = kind.__new__(kind)
    made.__dict__.update(state)
    return made


@pytest.fixture
def official_content(official):
    """Function: what NAVSIM's own script would hand to `pickle.dump`, with changes."""

    def make(seeds, sampling=None, **changes):
        state = {"num_poses": 8, "time_horizon": 4, "interval_length": 0.5} | (sampling or {})
        shared = official_object(official.TrajectorySampling, **state)

        def trajectory(poses):
            return official_object(official.Trajectory, poses=poses, trajectory_sampling=shared)

        content = {"team_name": "T", "authors": "A", "email": "e", "institution": "I", "country / region": "C"}
        content["predictions"] = [{t: trajectory(poses) for t, poses in seed.items()} for seed in seeds]
        return content | changes

    return make


def names_in(stream):
    """Module and name of every global, and all other instructions."""
    texts, names, others = [], set(), []
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "STACK_GLOBAL":
            names.add(tuple(texts[-2:]))
        elif opcode.name in ("SHORT_BINUNICODE", "BINUNICODE"):
            texts.append(argument)
        others.append((opcode.name, argument))
    return names, others


def test_a_server_with_the_official_classes_reads_what_was_planned(official, tmp_path):
    written = write(tmp_path, [seed_of(0)])
    with written.path.open("rb") as file:
        content = pickle.Unpickler(file).load()
    assert list(content) == ["team_name", "authors", "email", "institution", "country / region", "predictions"]
    assert [content[key] for key in list(content)[:5]] == [
        "Blau",
        "A. Ost, B. Süd",
        "a@b.org",
        "Haus",
        "Österreich",
    ]
    (plans,) = content["predictions"]
    assert list(plans) == list(TOKENS)
    for token, trajectory in plans.items():
        assert type(trajectory) is official.Trajectory and set(vars(trajectory)) == {"poses", "trajectory_sampling"}
        assert type(trajectory.poses) is np.ndarray and trajectory.poses.dtype == np.dtype("<f4")
        np.testing.assert_array_equal(trajectory.poses, seed_of(0)[token])
        assert trajectory.poses.flags.c_contiguous and trajectory.poses.flags.writeable
        assert type(trajectory.trajectory_sampling) is official.TrajectorySampling
        assert vars(trajectory.trajectory_sampling) == {
            "num_poses": 8,
            "time_horizon": 4.0,
            "interval_length": 0.5,
        }


def test_the_stream_names_five_globals_that_numpy_1_has_and_is_of_protocol_4(tmp_path):
    content = write(tmp_path, [seed_of(i) for i in range(3)]).path.read_bytes()
    names, instructions = names_in(content)
    assert names == {
        (TRAJECTORY, "Trajectory"),
        (SAMPLING, "TrajectorySampling"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    }
    assert instructions[0] == ("PROTO", 4)
    kinds = [name for name, _ in instructions]
    assert not {"GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "PERSID", "BINPERSID"} & set(kinds)
    # Six trajectories and one sampling are made without a call; only NumPy's functions are called.
    assert kinds.count("NEWOBJ") == 7 and kinds.count("REDUCE") == 7


def test_the_instructions_are_those_of_python_s_own_pickler(official_content, tmp_path):
    ours = write(tmp_path, [seed_of(0)], Team("T", "A", "e", "I", "C")).path.read_bytes()
    reference = pickle.dumps(official_content([seed_of(0)], {"time_horizon": 4.0}), protocol=4)

    def essence(stream):
        """Objects made and given their state, one by one, and every value that occurs, however often it is fetched."""
        _, instructions = names_in(stream)
        made = collections.Counter(name for name, _ in instructions if name in ("NEWOBJ", "REDUCE", "BUILD"))
        return made, {a for _, a in instructions if isinstance(a, str | bytes | float) and "numpy" not in str(a)}

    assert essence(ours) == essence(reference)


def test_writing_imports_nothing_and_leaves_no_module_behind(tmp_path):
    before = set(sys.modules)
    write(tmp_path, [seed_of(0)])
    with pytest.raises(ValueError, match="cannot be submitted"):
        write(tmp_path, [{token: np.full((8, 3), np.nan) for token in TOKENS}])
    assert not {name.split(".")[0] for name in set(sys.modules) - before} & {"navsim", "nuplan"}


def test_equal_plans_give_equal_bytes_whatever_their_order(tmp_path):
    first = write(tmp_path / "a", [seed_of(0)])
    backwards = dict(reversed(seed_of(0).items()))
    second = write(tmp_path / "b", [backwards])
    assert first.sha256 == second.sha256 and first.path.read_bytes() == second.path.read_bytes()
    assert write(tmp_path / "c", [seed_of(1)]).sha256 != first.sha256


def test_what_was_written_is_read_bit_for_bit(tmp_path):
    odd = np.array([-0.0, 1e-45, 3.4e38] * 8, dtype=np.float32).reshape(8, 3)
    seeds = [{TOKENS[0]: odd + seed, TOKENS[1]: -odd} for seed in range(3)]
    written = write(tmp_path, seeds)
    submission = read_submission(written.path)
    assert submission.team == TEAM and submission.seeds == written.seeds == 3 and written.tokens == 2
    assert written.bytes == written.path.stat().st_size
    for read, given in zip(submission.predictions, seeds, strict=True):
        for token in TOKENS:
            assert read[token].tobytes() == given[token].tobytes() and read[token].dtype == np.float32


def test_plans_in_float64_are_rounded_to_float32(tmp_path):
    fine = {token: poses.astype(np.float64) + 1e-9 for token, poses in seed_of(0).items()}
    read = read_submission(write(tmp_path, [fine]).path).predictions[0]
    np.testing.assert_array_equal(read[TOKENS[0]], fine[TOKENS[0]].astype(np.float32))


def test_a_submission_of_two_stages_has_the_keys_of_navsim_v2(tmp_path, official):
    later = ("00000000000000cc",)
    written = write(tmp_path, [seed_of(0)], second_stage=[seed_of(5, later)], second_stage_tokens=later)
    content = pickle.loads(written.path.read_bytes())
    assert list(content)[5:] == ["first_stage_predictions", "second_stage_predictions"]
    assert written.tokens == 3
    submission = read_submission(written.path)
    assert set(submission.predictions[0]) == set(TOKENS) and set(submission.second_stage[0]) == set(later)
    with pytest.raises(ValueError, match="1 seeds in the first stage and 3 in the second"):
        write(tmp_path, [seed_of(0)], second_stage=[seed_of(i, later) for i in range(3)], second_stage_tokens=later)


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], "of 0 seeds is none: use 1"),
        ([seed_of(0), seed_of(1)], "of 2 seeds is none: use 1 .* or at least 3"),
        ([seed_of(0, TOKENS[:1])], f"Seed 0 of the submission lacks 1 of 2 scenes: {TOKENS[1]}"),
        ([seed_of(0, (*TOKENS, "cc"))], "has 1 scenes that are not of the split: cc"),
        ([seed_of(0, (TOKENS[0], "cc"))], f"lacks 1 of 2 scenes: {TOKENS[1]} and has 1 scenes .*: cc"),
        ([seed_of(0), seed_of(1), seed_of(2, TOKENS[:1])], "Seed 2 of the submission lacks 1"),
        ([seed_of(0) | {TOKENS[1]: np.zeros((8, 2))}], rf"1 of 2 plans .*{TOKENS[1]} \(shape \(8, 2\) instead"),
        ([seed_of(0) | {TOKENS[1]: [[0, 0, 0]] * 8}], r"\(list instead of float32\)"),
        ([seed_of(0) | {TOKENS[1]: np.zeros((8, 3), int)}], r"\(int64 instead of float32\)"),
        ([seed_of(0) | {TOKENS[1]: np.full((8, 3), 1e39)}], r"\(pose 0 has x=1e\+39\)"),
        ([{t: np.full((8, 3), np.inf, np.float32) for t in TOKENS}], rf"2 of 2 .*{TOKENS[0]} \(.*{TOKENS[1]} \("),
    ],
)
def test_what_the_server_would_refuse_is_not_written(predictions, message, tmp_path):
    earlier = write(tmp_path, [seed_of(9)])
    with pytest.raises(ValueError, match=message):
        write(tmp_path, predictions)
    assert earlier.path.stat().st_size == earlier.bytes
    assert [path.name for path in tmp_path.iterdir()] == ["submission.pkl"]


def test_a_heading_that_is_not_finite_is_named_by_its_place(tmp_path):
    plans = seed_of(0)
    plans[TOKENS[1]][5, 2] = np.nan
    with pytest.raises(ValueError, match=rf"{TOKENS[1]} \(pose 5 has heading=nan\)"):
        write(tmp_path, [plans])


def test_a_file_of_another_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"plans\.pkl must be called submission\.pkl"):
        write_submission(tmp_path / "plans.pkl", [seed_of(0)], TEAM, tokens=TOKENS)


def test_every_field_of_the_team_that_is_empty_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no authors, email, country: set TEAM_NAME"):
        write(tmp_path, [seed_of(0)], Team(name="T", authors=" ", institution="I", country=""))
    with pytest.raises(ValueError, match="Team.authors=5 must be a text, such as '5'"):
        Team(authors=5)


def test_a_split_without_scenes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no scenes"):
        write(tmp_path, [{}], tokens=())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_submission_of_the_official_code_is_read(official_content, protocol, tmp_path):
    path = tmp_path / "submission.pkl"
    path.write_bytes(pickle.dumps(official_content([seed_of(0), seed_of(1)]), protocol=protocol))
    submission = read_submission(path)
    assert submission.team == Team("T", "A", "e", "I", "C") and submission.seeds == 2
    for seed in range(2):
        for token in TOKENS:
            np.testing.assert_array_equal(submission.predictions[seed][token], seed_of(seed)[token])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": {"interval_length": 0.1}}, r"2 of 2 plans .*interval_length=0\.1 instead of 0\.5"),
        ({"sampling": {"num_poses": 40}}, "num_poses=40 instead of 8"),
        ({"sampling": {"num_poses": None}}, "num_poses=None instead of 8"),
        ({"sampling": {"time_horizon": True}}, "time_horizon=True instead of 4"),
        ({"predictions": []}, "'predictions' is no list of dictionaries"),
        ({"predictions": [[]]}, "'predictions' is no list of dictionaries"),
        ({"predictions": [{}]}, "seed 0 of 'predictions' has no scenes"),
        ({"predictions": [{"aa": np.zeros((8, 3))}]}, r"aa \(ndarray instead of a trajectory\)"),
        ({"authors": ["A", "B"]}, "'authors' is a list instead of a text"),
    ],
)
def test_a_submission_that_is_none_is_refused_with_its_reason(official_content, change, message, tmp_path):
    path = tmp_path / "submission.pkl"
    path.write_bytes(pickle.dumps(official_content([seed_of(0)], **change)))
    with pytest.raises(ValueError, match=message) as refusal:
        read_submission(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("poses", "message"),
    [
        (np.zeros((10, 3), np.float32), r"shape \(10, 3\) instead of \(8, 3\)"),
        (np.zeros((8, 3), np.int64), "int64 instead of float32"),
        (np.full((8, 3), np.nan), "pose 0 has x=nan"),
        (None, "NoneType instead of float32"),
    ],
)
def test_a_trajectory_without_a_plan_is_refused(official_content, poses, message, tmp_path):
    path = tmp_path / "submission.pkl"
    path.write_bytes(pickle.dumps(official_content([{"aa": poses, "bb": np.zeros((8, 3))}])))
    with pytest.raises(ValueError, match=rf"1 of 2 plans cannot be used: aa \({message}\)"):
        read_submission(path)


def test_seeds_of_different_scenes_are_refused(official_content, tmp_path):
    path = tmp_path / "submission.pkl"
    path.write_bytes(pickle.dumps(official_content([seed_of(0), seed_of(1, (TOKENS[0], "cc"))])))
    with pytest.raises(
        ValueError, match=rf"seed 1 .* 2 scenes and seed 0 has 2; 2 are in one of them alone: {TOKENS[1]}, cc"
    ):
        read_submission(path)


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    path = tmp_path / "submission.pkl"
    path.write_bytes(pickle.dumps({"team_name": Hostile()}))
    with pytest.raises(ValueError, match=r"submission\.pkl"):
        read_submission(path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [[1, 2], {"team_name": "T"}, {}])
def test_other_data_is_no_submission(content, tmp_path):
    path = tmp_path / "submission.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="instead of a submission's dictionary|has no entry .*; it is no submission"):
        read_submission(path)


def test_every_cut_of_a_submission_is_refused(tmp_path):
    content = write(tmp_path, [seed_of(0)]).path.read_bytes()
    path = tmp_path / "cut.pkl"
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.pkl"):
            read_submission(path)
