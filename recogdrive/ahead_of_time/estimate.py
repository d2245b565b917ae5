"""What a training step needs on a topology of TPU chips, by their own compiler, without any of them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from absl import logging

from recogdrive.ahead_of_time import worker
from recogdrive.ahead_of_time.chips import GIB, Chip, chip_of, compiler_version
from recogdrive.ahead_of_time.hlo import Collective, Program, read_program
from recogdrive.composition import Composition
from recogdrive.experiment import ConfigurationError
from recogdrive.version import __version__

KERNEL_EFFICIENCY = {"tile_attention_forward": 0.35, "tile_attention_backward": 0.47}
"""Kernel -> part of a v6e chip's peak that it reaches by the compiler's schedule of its instructions, padding counted
as work; `kernel_schedule` finds these."""

ASSUMED_EFFICIENCY = 0.45
"""That of other Pallas kernels, an assumption: the compiler has no estimate of them."""

_STEP = "*jit_train_step*"
_POLL_S = 0.2
_LARGEST = 12


@dataclass(frozen=True)
class Timing:
    """How long a step may take, by the compiler's cycle estimates; good to a factor of two, best to compare variants.

    Attributes:
      compute_s: Cycles of one chip, loops counted as often as they run.
      kernels_s: Pallas kernels, by `KERNEL_EFFICIENCY`.
      copies_s: Copies without estimate, at the memory's speed.
      collectives_s: Bytes sent, at the nominal speed of all links.
      step_s: Shortest and longest: collectives hidden behind computation, or one after the other.
      mfu: Lowest and highest: the model's operations by the chip's peak and the step's time.
      hottest: What took most cycles, as JAX names it -> seconds.
    """

    compute_s: float
    kernels_s: float
    copies_s: float
    collectives_s: float
    step_s: tuple[float, float]
    mfu: tuple[float, float]
    hottest: dict[str, float]


@dataclass(frozen=True)
class Estimate:
    """A compiler estimate of one training step, per chip.

    Attributes:
      experiment, topology, compiler, version: What was compiled, for what, by what.
      chips: Devices of the mesh.
      mesh: Axis -> devices along it.
      rows: Of a global batch.
      accumulation_steps: Micro-batches of an update.
      hbm_bytes: What needs memory -> bytes, `temporaries` (activations, gradients) among it; in all `total_bytes`.
      total_bytes: As the compiler plans it.
      waiting_bytes: Batches that the training loop puts on a chip ahead of their step, beyond that.
      limit_bytes: Memory of the chip.
      flops: The model's operations of a step on all chips, recomputation left out.
      sent_bytes: Kind of collective -> bytes that a chip sends in a step, in rings.
      result_bytes: Kind of collective -> bytes of its results on a chip in a step.
      largest: Collectives that send most: kind, shapes, runs in a step, loops around it, bytes sent.
      windowed_einsums: Loops that the compiler made of a product to gather its weights piece by piece.
      timing: Where it was asked for.
    """

    experiment: str
    topology: str
    compiler: str
    version: str
    chips: int
    mesh: dict[str, int]
    rows: int
    accumulation_steps: int
    hbm_bytes: dict[str, int]
    total_bytes: int
    waiting_bytes: int
    limit_bytes: int
    flops: float
    sent_bytes: dict[str, float]
    result_bytes: dict[str, float]
    largest: list[dict[str, Any]]
    windowed_einsums: int
    timing: Timing | None = None

    @property
    def fits(self) -> bool:
        """Whether the step and the batches that wait have room."""
        return self.total_bytes + self.waiting_bytes <= self.limit_bytes

    def to_json(self) -> str:
        """Everything, and the words that say what kind of figure it is."""
        return json.dumps({"kind": "compiler estimate", **asdict(self), "fits": self.fits}, indent=1)


class OutOfMemoryError(ConfigurationError):
    """The step needs more memory than the chip has."""


def estimate(composition: Composition, topology: str, *, timing: bool = False, limit_s: float = 3600) -> Estimate:
    """Compiles a composed experiment's training step, at its real size, for chips that need not be there.

    Without `timing` the compiler is ended as soon as it has planned the memory, which takes seconds; generating code
    takes minutes more.

    Args:
      composition: The experiment.
      topology: Such as "v6e:2x4".
      timing: Whether to let it finish, for its cycle estimates.
      limit_s: Seconds after which the compiler is given up.

    Raises:
      ConfigurationError: libtpu is missing, does not know the topology, or the experiment cannot be compiled for it.
      OutOfMemoryError: The compiler gave up before it had a plan.
    """
    chip = chip_of(topology) if timing else None
    compiler = compiler_version()
    with tempfile.TemporaryDirectory(prefix="recogdrive-compile-") as name:
        folder = Path(name)
        (folder / "config.gin").write_text(composition.text, encoding="utf-8")
        request = folder / "request.json"
        request.write_text(json.dumps({"config": str(folder / "config.gin"), "topology": topology}), encoding="utf-8")
        with _worker(request) as process:
            _wait(process, folder, timing, limit_s, topology)
        shapes = json.loads((folder / worker.SHAPES_FILE).read_text())
        total = _total_bytes(_dumped(folder, "after_optimizations-memory-usage-report.txt"))
        kind = "after_codegen.txt" if timing else "after_optimizations.txt"
        program = read_program(_dumped(folder, kind).read_text(), shapes["dynamic_trips"])
    arguments = shapes["argument_bytes"]
    return Estimate(
        experiment=composition.name,
        topology=topology,
        compiler=compiler,
        version=__version__,
        chips=shapes["devices"],
        mesh=shapes["mesh"],
        rows=shapes["rows"],
        accumulation_steps=shapes["accumulation_steps"],
        hbm_bytes={**arguments, "temporaries": total - sum(arguments.values())},
        total_bytes=total,
        waiting_bytes=shapes["waiting_bytes"],
        limit_bytes=shapes["limit_bytes"],
        flops=shapes["flops"],
        sent_bytes=program.sent_bytes(),
        result_bytes=program.result_bytes(),
        largest=[_shown(c) for c in sorted(program.collectives, key=lambda c: -c.sent_bytes)[:_LARGEST]],
        windowed_einsums=program.windowed_einsums,
        timing=None if chip is None else timing_of(program, chip, shapes["flops"] / shapes["devices"]),
    )


def render(found: Estimate) -> str:
    """The figures as a person reads them."""
    lines = [
        f"# {found.experiment} on {found.topology}: compiler estimate ({found.compiler}), no chip was used",
        "",
        f"{found.chips} chips as {' x '.join(f'{n} {axis}' for axis, n in found.mesh.items())}, {found.rows} rows an "
        f"update in {found.accumulation_steps} micro-batches",
        "",
        "HBM per chip",
        *(f"  {name:<16} {size / GIB:8.2f} GiB" for name, size in found.hbm_bytes.items()),
        f"  {'total':<16} {found.total_bytes / GIB:8.2f} GiB of {found.limit_bytes / GIB:.2f}: "
        + ("it fits" if found.fits else "IT DOES NOT FIT"),
        f"  {'waiting batches':<16} {found.waiting_bytes / GIB:8.2f} GiB besides",
        "",
        "Collectives, sent by each chip in a step",
        *(f"  {kind:<18} {size / 1e9:8.3f} GB" for kind, size in found.sent_bytes.items()),
        f"  {'total':<18} {sum(found.sent_bytes.values()) / 1e9:8.3f} GB",
        "",
        "largest: " + _largest(found.largest),
        "",
        f"model: {found.flops / found.chips / 1e12:.2f} TFLOP a chip and step",
    ]
    if found.timing is not None:
        timing = found.timing
        lines += [
            f"step: {timing.step_s[0]:.3f} to {timing.step_s[1]:.3f} s (computation {timing.compute_s:.3f}, kernels, "
            f"assumed, {timing.kernels_s:.3f}, copies {timing.copies_s:.3f}, collectives {timing.collectives_s:.3f})",
            f"MFU: {timing.mfu[0]:.1%} to {timing.mfu[1]:.1%}",
            "",
            "Most cycles",
            *(f"  {seconds * 1e3:8.2f} ms  {name}" for name, seconds in timing.hottest.items()),
        ]
    return "\n".join(lines)


def _largest(collectives: list[dict[str, Any]]) -> str:
    shown = [f"{c['kind']} {c['shapes'][:40]} x {c['times']} ({c['sent_bytes'] / 1e9:.2f} GB)" for c in collectives[:3]]
    return ", ".join(shown) or "none"


def compiler_environment() -> dict[str, str]:
    """What a process that compiles for a TPU that is not here needs in its environment."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # A program from a cache would not be explained.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
        "TPU_SKIP_MDS_QUERY": "1",
    }
    environment.pop("XLA_FLAGS", None)  # The TPU compiler would take them for its own.
    return environment


