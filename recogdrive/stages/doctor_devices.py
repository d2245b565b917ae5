"""Doctor: what JAX computes on, what it could and does not, and variables that change how it computes."""

import os
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from recogdrive.launch.slots import nvidia_libraries
from recogdrive.run_folder import device
from recogdrive.stages.doctor_findings import Finding, Level

_GIB = 2**30
_CUDA_13_DRIVER = 580
"""Least major version of the NVIDIA driver for CUDA 13. Source: CUDA 13 release notes."""
_SHOWN = (
    *("JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"),
    *("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION", "OPENBLAS_CORETYPE", "OMP_NUM_THREADS"),
)
_CHANGES_NUMBERS = {
    "JAX_ENABLE_X64": "computes in float64 what was tested in float32",
    "JAX_DISABLE_JIT": "compiles nothing: everything is far slower",
    "JAX_DEBUG_NANS": "checks every result: everything is slower",
}


def check_devices() -> list[Finding]:
    """Devices by kind with their memory, and a product of whole numbers on each."""
    problem = device().get("problem")
    if problem is not None:
        words = problem.splitlines()[0]
        asked = os.environ.get("JAX_PLATFORMS", "")
        extra = "tpu" if "tpu" in asked or "tpu" in words.lower() else "cuda"
        remedy = (
            f"For that device: pip install -c constraints.txt -e '.[{extra}]'; another process may hold it.\n"
            "For the CPU: export JAX_PLATFORMS=cpu"
        )
        return [Finding(Level.FATAL, f"JAX finds no device (JAX_PLATFORMS={asked!r}): {words}", remedy)]
    devices = jax.local_devices()
    findings = []
    for (platform, kind), count in Counter((d.platform, d.device_kind) for d in devices).items():
        first = next(d for d in devices if (d.platform, d.device_kind) == (platform, kind))
        limit = (first.memory_stats() or {}).get("bytes_limit")
        memory = f", {limit / _GIB:.1f} GiB each" if limit else ""
        where = f" of {jax.device_count()} in {jax.process_count()} processes" if jax.process_count() > 1 else ""
        findings.append(Finding(Level.OK, f"{count} {platform} device{'s' * (count > 1)} ({kind}){where}{memory}"))
    wrong = [str(d) for d in devices if not _multiplies(d)]
    if wrong:
        found = f"products of whole numbers are wrong on {', '.join(wrong)}"
        findings.append(Finding(Level.FATAL, found, "Take the device out of use; its memory or driver is damaged."))
    return findings


def _multiplies(where: jax.Device) -> bool:
    """Whether a product comes out exactly; the sums fit into the mantissa in any order and precision."""
    whole = np.random.default_rng(0).integers(-8, 8, (2, 256, 256))
    one, other = (jax.device_put(jnp.asarray(matrix, jnp.float32), where) for matrix in whole)
    return np.array_equal(np.asarray(one @ other), whole[0] @ whole[1])


def check_unused_devices(
    platform: str | None = None, gpus: Sequence[str] | None = None, dev: Path = Path("/dev")
) -> list[Finding]:
    """Accelerators that are there while JAX computes on something else.

    Args:
      platform: What JAX computes on; by default it is asked.
      gpus: Lines of nvidia-smi, `name, driver version`; by default it is asked.
      dev: Folder of device files.
    """
    if platform is None:
        platform = device()["platform"] or "none"
    gpus = _nvidia_smi() if gpus is None else gpus
    chips = [*dev.glob("accel[0-9]*"), *dev.glob("vfio/[0-9]*")]
    chosen = os.environ.get("JAX_PLATFORMS", "")
    findings = []
    if gpus and platform not in ("gpu", "cuda"):
        names = ", ".join(f"{count} x {name}" for name, count in Counter(g.split(",")[0] for g in gpus).items())
        findings.append(_unused(names, platform, chosen, "cuda"))
    if chips and platform not in ("tpu", "gpu", "cuda"):
        findings.append(_unused(f"{len(chips)} TPU device files", platform, chosen, "tpu"))
    driver = gpus[0].split(",")[-1].strip() if gpus else ""
    if driver.split(".")[0].isdigit() and int(driver.split(".")[0]) < _CUDA_13_DRIVER:
        found = f"the NVIDIA driver {driver} is older than CUDA 13 asks for ({_CUDA_13_DRIVER})"
        findings.append(Finding(Level.WARNING, found, "Update the driver, or pip install 'jax[cuda12]'."))
    return findings


def _unused(what: str, platform: str, chosen: str, extra: str) -> Finding:
    if chosen and extra not in chosen and "gpu" not in chosen:
        remedy = f"unset JAX_PLATFORMS (it is {chosen!r}), or use launch/{'gpu' if extra == 'cuda' else 'tpu'}"
        return Finding(Level.NOTE, f"{what}: hidden by JAX_PLATFORMS, JAX computes on {platform}", remedy)
    remedy = f"pip install -c constraints.txt -e '.[{extra}]'"
    return Finding(Level.WARNING, f"{what}: there, but JAX computes on {platform}", remedy)


def _nvidia_smi() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line for line in listed.stdout.splitlines() if line.strip()]


def check_cuda_libraries(variables: Mapping[str, str] = os.environ, packages: Path | None = None) -> list[Finding]:
    """Whether another CUDA on LD_LIBRARY_PATH would be loaded before the one that pip installed for JAX.

    Args:
      variables: The environment.
      packages: Where packages are installed; by default where this Python looks.
    """
    own = nvidia_libraries(packages)
    names = {library.name.split(".so")[0] for folder in own for library in folder.glob("*.so*")}
    for entry in filter(None, variables.get("LD_LIBRARY_PATH", "").split(":")):
        folder = Path(entry)
        if folder.resolve() in {path.resolve() for path in own} or not folder.is_dir():
            continue
        shadowing = sorted({p.name for p in folder.glob("*.so*") if p.name.split(".so")[0] in names})
        if shadowing:
            found = f"LD_LIBRARY_PATH has {folder} with {', '.join(shadowing[:3])}, before what pip installed for JAX"
            remedy = "unset LD_LIBRARY_PATH, or run through python -m recogdrive.launch, which puts pip's folders first"
            return [Finding(Level.WARNING, found, remedy)]
    return []


def check_variables(variables: Mapping[str, str] = os.environ) -> list[Finding]:
    """Variables that change what is computed, or on what."""
    findings = [
        Finding(Level.WARNING, f"{name}={variables[name]}: {what}", f"unset {name}")
        for name, what in _CHANGES_NUMBERS.items()
        if variables.get(name, "").lower() not in ("", "0", "false")
    ]
    shown = [f"{name}={variables[name]!r}" for name in _SHOWN if name in variables]
    return [*findings, *([Finding(Level.NOTE, f"set: {', '.join(shown)}")] if shown else [])]
