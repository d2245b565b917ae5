import json

import pytest

from recogdrive.training.metrics_file import MetricsFile, without_timings


def write(path, steps, restored_step=0):
    file = MetricsFile(path, restored_step)
    for step in steps:
        file.write({"step": step, "loss": step / 3})
    file.flush_to_disk()
    file.close()


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_resumed_file_loses_the_lines_after_the_restored_step(tmp_path):
    write(tmp_path / "metrics.jsonl", [2, 4, 6])
    write(tmp_path / "metrics.jsonl", [5], restored_step=4)
    assert steps(tmp_path / "metrics.jsonl") == [2, 4, 5]


@pytest.mark.parametrize("rest", ['{"step": 3, "lo', '{"step": 3}', "garbage\n", "[]\n"])
def test_a_line_cut_short_by_a_crash_is_removed(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    write(path, [2])
    path.write_text(path.read_text() + rest)
    write(path, [4], restored_step=9)
    assert steps(path) == [2, 4]


def test_values_come_back_to_the_bit(tmp_path):
    write(tmp_path / "metrics.jsonl", [1])
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 1 / 3


def test_a_value_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        MetricsFile(tmp_path / "metrics.jsonl", 0).write({"step": 1, "loss": float("nan")})


def test_timings_are_what_runs_may_differ_in():
    assert without_timings({"step": 1, "loss": 2.0, "perf": {"step_time_s": 3.0}}) == {"step": 1, "loss": 2.0}
