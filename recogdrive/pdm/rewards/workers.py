"""Worker processes that hold one piece of work each, and no accelerator."""

import multiprocessing
import multiprocessing.connection
import os
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}
"""One core each, and the accelerator is left to the run."""

_work: Callable[..., Any] | None = None
"""What this worker process does; set once by `begin`."""


def begin_arguments(work: Callable[..., Any]) -> tuple[bytes]:
    """Arguments of `begin` in every worker.

    Raises:
      ValueError: The work cannot be sent to another process.
    """
    try:
        return (pickle.dumps(work),)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{work!r} cannot be sent to worker processes ({error}). Give a function of a module, or in gin an object "
            f"of a registered class with __call__ (@MyReward(), not @my_reward); or work without processes."
        ) from error


def begin(pickled: bytes) -> None:
    """First thing in a worker process.

    Unpickling imports what the work needs, JAX perhaps: it comes after the environment is set, hence the bytes.
    """
    global _work
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ.update(_ENVIRONMENT)
    if "jax" in sys.modules:  # By way of the main module, which read the environment as it was.
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    _work = pickle.loads(pickled)


def run_task(*task: Any) -> Any:
    """Does the work of this process with one task."""
    return _work(*task)


def _exit_with_parent() -> None:
    """Ends this process with its parent: a worker whose parent was killed would wait for tasks for ever."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
