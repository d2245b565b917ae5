"""Two processes of two devices: what one that is killed leaves behind, and that the run goes on from there."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("hosts_driver.py")
ROOT = Path(__file__).parents[2]
STEPS = 8

pytestmark = pytest.mark.heavy
IN_FULL = pytest.mark.acceptance
"""Not in every run of the suite: each starts two processes twice."""


class Run:
    """The two processes of a run in `folder`."""

    def __init__(self, folder, step_s=0.0, fault=()):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1] & ~1}"  # The port above is used too.
        variables = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        variables["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        self.folder = folder
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(DRIVER), str(folder), address, "2", str(number), str(step_s), *fault],
                env=variables,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for number in range(2)
        ]

    def finish(self):
        """(exit code, what it said) of both."""
        return [(p.returncode, said) for p in self.processes for _, said in [p.communicate(timeout=100)]]

    def wait_for_step(self, step):
        deadline = time.monotonic() + 100
        while not any(record["step"] >= step for record in self.records()):
            assert time.monotonic() < deadline and all(p.poll() is None for p in self.processes), self.finish()
            time.sleep(0.02)

    def worker(self, number):
        """The process that trains, under the supervisor `number`."""
        pid = self.processes[number].pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def records(self):
        """Lines of metrics.jsonl without timings."""
        with contextlib.suppress(OSError):
            lines = (self.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
            return [json.loads(line) | {"perf": None} for line in lines if line.endswith("\n")]
        return []

    def close(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@contextlib.contextmanager
def running(folder, **settings):
    run = Run(folder, **settings)
    try:
        yield run
    finally:
        run.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with running(tmp_path_factory.mktemp("undisturbed") / "run") as run:
        ends = run.finish()
        assert [code for code, _ in ends] == [0, 0], ends
        return run.records()


def killed(run, number, *, worker):
    """Kills a process in its fifth step; (exit code, last words) of the other, and the seconds until its end."""
    run.wait_for_step(5)
    begun = time.monotonic()
    if worker:
        os.kill(run.worker(number), signal.SIGKILL)
    else:
        run.processes[number].kill()
    (other,) = [end for i, end in enumerate(run.finish()) if i != number]
    seconds = time.monotonic() - begun
    print(f"{seconds:.1f} s from the kill of process {number} to the end of the other")
    return *other, seconds


def goes_on(folder, undisturbed):
    with running(folder) as run:
        ends = run.finish()
        assert [code for code, _ in ends] == [0, 0], ends
        assert run.records() == undisturbed
        assert run.records()[-1]["step"] == STEPS


def ends_and_goes_on(folder, number, undisturbed, *, worker):
    with running(folder, step_s=0.3) as run:
        code, said, seconds = killed(run, number, worker=worker)
        assert code == 76
        assert f"error: lost process {number} of 2" in said
        assert "run the same command again on all hosts: it goes on from the last checkpoint" in said
        assert seconds < 60
    goes_on(folder, undisturbed)


def test_a_killed_process_ends_the_other_and_the_run_goes_on_as_if_nothing_had_happened(tmp_path, undisturbed):
    ends_and_goes_on(tmp_path, 0, undisturbed, worker=False)


@IN_FULL
@pytest.mark.parametrize(("number", "worker"), [(1, False), (0, True), (1, True)])
def test_so_does_each_of_the_others(tmp_path, undisturbed, number, worker):
    ends_and_goes_on(tmp_path, number, undisturbed, worker=worker)


@IN_FULL
def test_an_error_of_one_process_is_shown_there_and_named_by_the_other(tmp_path):
    with running(tmp_path, step_s=0.3, fault=["error"]) as run:
        (code, said), (own, own_said) = run.finish()
    assert (code, own) == (76, 1)
    assert "process 1 of 2" in said and "log 17 is damaged" in said
    assert "log 17 is damaged" in own_said and "lost" not in own_said


@IN_FULL
@pytest.mark.parametrize(("number", "stop"), [(0, os.kill), (1, os.kill), (0, os.killpg)])
def test_a_stopped_process_stops_both_after_the_same_step_which_is_saved(tmp_path, undisturbed, number, stop):
    """Schedulers signal a process alone, or with all those it started."""
    with running(tmp_path, step_s=0.3) as run:
        run.wait_for_step(3)
        stop(run.processes[number].pid, signal.SIGTERM)
        ends = run.finish()
        assert [code for code, _ in ends] == [75, 75], ends
        step = run.records()[-1]["step"]
        assert 3 <= step < STEPS and (tmp_path / "checkpoints" / str(step)).is_dir()
    goes_on(tmp_path, undisturbed)
