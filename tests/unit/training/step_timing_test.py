import threading
import time

import jax.numpy as jnp
import pytest

from recogdrive.training.step_timing import StepPace, StepWatch
from recogdrive.training.time_account import CHECKPOINT, INPUT, STEPS, TimeAccount


class Loss:
    """A scalar that a device computes until it is told to be done."""

    def __init__(self):
        self.done = threading.Event()

    def block_until_ready(self):
        assert self.done.wait(10)
        return self


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_devices_are_idle_from_the_end_of_the_newest_step_on():
    times = iter([0.0, 5.0, 8.0])
    watch = StepWatch(lambda: next(times))
    assert watch.idle_since() == 0.0  # Nothing has been started.
    first, second = Loss(), Loss()
    watch.add({"loss": first})
    watch.add({"loss": second})
    first.done.set()
    assert watch.idle_since() is None
    second.done.set()
    wait_until(lambda: watch.idle_since() is not None)
    assert watch.idle_since() == 8.0
    watch.close()


def test_a_step_that_fails_ends_too():
    class Failed:
        def block_until_ready(self):
            raise RuntimeError("device lost")

    watch = StepWatch()
    watch.add({"loss": Failed()})
    wait_until(lambda: watch.idle_since() is not None)
    watch.close()


def test_the_thread_ends_with_the_run():
    watch = StepWatch()
    watch.add({"loss": jnp.ones(())})
    watch.close()
    assert not any(thread.name == "step watch" for thread in threading.enumerate())


def test_the_pace_leaves_checkpoints_out_and_begins_anew_after_a_log_line():
    now = [0.0]
    account = TimeAccount(lambda: now[0])

    def spend(kind, seconds):
        with account.phase(kind):
            now[0] += seconds

    pace = StepPace(account)
    for _ in range(4):
        spend(STEPS, 2.0)
        spend(INPUT, 0.5)
        pace.advance()
    spend(CHECKPOINT, 10.0)
    assert pace.report(16) == pytest.approx(
        {"samples_per_s": 6.4, "step_time_s": 2.5, "input_wait_s": 0.5, "goodput": 8 / 20}
    )
    pace.restart()
    spend(STEPS, 4.0)
    pace.advance()
    assert pace.report(16)["step_time_s"] == 4.0
