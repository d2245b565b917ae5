"""Device slots: what a run may use of the machine, and the environment that holds it to that."""

import os
import re
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recogdrive.experiment import ConfigurationError

KINDS = ("cpu", "gpu", "tpu")
_SLOT = re.compile(r"(?P<kind>cpu|gpu|tpu)(?::(?P<detail>[0-9]+(?:\+[0-9]+)*|all))?(?:\*(?P<times>[0-9]+))?")
_GPU_MEMORY_SHARE = 0.9
"""Of a GPU that several slots name, divided among them; XLA alone would take 0.75 for each."""


@dataclass(frozen=True)
class Slot:
    """Takes one run at a time.

    Attributes:
      name: As it stands in tables; unique among the slots of a launch.
      kind: "cpu", "gpu" or "tpu".
      devices: Numbers of the GPUs or TPU chips; empty for all there are.
      virtual_devices: Into how many devices XLA splits the CPU.
      memory_share: Share of its GPUs' memory, where another slot names them too; else None.
    """

    name: str
    kind: str
    devices: tuple[int, ...] = ()
    virtual_devices: int = 1
    memory_share: float | None = None

    def environment(self, outer: Mapping[str, str], libraries: Sequence[Path] = ()) -> dict[str, str]:
        """Variables that a run in this slot is started with, beside those of the launcher.

        Args:
          outer: The launcher's environment; its XLA_FLAGS and LD_LIBRARY_PATH are added to, not lost.
          libraries: Folders of shared libraries that pip installed for CUDA.
        """
        if self.kind == "cpu":
            kept = [f for f in outer.get("XLA_FLAGS", "").split() if "xla_force_host_platform_device_count" not in f]
            flags = [*kept, f"--xla_force_host_platform_device_count={self.virtual_devices}"]
            return {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "XLA_FLAGS": " ".join(flags)}
        if self.kind == "tpu":
            return {"JAX_PLATFORMS": "tpu,cpu"} | self._chips()
        variables = {"JAX_PLATFORMS": "cuda,cpu"}
        if self.devices:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self.devices))
        if self.memory_share is not None:
            variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{self.memory_share:.2f}"
        if libraries:
            before = [outer["LD_LIBRARY_PATH"]] if outer.get("LD_LIBRARY_PATH") else []
            variables["LD_LIBRARY_PATH"] = ":".join([*map(str, libraries), *before])
        return variables

    def _chips(self) -> dict[str, str]:
        """What libtpu needs to open one chip and leave the others to other processes."""
        if not self.devices:
            return {}
        chip = str(self.devices[0])
        return {
            "TPU_VISIBLE_CHIPS": chip,
            "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
            "TPU_PROCESS_BOUNDS": "1,1,1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
        }


def parse_slots(texts: Sequence[str], gpus: Sequence[int] | None = None) -> list[Slot]:
    """Reads slots as a person writes them.

    `cpu` is one run at a time on the CPU, `cpu:4` the same split into four virtual devices, `gpu:0` one GPU, `gpu:0+1`
    two for one run, `gpu:all` a slot for each GPU there is, `gpu` all GPUs for one run, `tpu` all chips of this host,
    `tpu:0` one of them; `cpu*3` is three slots.

    Args:
      texts: One slot each, or several with commas between.
      gpus: Numbers of the GPUs for `gpu:all`; by default those of `visible_gpus`.

    Raises:
      ConfigurationError: One cannot be read, or a TPU chip is named twice or beside all of them.
    """
    words = [word for text in texts for word in text.replace(" ", "").split(",") if word]
    if not words:
        raise ConfigurationError("There are no slots to run in; write --slots=cpu, --slots=gpu:0,gpu:1 or the like.")
    chosen: list[tuple[str, str, tuple[int, ...], int]] = []
    for word in words:
        chosen += _read(word, gpus)
    _check_chips([devices for _, kind, devices, _ in chosen if kind == "tpu"])
    holders = Counter(device for _, kind, devices, _ in chosen if kind == "gpu" for device in devices or (-1,))
    every_gpu = holders.pop(-1, 0)
    labels = Counter(label for label, *_ in chosen)
    numbered: Counter[str] = Counter()
    slots = []
    for label, kind, devices, virtual in chosen:
        numbered[label] += 1
        name = f"{label}#{numbered[label]}" if labels[label] > 1 else label
        users = 0
        if kind == "gpu":
            on_mine = [holders[device] for device in devices] if devices else [every_gpu, *holders.values()]
            users = max(on_mine) + (every_gpu if devices else 0)
        slots.append(Slot(name, kind, devices, virtual, _GPU_MEMORY_SHARE / users if users > 1 else None))
    return slots


