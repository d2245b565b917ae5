"""What a TPU chip can do, and the chips of a topology, without any of them being here."""

import os
from dataclasses import dataclass

import jax

from recogdrive.experiment import ConfigurationError

GIB = 2**30
EXAMPLES = "v6e:2x2, v6e:2x4, v5p:2x2x1 or v6e:16x16"


@dataclass(frozen=True)
class Chip:
    """Figures of one chip.

    Attributes:
      hbm_bytes: Memory that a program may use.
      flops: Products and sums a second in bfloat16.
      clock_hz: Cycles a second, of the compiler's cycle estimates.
      hbm_bytes_per_s: Read or written.
      link_bytes_per_s: Sent to other chips over all links together, a nominal figure.

    Source: spec/tpu_and_torchax_facts.md (limits from the compiler's own errors, the rest published).
    """

    hbm_bytes: float
    flops: float
    clock_hz: float
    hbm_bytes_per_s: float
    link_bytes_per_s: float


CHIPS = {
    "v6e": Chip(31.24 * GIB, 918e12, 1.75e9, 1.638e12, 360e9),
    "v5e": Chip(15.75 * GIB, 197e12, 1.5e9, 0.819e12, 180e9),
    "v5p": Chip(95.74 * GIB, 459e12, 1.75e9, 2.765e12, 540e9),
}


def chip_of(topology: str) -> Chip:
    """Figures of a topology's chips.

    Raises:
      ConfigurationError: None are known; says of which they are.
    """
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise ConfigurationError(
            f"--compile_for={topology}: chips {kind!r} are not known, those of {', '.join(CHIPS)} are; use a topology "
            f"such as {EXAMPLES}."
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
            f"--compile_for={topology} is no topology that libtpu knows ({str(error).splitlines()[0]}); use one such "
            f"as {EXAMPLES}."
        ) from error


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
