import json
import logging
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from recogdrive.training import profiling
from recogdrive.training.loop import Trainer
from recogdrive.training.profiling import StepProfiler, StepRange, requested_steps, traces, tracing
from recogdrive.training.sharding import DataParallel
from recogdrive.training.time_account import TimeAccount

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", "must be A:B, such as 10:13"),
        ("a:b", "must be A:B"),
        ("5:5", "B, which is not included, above A"),
        ("9:3", "profile_steps=9:3 names no steps"),
        ("0:3", "A must be at least 1"),
        ("-2:3", "A must be at least 1"),
    ],
)
def test_what_names_no_steps_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        StepRange.parse(text)


def test_steps_are_read_as_a_slice():
    assert StepRange.parse(" 10:13 ") == StepRange(10, 13)


def test_steps_beyond_the_run_are_refused_with_the_last_there_is(linear, stream, tmp_path):
    StepRange(7, 9).require_within(8)
    with tracing(StepRange(7, 10)), pytest.raises(ValueError, match=r"steps up to 9, but the run has 8; B may be .* 9"):
        Trainer(8, sharding=DataParallel(1)).fit(linear(), stream(), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_wish_holds_for_one_start_of_a_run_only(monkeypatch):
    monkeypatch.setattr(profiling, "_is_loaded", lambda library: False)
    with tracing(StepRange(1, 2)):
        assert requested_steps(5) == StepRange(1, 2)
    assert requested_steps(5) is None


@pytest.mark.parametrize("loaded", [True, False])
def test_a_libtpu_that_would_crash_the_profiler_is_refused_where_it_is_loaded(monkeypatch, loaded):
    monkeypatch.setattr(profiling.metadata, "version", lambda name: {"libtpu": "0.0.1"}[name])
    monkeypatch.setattr(profiling, "_is_loaded", lambda library: loaded)
    refusal = pytest.raises(ValueError, match=r"libtpu 0\.0\.1 is loaded.*set JAX_PLATFORMS=cpu")
    with tracing(StepRange(1, 2)), refusal if loaded else nullcontext():
        assert requested_steps(5) == StepRange(1, 2)


class Recorder:
    """Stands for JAX's profiler: notes calls, and writes the files that it writes."""

    def __init__(self):
        self.calls = []

    def start_trace(self, folder, profiler_options):
        self.calls.append("start")
        self.folder = folder / "plugins" / "profile" / profiler_options.session_id

    def stop_trace(self):
        self.calls.append("stop")
        self.folder.mkdir(parents=True)
        for kind in (".xplane.pb", ".trace.json.gz"):
            (self.folder / f"node.local{kind}").write_text("trace")


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(jax.profiler, "start_trace", recorder.start_trace)
    monkeypatch.setattr(jax.profiler, "stop_trace", recorder.stop_trace)
    return recorder


def drive(profiler, first, last):
    """Calls of the loop for steps `first` to `last`; returns the steps during which a trace was on."""
    traced, metrics = [], {"loss": jnp.zeros(())}
    for step in range(first, last + 1):
        profiler.before(step, metrics)
        if profiler._is_tracing:
            traced.append(step)
        profiler.after(step, metrics)
    profiler.close()
    return traced


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_exactly_the_steps_asked_for_are_traced_where_tensorboard_looks(recorder, tmp_path):
    board = tmp_path / "tensorboard"
    assert drive(StepProfiler(StepRange(3, 6), board, done=0, account=TimeAccount()), 1, 9) == [3, 4, 5]
    assert recorder.calls == ["start", "stop"]
    assert [path.relative_to(board).as_posix() for path in sorted(board.rglob("*.*"))] == [
        "plugins/profile/steps_3_to_5/node.local.trace.json.gz",
        "plugins/profile/steps_3_to_5/node.local.xplane.pb",
    ]
    assert list(tmp_path.iterdir()) == [board]
    assert traces(board) == [board / "plugins/profile/steps_3_to_5"]


def test_nothing_is_traced_unasked(recorder, tmp_path):
    assert drive(StepProfiler(None, tmp_path, done=0, account=TimeAccount()), 1, 5) == []
    assert (recorder.calls, traces(tmp_path)) == ([], [])


def test_a_run_continued_within_the_range_says_so_and_traces_the_rest(recorder, tmp_path, caplog):
    assert drive(StepProfiler(StepRange(3, 8), tmp_path / "tensorboard", done=5, account=TimeAccount()), 6, 9) == [6, 7]
    assert warnings(caplog) == ["profile_steps=3:8 begins before step 6, the next one: tracing from there"]


def test_a_run_continued_behind_the_range_says_so_and_traces_nothing(recorder, tmp_path, caplog):
    assert drive(StepProfiler(StepRange(3, 6), tmp_path / "tensorboard", done=5, account=TimeAccount()), 6, 9) == []
    (warning,) = warnings(caplog)
    assert warning.startswith("profile_steps=3:6 is over, the run continues with step 6: no trace.")


def test_processes_of_one_host_write_files_of_their_own(recorder, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        drive(StepProfiler(StepRange(1, 2), tmp_path / "tensorboard", done=0, account=TimeAccount()), 1, 1)
    (folder,) = traces(tmp_path / "tensorboard")
    assert sorted(path.name for path in folder.glob("*.pb")) == ["node.local.0.xplane.pb", "node.local.1.xplane.pb"]


def test_a_trace_that_cannot_be_written_ends_no_run(recorder, tmp_path, monkeypatch, caplog):
    def full():
        raise OSError("no space left")

    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    assert drive(StepProfiler(StepRange(1, 2), tmp_path / "tensorboard", done=0, account=TimeAccount()), 1, 3) == [1]
    assert warnings(caplog) == ["the trace of steps 1 to 1 was lost: no space left"]


@pytest.mark.heavy
def test_a_run_stopped_within_the_range_and_continued_leaves_two_traces_with_its_steps(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    script = Path(__file__).with_name("profiling_driver.py")
    run = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert [(name, trace["steps"]) for name, trace in found.items()] == [
        ("steps_4_to_7", [4, 5]),
        ("steps_6_to_7", [6, 7]),
    ]
    phases = found["steps_4_to_7"]["phases"]
    assert phases["evaluation"] == 1 and phases["checkpoint"] >= 2 and phases["input_wait"] >= 2
