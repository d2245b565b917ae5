"""Work for the tests of executors, in a module that worker processes can import."""

import os
import signal


def make_square():
    """Made once in every worker: each result names the process and how many tasks it had done before."""
    done = []

    def square(number):
        done.append(number)
        return number**2, os.getpid(), len(done)

    return square


def make_environment():
    """What a worker sees of its surroundings."""

    def look(name):
        import jax

        return os.environ.get(name), jax.default_backend(), len(os.sched_getaffinity(0))

    return look


def make_failure():
    """Work that refuses one of its tasks."""

    def work(number):
        if number == 3:
            raise ValueError("task 3 is refused")
        return number

    return work


def make_death():
    """Work that a signal ends."""

    def work(number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    return work
