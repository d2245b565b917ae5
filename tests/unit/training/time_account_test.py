import threading

import jax
import jax.numpy as jnp
import pytest

from recogdrive.training.time_account import (
    CHECKPOINT,
    COMPILE,
    EVALUATION,
    INPUT,
    KINDS,
    OTHER,
    STEPS,
    TimeAccount,
)


class Clock:
    """Stands still until told to go on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def tick(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def nonzero(spent):
    return {kind: seconds for kind, seconds in spent.seconds.items() if seconds}


def test_every_moment_is_charged_to_the_innermost_phase_and_all_add_up_to_the_wall_time(clock):
    account = TimeAccount(clock)
    clock.tick(1)
    with account.phase(STEPS):
        clock.tick(2)
        with account.phase(EVALUATION):
            clock.tick(4)
        clock.tick(8)
    clock.tick(16)
    spent = account.read()
    assert nonzero(spent) == {OTHER: 17, STEPS: 10, EVALUATION: 4}
    assert spent.wall == clock.now - 100


def test_time_before_an_error_is_charged_too_and_what_follows_to_the_outer_phase(clock):
    account = TimeAccount(clock)
    with pytest.raises(KeyError), account.phase(CHECKPOINT):
        clock.tick(3)
        raise KeyError
    clock.tick(1)
    assert nonzero(account.read()) == {CHECKPOINT: 3, OTHER: 1}


@pytest.mark.parametrize(
    ("idle_since", "waited"),
    [(None, 0.0), (103.0, 4.0), (90.0, 5.0), (200.0, 0.0)],
    ids=["devices busy", "devices done within", "devices idle before", "devices done as it ends"],
)
def test_input_costs_only_what_the_devices_had_nothing_to_do(clock, idle_since, waited):
    account = TimeAccount(clock)
    with account.phase(STEPS):
        clock.tick(2)
        with account.input_phase(lambda: idle_since):
            clock.tick(5)
    spent = account.read()
    assert (spent.seconds[INPUT], spent.seconds[STEPS]) == (waited, 7 - waited)
    assert spent.wall == 7


def test_compilation_is_charged_apart_with_what_asked_for_it(clock):
    account = TimeAccount(clock)

    @jax.jit
    def function(x):
        clock.tick(3)  # Runs while it is traced.
        return x + 1

    with account.compilation_apart(), account.phase(EVALUATION):
        function(jnp.ones(3))
        clock.tick(2)
        function(jnp.ones(3))
    spent = account.read()
    assert nonzero(spent) == {COMPILE: 3, EVALUATION: 2}
    assert {kind: seconds for kind, seconds in spent.compiled_in.items() if seconds} == {EVALUATION: 3}


def test_a_function_traced_within_another_is_charged_once(clock):
    account = TimeAccount(clock)

    @jax.jit
    def inner(x):
        clock.tick(2)
        return x * 2

    @jax.jit
    def outer(x):
        clock.tick(1)
        return inner(x) + 1

    with account.compilation_apart(), account.phase(STEPS):
        outer(jnp.ones(5))
    assert nonzero(account.read()) == {COMPILE: 3}


def test_what_other_threads_compile_is_no_time_of_this_one(clock):
    account = TimeAccount(clock)
    function = jax.jit(lambda x: clock.tick(3) or x - 1)
    with account.compilation_apart(), account.phase(INPUT):
        thread = threading.Thread(target=function, args=(jnp.ones(4),))
        thread.start()
        thread.join()
    assert nonzero(account.read()) == {INPUT: 3}


def test_the_account_no_longer_listens_once_it_is_left(clock):
    account = TimeAccount(clock)
    with account.compilation_apart():
        pass
    jax.jit(lambda x: clock.tick(3) or x - 2)(jnp.ones(4))
    assert nonzero(account.read()) == {OTHER: 3}


def test_training_time_leaves_out_evaluations_checkpoints_and_what_they_compile(clock):
    account = TimeAccount(clock)
    with account.compilation_apart(), account.phase(STEPS):
        clock.tick(10)
        with account.phase(EVALUATION):
            jax.jit(lambda x: clock.tick(3) or x - 3)(jnp.ones(4))
            clock.tick(5)
        with account.phase(CHECKPOINT):
            clock.tick(7)
    assert account.read().training == 10
    assert set(account.read().seconds) == set(KINDS)
