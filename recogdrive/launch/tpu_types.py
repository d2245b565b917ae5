"""TPU slices by the names they are rented under: chips, hosts, topology, and what Google Cloud calls the rest."""

from dataclasses import dataclass

from recogdrive.experiment import ConfigurationError
from recogdrive.suggestions import did_you_mean

# Source: Cloud TPU's pages on v5e, v5p and v6e, and GKE's page on planning TPUs.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBIC = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
_CHIPS_OF_A_HOST_IN_A_POD = 4


@dataclass(frozen=True)
class TpuType:
    """A slice.

    Attributes:
      name: As `--accelerator-type` takes it; v5p counts cores, two a chip, the others chips.
      chips: In the slice.
      topology: How they are wired, as GKE takes it.
      hosts: Machines, each with a process of the run.
      runtime: Software version of a TPU VM.
      gke_accelerator: Its name as GKE's node label.
    """

    name: str
    chips: int
    topology: str
    hosts: int
    runtime: str
    gke_accelerator: str

    @property
    def chips_per_host(self) -> int:
        """Chips of each machine."""
        return self.chips // self.hosts

    def described(self) -> str:
        """Its size in words."""
        chips = "1 chip" if self.chips == 1 else f"{self.chips} chips"
        return f"{chips} ({self.topology}) on {'1 host' if self.hosts == 1 else f'{self.hosts} hosts'}"


def _family(
    prefix: str, topologies: dict[int, str], units: int, most_on_one_host: int, runtime: str, accelerator: str
) -> list[TpuType]:
    return [
        TpuType(
            name=f"{prefix}-{chips * units}",
            chips=chips,
            topology=topology,
            hosts=1 if chips <= most_on_one_host else chips // _CHIPS_OF_A_HOST_IN_A_POD,
            runtime=runtime,
            gke_accelerator=accelerator,
        )
        for chips, topology in topologies.items()
    ]


TPU_TYPES = {
    tpu.name: tpu
    for tpu in (
        *_family("v6e", _FLAT, 1, 8, "v2-alpha-tpuv6e", "tpu-v6e-slice"),
        *_family("v5p", _CUBIC, 2, 4, "v2-alpha-tpuv5", "tpu-v5p-slice"),
        *_family("v5litepod", _FLAT, 1, 8, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice"),
    )
}


def find_tpu_type(name: str) -> TpuType:
    """Looks a slice up.

    Raises:
      ConfigurationError: There is none of that name; the message names the nearest ones.
    """
    if name not in TPU_TYPES:
        raise ConfigurationError(f"There is no TPU type {name!r}.{did_you_mean(name, TPU_TYPES)}")
    return TPU_TYPES[name]