@contextlib.contextmanager
def _worker(request: Path) -> Iterator[subprocess.Popen]:
    """The compiling process, which is ended at the end."""
    log = (request.parent / "log.txt").open("wb")
    command = [sys.executable, "-m", "recogdrive.ahead_of_time.worker", str(request)]
    process = subprocess.Popen(command, env=compiler_environment(), stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def _wait(process: subprocess.Popen, folder: Path, timing: bool, limit_s: float, topology: str) -> None:
    """Returns once everything that is read from the folder is there."""
    end = monotonic() + limit_s
    while monotonic() < end:
        finished = process.poll() is not None
        if (folder / worker.FAILURE_FILE).exists():
            failure = json.loads((folder / worker.FAILURE_FILE).read_text())
            if not failure.get("out_of_memory"):
                logging.debug("%s", failure["traceback"])  # Shown with --verbosity=1; the message is for users.
                raise ConfigurationError(f"--compile_for={topology}: {failure['message']}")
            if not _is_planned(folder):
                needed = re.search(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", failure["message"])
                why = f"needs {needed[1]} GiB of {needed[2]}" if needed else failure["message"]
                raise OutOfMemoryError(f"--compile_for={topology}: it does not fit, {why}")
            return
        if (folder / worker.DONE_FILE).exists() or (not timing and _is_planned(folder)):
            return
        if finished:
            log = (folder / "log.txt").read_text(errors="replace")
            raise RuntimeError(f"the compiling process ended with code {process.returncode}:\n{log[-4000:]}")
        sleep(_POLL_S)
    raise ConfigurationError(f"--compile_for={topology}: the compiler was not done after {limit_s:.0f} s.")


def _is_planned(folder: Path) -> bool:
    """Whether memory is planned and everything about it written: the copy of the program behind it comes last."""
    with contextlib.suppress(FileNotFoundError):
        text = _dumped(folder, "after_optimizations_after_buffer_assignment.txt").read_text()
        return text.rstrip().endswith("}")
    return False


def _dumped(folder: Path, kind: str) -> Path:
    found = sorted((folder / worker.DUMP_FOLDER).glob(f"{_STEP}.{kind}"), key=lambda path: path.stat().st_size)
    if not found:
        raise FileNotFoundError(f"the compiler left no {kind}")
    return found[-1]


def _total_bytes(report: Path) -> int:
    found = re.search(r"Total bytes: (\d+)", report.read_text())
    if found is None:
        raise RuntimeError(f"{report.name} names no total; this version of libtpu writes another report.")
    return int(found.group(1))


def _shown(collective: Collective) -> dict[str, Any]:
    return {
        "kind": collective.kind,
        "shapes": collective.shapes[:120],
        "times": collective.times,
        "loops": collective.loops,
        "sent_bytes": collective.sent_bytes,
    }


def timing_of(program: Program, chip: Chip, model_flops: float) -> Timing:
    """How long a program takes on a chip.

    Args:
      program: One step.
      chip: What runs it.
      model_flops: The model's operations of a step on that chip.
    """
    compute = program.cycles / chip.clock_hz
    kernels = sum(
        flops / (KERNEL_EFFICIENCY.get(name, ASSUMED_EFFICIENCY) * chip.flops)
        for name, flops in program.kernel_flops.items()
    )
    copies = program.copied_bytes / chip.hbm_bytes_per_s
    collectives = sum(program.sent_bytes().values()) / chip.link_bytes_per_s
    shortest = max(compute + kernels, collectives)
    longest = compute + kernels + copies + collectives
    hottest = {name: cycles / chip.clock_hz for name, cycles in program.cycles_by_operation.most_common(12)}
    ideal = model_flops / chip.flops
    return Timing(
        compute, kernels, copies, collectives, (shortest, longest), (ideal / longest, ideal / shortest), hottest
    )


def save(found: Estimate, workdir: Path) -> Path:
    """Writes an estimate into a folder; returns the file."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / f"compile_{re.sub(r'[^a-z0-9]+', '_', found.topology)}.json"
    path.write_text(found.to_json() + "\n", encoding="utf-8")
    return path
