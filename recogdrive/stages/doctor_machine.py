"""Doctor: linear algebra, memory, disk and the data roots."""

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from recogdrive.cores import usable_cores
from recogdrive.data.inventory import take_inventory
from recogdrive.data.navsim_files import DATA_VARIABLE, MAPS_VARIABLE, find_data_root, find_maps_root
from recogdrive.pdm.machine import MachineError, check_linear_algebra, machine_stamp
from recogdrive.stages.doctor_findings import Finding, Level

_GIB = 2**30
_LEAST_MEMORY = 1 * _GIB
"""Below it Python with torch, JAX and one compiled program do not fit."""
_SMALL_MEMORY = 6 * _GIB
"""What the quickstart takes, with some room."""
_LEAST_DISK = _GIB // 2
_SMALL_DISK = 100 * _GIB
"""Three checkpoints of 2B fine-tuning: 2.1 billion weights with two moments in float32 each, and room for a cache."""
_FEW_FILES = 1024


def check_blas() -> list[Finding]:
    """The self-test of NumPy's linear algebra."""
    stamp = machine_stamp()
    try:
        check_linear_algebra()
    except MachineError as error:
        found, _, remedy = str(error).partition(" Nothing was written. ")
        return [Finding(Level.FATAL, found, remedy)]
    return [Finding(Level.OK, f"{stamp['blas']} under NumPy {stamp['numpy']} gives known products and inverses")]


def memory_bytes(root: Path = Path("/")) -> tuple[int, int]:
    """Memory that this process may have in all, and what is free of it; limits of containers and batch jobs count.

    Args:
      root: Where `proc` and `sys` are.
    """
    total = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = root / "proc" / "meminfo"
    if meminfo.is_file():
        kib = {line.split(":")[0]: int(line.split()[1]) for line in meminfo.read_text().splitlines() if ":" in line}
        total, free = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    for limit, used in _group_limits(root):
        if limit < total:
            total, free = limit, min(free, limit - used)
    return total, free


def _group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of the control groups that this process is in, those above included."""
    groups = root / "sys" / "fs" / "cgroup"
    membership = root / "proc" / "self" / "cgroup"
    lines = membership.read_text().splitlines() if membership.is_file() else []
    own = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    folders = [groups / own, *(groups / own).parents] if own else [groups]
    places = [(f / "memory.max", f / "memory.current") for f in folders if f.is_relative_to(groups)]
    first_version = groups / "memory"
    places.append((first_version / "memory.limit_in_bytes", first_version / "memory.usage_in_bytes"))
    for limit, used in places:
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            yield int(text), int(used.read_text())


def check_memory(sizes: tuple[int, int] | None = None) -> list[Finding]:
    """Main memory and cores.

    Args:
      sizes: As `memory_bytes` gives them, which is asked by default.
    """
    total, free = memory_bytes() if sizes is None else sizes
    found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free, {len(usable_cores())} of {os.cpu_count()} cores usable"
    if free < _LEAST_MEMORY:
        return [Finding(Level.FATAL, found, "Free memory, or raise the container's limit; 6 GiB run the quickstart.")]
    if free < _SMALL_MEMORY:
        remedy = "6 GiB run the quickstart; --dry_run of an experiment says what its weights take."
        return [Finding(Level.WARNING, found, remedy)]
    return [Finding(Level.OK, found)]


def check_open_files(limit: int | None = None) -> list[Finding]:
    """How many files may be open at once.

    Args:
      limit: By default that of this process.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = soft if limit is None else limit
    if limit == resource.RLIM_INFINITY or limit > _FEW_FILES:
        return []
    most = "a larger number" if hard == resource.RLIM_INFINITY else hard
    found = f"at most {limit:,} files may be open at once; many processes with many maps and shards need more"
    return [Finding(Level.NOTE, found, f"ulimit -n {most}")]


def check_disk(folder: Path, free: int | None = None) -> list[Finding]:
    """Room and permission where runs write, and where temporary files go.

    Args:
      folder: Of the run.
      free: Bytes there; by default the system is asked.
    """
    findings = []
    free = shutil.disk_usage(folder).free if free is None else free
    found = f"{free / _GIB:,.0f} GiB free at {folder.resolve()}"
    remedy = (
        "Enough for small runs; 2b_sft keeps three checkpoints of 25 GB, docs/hidden_cache.md says what caches take."
        if free >= _LEAST_DISK
        else "Choose another --workdir, or delete runs."
    )
    if free < _LEAST_DISK:
        findings.append(Finding(Level.FATAL, found, remedy))
    else:
        findings.append(Finding(Level.OK if free >= _SMALL_DISK else Level.NOTE, found, remedy * (free < _SMALL_DISK)))
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"x")
            os.fsync(file.fileno())
    except OSError as error:
        remedy = "Choose another --workdir, or correct owner and permissions."
        findings.append(Finding(Level.FATAL, f"cannot write in {folder.resolve()}: {error.strerror}", remedy))
    temporary = Path(tempfile.gettempdir())
    free = shutil.disk_usage(temporary).free
    if free < _LEAST_DISK:
        remedy = "export TMPDIR=... to a folder with more room"
        findings.append(
            Finding(Level.WARNING, f"{free / 2**20:,.0f} MiB free for temporary files in {temporary}", remedy)
        )
    return findings


def check_compile_cache(folder: str | None = None) -> list[Finding]:
    """Whether compiled programs are kept between runs.

    Args:
      folder: By default the variable JAX_COMPILATION_CACHE_DIR.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", "") if folder is None else folder
    if not folder:
        found = "compiled programs are not kept: every start compiles anew"
        return [Finding(Level.NOTE, found, "export JAX_COMPILATION_CACHE_DIR=~/.cache/recogdrive")]
    path = Path(folder)
    if path.exists() and not os.access(path, os.W_OK):
        remedy = "export JAX_COMPILATION_CACHE_DIR=... to a folder of your own"
        return [Finding(Level.WARNING, f"cannot write compiled programs to {path}", remedy)]
    return [Finding(Level.OK, f"compiled programs are kept in {path}")]


def check_data(data_root: str | None, maps_root: str | None) -> list[Finding]:
    """What lies under the data roots, by folders and files alone."""
    try:
        root = find_data_root(data_root)
    except FileNotFoundError as error:
        return [Finding(Level.WARNING, str(error), f"export {DATA_VARIABLE}=... to the folder that holds navsim_logs")]
    except ValueError:
        found = f"{DATA_VARIABLE} is not set: experiments on the synthetic town run, those on NAVSIM do not"
        return [
            Finding(Level.NOTE, found, f"export {DATA_VARIABLE}=... to the folder with navsim_logs and sensor_blobs")
        ]
    maps = find_maps_root(maps_root, root)
    inventory = take_inventory(root, maps)
    logs = ", ".join(f"{folder.split} {folder.logs:,}" for folder in inventory.logs) or "none"
    cities = ", ".join(city.city for city in inventory.maps) or "none"
    findings = [Finding(Level.OK, f"data root {root}: logs: {logs}; maps in {maps}: {cities}")]
    remedy = (
        f"--experiment=data_check says which files navtrain and navtest lack; {MAPS_VARIABLE} names another map folder"
    )
    return findings + [Finding(Level.WARNING, problem, remedy) for problem in inventory.problems]
