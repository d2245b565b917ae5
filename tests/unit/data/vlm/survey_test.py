"""The survey: sizes, faults by cause, the budget, what is kept for the next run."""

import csv
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recogdrive.data.vlm.survey import take_survey


@pytest.fixture
def mixed(make_samples, record, image_file, tmp_path):
    """One record of every fault between two good ones, and one image that is cut off behind its header."""
    path = tmp_path / image_file("cut.jpg", 64, 64)
    path.write_bytes(path.read_bytes()[:-400])
    image_file("good.png")

    def make(**changes):
        records = [
            record("<image>", image="good.png"),
            b"{",
            {"conversations": []},
            record("<image>"),
            record(video="a.mp4"),
            record("<image>", image="absent.png"),
            record("q" * 200 + "<image>", image="good.png"),
            record("q" * 200),
            record("<image>", image="cut.jpg"),
            record(),
        ]
        return make_samples(records, **changes)

    return make


_COUNTS = {
    "bad_record": 1,
    "malformed_json": 1,
    "missing_image": 1,
    "no_supervised_tokens": 1,
    "placeholder_mismatch": 1,
    "too_long": 1,
    "unsupported_video": 1,
}


def test_faults_are_counted_by_cause_with_file_and_line(mixed, tmp_path):
    survey = take_survey(mixed(), max_skipped=7)
    assert survey.counts() == _COUNTS
    assert [fault.origin for fault in survey.faults] == [f"{tmp_path / 'a.jsonl'}:{line}" for line in range(2, 9)]
    assert survey.usable.tolist() == [0, 8, 9]
    assert (survey.tokens[1:8] == 0).all()


def test_decoding_finds_damage_behind_headers(mixed):
    survey = take_survey(mixed(), max_skipped=8, decode_images=True)
    assert survey.counts() == dict(sorted({**_COUNTS, "corrupt_image": 1}.items()))


def test_by_default_no_record_may_be_unusable(mixed):
    with pytest.raises(ValueError, match="7 of 10 records of meta are unusable, max_skipped=0 allows 0") as error:
        take_survey(mixed())
    text = str(error.value)
    assert all(f"{cause}: 1" in text for cause in _COUNTS)
    assert "a.jsonl:6: " in text and "absent.png" in text


@pytest.mark.parametrize("budget, passes", [(6, False), (7, True), (0.69, False), (0.7, True)])
def test_the_budget_is_a_number_of_records_or_their_share(mixed, budget, passes):
    if passes:
        take_survey(mixed(), max_skipped=budget)
    else:
        with pytest.raises(ValueError, match=f"max_skipped={budget} allows 6"):
            take_survey(mixed(), max_skipped=budget)


@pytest.mark.parametrize("budget", [-1, 1.0, 1.5, True, "1", float("nan")])
def test_a_budget_of_another_kind_is_refused(mixed, budget):
    with pytest.raises(ValueError, match="max_skipped="):
        take_survey(mixed(), max_skipped=budget)


def test_many_faults_of_a_cause_are_quoted_in_part_and_listed_whole(make_samples, record, tmp_path):
    samples = make_samples([b"{"] * 12 + [record()])
    with pytest.raises(ValueError, match=r"(?s)and 7 more.*faults\.csv"):
        take_survey(samples, folder=tmp_path / "kept")
    with (tmp_path / "kept" / "faults.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert rows[3]["origin"].endswith("a.jsonl:4") and rows[3]["cause"] == "malformed_json"


def test_repeated_records_are_measured_and_counted_once(make_samples, record):
    survey = take_survey(make_samples([record("q"), b"{", record("qqq")], repeat_time=3), max_skipped=1)
    assert (len(survey.faults), survey.num_records, len(survey.tokens)) == (1, 3, 9)
    assert survey.usable.tolist() == [0, 2, 3, 5, 6, 8]
    np.testing.assert_array_equal(survey.tokens[:3], survey.tokens[3:6])


def test_sizes_are_those_of_the_samples(make_samples, record, image_file):
    samples = make_samples([record("q" * i, image=None) for i in range(5)] + [record("<image>", image=image_file())])
    survey = take_survey(samples)
    for index in range(6):
        size = samples.measure(index)
        assert (survey.tokens[index], survey.tiles[index], survey.supervised[index]) == (
            size.tokens,
            size.tiles,
            size.supervised,
        )


def test_a_kept_result_is_read_instead_of_measuring(mixed, tmp_path, monkeypatch):
    first = take_survey(mixed(), max_skipped=7, folder=tmp_path / "kept")
    samples = mixed()
    monkeypatch.setattr(samples, "measure", None)
    second = take_survey(samples, max_skipped=7, folder=tmp_path / "kept")
    assert second.faults == first.faults
    assert second.fingerprint == first.fingerprint


def test_a_kept_result_does_not_serve_other_settings(mixed, tmp_path):
    take_survey(mixed(), max_skipped=7, folder=tmp_path / "kept")
    assert len(take_survey(mixed(max_seq_length=400), max_skipped=7, folder=tmp_path / "kept").faults) == 5


def test_a_damaged_kept_result_is_made_anew(mixed, tmp_path):
    first = take_survey(mixed(), max_skipped=7, folder=tmp_path)
    (kept,) = tmp_path.glob("survey-*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    assert take_survey(mixed(), max_skipped=7, folder=tmp_path).fingerprint == first.fingerprint


def test_an_executor_gives_the_same(mixed):
    class Backwards:
        def run(self, make_work, tasks):
            work = make_work()
            return map(work, list(tasks)[::-1])

    direct, spread = (take_survey(mixed(), max_skipped=7, executor=e) for e in (None, Backwards()))
    assert direct.faults == spread.faults
    assert direct.fingerprint == spread.fingerprint


def test_a_source_without_a_usable_sample_is_refused(make_samples):
    with pytest.raises(ValueError, match="no usable sample"):
        take_survey(make_samples([b"{"]), max_skipped=1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_lines_are_counted_and_never_end_the_survey(make_samples, record, image_file, data):
    line = bytearray(json.dumps(record("<image>", image=[image_file()])).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(line) - 1))
        line[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=3)).replace(b"\n", b"")
    survey = take_survey(make_samples([bytes(line), record()]), max_skipped=1)
    assert len(survey.usable) + sum(survey.counts().values()) == 2
