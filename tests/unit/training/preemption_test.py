import os
import signal
import threading

import jax
import pytest

from recogdrive.training.preemption import PREEMPTED_EXIT_CODE, Preempted, PreemptionGuard


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handler_before_is_put_back(number):
    before = signal.getsignal(number)
    with PreemptionGuard() as guard:
        assert not guard.requested(1)
        os.kill(os.getpid(), number)
        assert guard.requested(2)
    assert signal.getsignal(number) is before


def test_of_several_processes_an_interrupted_one_asks_all_to_stop(monkeypatch):
    """JAX's service, which tells the others, listens to SIGTERM alone."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with PreemptionGuard():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_a_second_interrupt_ends_the_run_at_once():
    with pytest.raises(KeyboardInterrupt), PreemptionGuard():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_loop_in_another_thread_leaves_the_handlers_alone():
    inside = []

    def enter():
        with PreemptionGuard():
            inside.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert inside == [before]


def test_the_exit_status_is_that_of_a_temporary_failure():
    assert (Preempted(12).code, Preempted(12).step) == (PREEMPTED_EXIT_CODE, 12)
    assert PREEMPTED_EXIT_CODE == os.EX_TEMPFAIL
