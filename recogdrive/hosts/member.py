"""One working process among several: begins and ends with the others, and what only process 0 does is done there.

Without others, everything here does nothing, so that stages are written once.
"""

import contextlib
import itertools
import json
import logging as std_logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import Array, Shaped

from recogdrive.experiment import ConfigurationError
from recogdrive.hosts.command import explain
from recogdrive.hosts.settings import HostSettings
from recogdrive.hosts.supervisor import MEMBER_VARIABLE
from recogdrive.target import target_devices

Value = TypeVar("Value")

_TIME_TO_BE_ENDED_S = 8.0
"""A death elsewhere shows as some error here, often before its news: it is waited for, and then ends this process."""
_AFTER_SUPERVISOR_S = 20.0
"""JAX's own patience beyond the supervisors', which say more."""
_WAIT_S = 30
_PART = 1 << 20
"""Characters of an entry of the coordinator's store, whose messages are limited."""
_FOLDER_TIMEOUT_S = 60.0
_TOKEN = ".shared-"
_WAITED = "_waited_for_its_cause"
_names = itertools.count()


class _Prefixed(logging.PythonFormatter):
    """The log's own format behind a prefix."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def format(self, record: std_logging.LogRecord) -> str:
        return self._prefix + super().format(record)


def run(work: Callable[[], int]) -> int:
    """Does this process's part of a run and returns its exit code.

    Under a supervisor JAX's processes are joined first, and an error ends this process at once: none of the others can
    be waited for.

    Args:
      work: Returns an exit code, or raises.
    """
    text = os.environ.get(MEMBER_VARIABLE)
    if text is None:
        return work()
    settings = HostSettings.from_json(text)
    _prefix_log(settings)
    try:
        _join(settings)
        code = work()
        if code in (1, 2):
            _leave(code)
        wait_for_all()
        jax.distributed.shutdown()
        return code
    except ConfigurationError as error:
        explain(str(error))
        sys.stderr.write(f"error: {error}\n")
        _leave(2)
    except SystemExit:
        raise
    except BaseException as error:
        wait_for_the_cause(error)
        explain(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        _leave(1)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # An orderly end would wait for the others, which wait for this one.


def _join(settings: HostSettings) -> None:
    try:
        jax.distributed.initialize(
            settings.coordinator_address,
            settings.num_processes,
            settings.process_id,
            local_device_ids=settings.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=int(settings.start_timeout_s),
            heartbeat_timeout_seconds=int(settings.lost_after_s + _AFTER_SUPERVISOR_S),
        )
    except RuntimeError as error:
        raise ConfigurationError(
            f"process {settings.process_id} cannot join the others at {settings.coordinator_address}: {error}"
        ) from error
    if jax.process_count() != settings.num_processes:
        raise ConfigurationError(
            f"{settings.num_processes} processes were started ({settings.source}), but the devices are those of "
            f"{jax.process_count()}; give every process devices of its own, and start one on each host."
        )
    _meet()
    own, everywhere = jax.local_device_count(), jax.device_count()
    logging.info("process %d of %d, with %d of %d devices", jax.process_index(), jax.process_count(), own, everywhere)
    if not settings.is_lead:
        logging.set_verbosity(logging.WARNING)  # What goes well is said by process 0.


def _meet() -> None:
    """Has all devices add up something while all processes are here.

    On CPUs connections between them are made at the first sum, for which one process waits 30 s for another: too little
    where it first has to compile what is to be computed.
    """
    wait_for_all()
    mesh = jax.sharding.Mesh(np.asarray(target_devices()), ("all",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
    copied = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    ones = jax.make_array_from_callback((mesh.size,), rows, lambda part: np.ones(mesh.size, np.float32)[part])
    jax.jit(jnp.sum, out_shardings=copied)(ones).block_until_ready()
    multihost_utils.sync_global_devices("recogdrive")  # And one device of each process, as saving does.


def _prefix_log(settings: HostSettings) -> None:
    """Lines say which process they are from, as those of all often end up in one place."""
    logging.get_absl_handler().setFormatter(_Prefixed(f"[process {settings.process_id}] "))


def wait_for_the_cause(error: BaseException) -> None:
    """Gives the supervisor time to end this process where its error only shows that another one died."""
    if is_several() and isinstance(error, RuntimeError) and not getattr(error, _WAITED, False):
        time.sleep(_TIME_TO_BE_ENDED_S)
        setattr(error, _WAITED, True)


def is_several() -> bool:
    """Whether other processes work on this run."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_lead() -> bool:
    """Whether this is the process that writes: process 0, or the only one."""
    return not is_several() or jax.process_index() == 0


