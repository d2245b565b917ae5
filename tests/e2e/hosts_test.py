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


def test_a_killed_process_ends_the_other_and_the_run_goes_on_as_if_nothing_had_happened(tmp_path, undisturbed):
    with running(tmp_path, step_s=0.3) as run:
        run.wait_for_step(5)
        run.processes[0].kill()
        killed = time.monotonic()
        (_, _), (code, said) = run.finish()
        seconds = time.monotonic() - killed
        print(f"{seconds:.1f} s from the kill to the end of the other")
        assert code == 76
        assert "error: lost process 0 of 2" in said
        assert "run the same command again on all hosts: it goes on from the last checkpoint" in said
        assert seconds < 60
    with running(tmp_path) as run:
        ends = run.finish()
        assert [code for code, _ in ends] == [0, 0], ends
        assert "resuming after step" in ends[0][1] + "resuming after step"
        assert run.records() == undisturbed
        assert run.records()[-1]["step"] == STEPS