def _read(word: str, gpus: Sequence[int] | None) -> list[tuple[str, str, tuple[int, ...], int]]:
    """Label, kind, devices and virtual devices of each slot that a word stands for."""
    match = _SLOT.fullmatch(word)
    if match is None:
        raise ConfigurationError(
            f"{word!r} is no slot; write cpu, cpu:4 (four virtual devices), cpu*2 (two slots), gpu:0, gpu:0+1 (two "
            "GPUs for one run), gpu:all, tpu or tpu:0."
        )
    kind, detail, times = match["kind"], match["detail"], int(match["times"] or 1)
    label = kind if detail is None else f"{kind}:{detail}"
    if detail == "all":
        if kind != "gpu":
            raise ConfigurationError(f"{word!r}: write {kind} alone for all of this machine.")
        numbers = visible_gpus(os.environ) if gpus is None else gpus
        if not numbers:
            raise ConfigurationError("gpu:all finds no GPU: nvidia-smi lists none. Name them (gpu:0) or use cpu.")
        return [(f"gpu:{number}", "gpu", (number,), 1) for number in numbers] * times
    if kind == "cpu":
        if detail is not None and ("+" in detail or int(detail) < 1):
            raise ConfigurationError(f"{word!r}: cpu:N splits the CPU into N virtual devices, N from 1 on.")
        return [(label, kind, (), int(detail or 1))] * times
    devices = () if detail is None else tuple(map(int, detail.split("+")))
    if kind == "tpu" and len(devices) > 1:
        raise ConfigurationError(f"{word!r}: a TPU slot is one chip (tpu:0) or all of this host (tpu).")
    return [(label, kind, devices, 1)] * times


def _check_chips(chosen: Sequence[tuple[int, ...]]) -> None:
    if len(chosen) > 1 and (() in chosen or len(set(chosen)) < len(chosen)):
        raise ConfigurationError("A TPU chip belongs to one process at a time; no two slots may name the same one.")


def visible_gpus(variables: Mapping[str, str]) -> list[int]:
    """Numbers of the NVIDIA GPUs that this process may use: of CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists.

    Args:
      variables: The environment; a batch system names there what it gave.

    Raises:
      ConfigurationError: GPUs are named otherwise than by numbers.
    """
    given = variables.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        words = [word.strip() for word in given.split(",") if word.strip()]
        if not all(word.isdigit() for word in words):
            raise ConfigurationError(f"gpu:all cannot divide CUDA_VISIBLE_DEVICES={given!r}; use gpu, one run on all.")
        return [int(word) for word in words]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return list(range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines())))


def nvidia_libraries(site_packages: Path | None = None) -> list[Path]:
    """Folders of shared libraries in pip's `nvidia-*` packages.

    A CUDA that the system keeps elsewhere on LD_LIBRARY_PATH is else found before the one that JAX was built for.

    Args:
      site_packages: Where packages are installed; by default where this Python looks.
    """
    root = (site_packages or Path(sysconfig.get_paths()["purelib"])) / "nvidia"
    return sorted({library.parent for library in root.glob("*/lib*/*.so*")})