def on_lead(work: Callable[[], Value]) -> Value:
    """Has process 0 alone do something; all go on with what it returned, once it has.

    Every process calls it, in the same order. An error ends process 0, and its supervisor the others.

    Args:
      work: Returns a value of JSON.
    """
    if not is_several():
        return work()
    name = _next_name()
    client = _client()
    if jax.process_index() == 0:
        value = work()
        text = json.dumps(value)
        parts = [text[start : start + _PART] for start in range(0, len(text), _PART)]
        for number, part in enumerate(parts):
            client.key_value_set(f"{name}/{number}", part)
        client.key_value_set(name, str(len(parts)))
        return value
    count = int(_awaited(client, name))
    return json.loads("".join(_awaited(client, f"{name}/{number}") for number in range(count)))


def wait_for_all() -> None:
    """Until every process is here, however long one works alone; all call it."""
    if not is_several():
        return
    name, client = _next_name(), _client()
    client.key_value_set(f"{name}/{jax.process_index()}", "here")
    on_lead(lambda: [_awaited(client, f"{name}/{process}") for process in range(jax.process_count())])


def _awaited(client: Any, key: str) -> str:
    """A value as soon as process 0 has set it; that it is still alive is the supervisor's care."""
    while True:
        try:
            return client.blocking_key_value_get(key, _WAIT_S * 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _next_name() -> str:
    """The same one on all, which call in the same order."""
    return f"recogdrive/{next(_names)}"


def _client() -> Any:
    from jax._src import distributed  # JAX offers the store of its coordinator copied else; Orbax takes it there too.

    return distributed.global_state.client


@contextlib.contextmanager
def lead_first() -> Iterator[None]:
    """Within it process 0 works first and the others after it, so that they find what it wrote."""
    if not is_lead():
        on_lead(lambda: None)
    yield
    if is_lead():
        on_lead(lambda: None)


def require_shared(folder: Path) -> None:
    """Makes sure that a folder which process 0 has made is the same one on all hosts.

    Raises:
      ConfigurationError: What process 0 writes there is not seen by this process.
    """
    if not is_several():
        return
    token = f"{_TOKEN}{os.urandom(8).hex()}"

    def write() -> str:
        for left in folder.glob(f"{_TOKEN}*"):  # By a run that was killed here.
            left.unlink(missing_ok=True)
        (folder / token).touch()
        return token

    token = on_lead(write)
    deadline = time.monotonic() + _FOLDER_TIMEOUT_S
    while not _seen(folder, token):
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"process {jax.process_index()} does not see what process 0 writes to {folder.absolute()}: the folder "
                "of a run must be on storage that all hosts share (NFS, Lustre, a mounted bucket). Choose such a "
                "--workdir, the same on all."
            )
        time.sleep(0.2)
    wait_for_all()
    if is_lead():
        (folder / token).unlink(missing_ok=True)


def _seen(folder: Path, name: str) -> bool:
    # Listing asks the server, where looking for the name may be answered from memory.
    try:
        return name in {path.name for path in folder.iterdir()}
    except OSError:
        return False


def local_weights(weights: Mapping[str, Array]) -> Mapping[str, Array]:
    """Weights on one device of process 0, for work that it does alone; none on the others. All call it.

    Weights that all devices hold are not copied. With one process they are handed back as they are.
    """
    if not is_several():
        return weights
    found = {name: _whole(value) for name, value in weights.items()}
    return found if is_lead() else {}


def host_weights(weights: Mapping[str, Array]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Weights in memory of process 0; none on the others. All call it. One at a time is whole on the devices."""
    found = {}
    for name, value in weights.items():
        whole = _whole(value) if is_several() else value
        if is_lead():
            found[name] = np.asarray(whole)
    return found


def _whole(value: Array) -> Array:
    if not isinstance(value, jax.Array) or value.is_fully_addressable:
        return value
    if not value.is_fully_replicated:
        mesh = value.sharding.mesh
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        value = jax.jit(lambda x: x, out_shardings=everywhere)(value)
    return value.addressable_data(0)
