"""The devices that programs are made for: those of this machine, or those of a machine that is not here."""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import jax

_devices: contextvars.ContextVar[tuple[jax.Device, ...] | None] = contextvars.ContextVar("target_devices", default=None)


def target_devices() -> list[jax.Device]:
    """The devices in question, all processes together: JAX's own unless others are targeted.

    Those of a process stand together, whatever their numbers on a pod, so that its rows of a batch do too, and devices
    that share a row's work are of one process.
    """
    targeted = _devices.get()
    devices = jax.devices() if targeted is None else targeted
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def target_platform() -> str:
    """Their platform: "cpu", "gpu" or "tpu"."""
    targeted = _devices.get()
    return jax.default_backend() if targeted is None else targeted[0].platform


@contextlib.contextmanager
def targeting(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Within it, meshes and programs are made for `devices`, which may be those of a topology without hardware.

    Raises:
      ValueError: There are none.
    """
    if not devices:
        raise ValueError("targeting needs at least one device.")
    token = _devices.set(tuple(devices))
    try:
        yield
    finally:
        _devices.reset(token)
