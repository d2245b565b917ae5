"""What a TPU chip can do, and the chips of a topology, without any of them being here."""

import os
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from recogdrive.experiment import ConfigurationError

GIB = 2**30
EXAMPLES = "v6e:2x2, v6e:2x4, v5p:2x2x1 or v6e:16x16"


@dataclass(frozen=True)
class Chip:
    """Figures of one chip, for estimates of time; how much memory it has is asked of the compiler.

    Attributes:
      flops: Products and sums a second in bfloat16.
      clock_hz: Cycles a second, of the compiler's cycle estimates.
      hbm_bytes_per_s: Read or written.
      link_bytes_per_s: Sent to other chips over all links together, a nominal figure.

    Source: spec/tpu_and_torchax_facts.md, published figures.
    """

    flops: float
    clock_hz: float
    hbm_bytes_per_s: float
    link_bytes_per_s: float


CHIPS = {
    "v6e": Chip(918e12, 1.75e9, 1.638e12, 360e9),
    "v5e": Chip(197e12, 1.5e9, 0.819e12, 180e9),
    "v5p": Chip(459e12, 1.75e9, 2.765e12, 540e9),
}


def chip_of(topology: str) -> Chip:
    """Figures of a topology's chips.

    Raises:
      ConfigurationError: None are known; says of which they are.
    """
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise ConfigurationError(
            f"--compile_timing: of chips {kind!r} no speed is known, of {', '.join(CHIPS)} it is; leave the flag out "
            "for the memory alone."
        )
    return CHIPS[kind]


def open_topology(topology: str) -> list[jax.Device]:
    """The devices of a topology, as libtpu describes them; no hardware is needed.

    Raises:
      ConfigurationError: libtpu is not installed, or does not know the topology.
    """
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")  # Else a second process with libtpu ends at once.
    from jax.experimental import topologies

    compiler_version()
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"{topology} is no topology that libtpu knows ({str(error).splitlines()[0]}); use one such as {EXAMPLES}."
        ) from error


def memory_limit(device: jax.Device) -> int:
    """Bytes of memory that a program may use on a device: what the compiler says of a program that wants far more.

    Raises:
      RuntimeError: It says something else.
    """
    sharding = jax.sharding.SingleDeviceSharding(device)
    wanted = jax.ShapeDtypeStruct((1 << 40,), jnp.uint8, sharding=sharding)
    try:
        jax.jit(lambda x: x + 1).lower(wanted).compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"exceeds available HBM \(([\d.]+)G\)", str(error))
        if found is not None:
            return int(float(found[1]) * GIB)
        raise
    raise RuntimeError(f"the compiler for {device.device_kind} finds room for 2 TiB on one device.")


def compiler_version() -> str:
    """Version of the compiler.

    Raises:
      ConfigurationError: It is not installed.
    """
    from importlib import metadata

    try:
        return f"libtpu {metadata.version('libtpu')}"
    except metadata.PackageNotFoundError:
        raise ConfigurationError(
            "--compile_for needs the TPU compiler, which needs no TPU: pip install 'recogdrive[tpu-compile]'."
        ) from None
