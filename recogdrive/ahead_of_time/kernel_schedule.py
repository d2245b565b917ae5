"""How long the compiler's schedule of a kernel's instructions is: `python -m recogdrive.ahead_of_time.kernel_schedule`.

The compiler counts the cycles of a Pallas kernel only if asked for a profile of its schedule, which it cannot make of a
program with collectives. So each kernel of `KERNEL_EFFICIENCY` is compiled alone, at the sizes of a row of 13 tiles.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recogdrive.ahead_of_time.chips import chip_of, open_topology
from recogdrive.ahead_of_time.estimate import KERNEL_EFFICIENCY, compiler_environment
from recogdrive.models.vlm import tile_attention

TOPOLOGY = "v6e:2x2"
_TILES, _ROWS, _TOKENS, _WIDTH, _HEADS = 13, 1040, 1025, 1024, 16
_CYCLES = re.compile(r'estimated_cycles":"?(\d+)')


def measure(kernel: str) -> dict[str, float]:
    """Cycles of a kernel, and the part of the chip's peak that it reaches with the operations that it states.

    Args:
      kernel: One of `KERNEL_EFFICIENCY`.
    """
    with tempfile.TemporaryDirectory(prefix="recogdrive-kernel-") as folder:
        environment = compiler_environment() | {"LIBTPU_INIT_ARGS": f"--xla_jf_dump_static_llo_profile_to={folder}"}
        command = [sys.executable, "-m", __spec__.name, kernel, folder]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1200)
        if run.returncode:
            raise RuntimeError(f"{kernel} did not compile:\n{run.stderr[-2000:]}")
        return json.loads(run.stdout.splitlines()[-1])


def _compile(kernel: str, folder: str) -> None:
    function, shapes = _programs()[kernel]
    device = open_topology(TOPOLOGY)[0]
    placed = NamedSharding(Mesh(np.array([device]), ("chip",)), PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed) for x in shapes]
    options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    jax.jit(function).trace(*arguments).lower().compile(compiler_options=options)
    text = max(Path(folder).glob("*.after_codegen.txt"), key=lambda path: path.stat().st_size).read_text()
    (line,) = [line for line in text.splitlines() if re.search(rf"%{kernel}[.\d]* = ", line)]
    found = _CYCLES.search(line)
    if found is None:
        raise RuntimeError(f"this compiler gives no cycles for {kernel}")
    chip, cycles = chip_of(TOPOLOGY), int(found.group(1))
    flops = _stated_flops(function, arguments)
    answer = {
        "cycles": cycles,
        "seconds": cycles / chip.clock_hz,
        "of_peak": flops / chip.flops * chip.clock_hz / cycles,
    }
    sys.stdout.write(json.dumps(answer) + "\n")


def _programs() -> dict[str, tuple[Callable, list[jax.ShapeDtypeStruct]]]:
    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.bfloat16)

    projected, bias = shape(_TILES, _ROWS, 3 * _WIDTH), shape(3 * _WIDTH)
    out = shape(_TILES, _ROWS, _WIDTH)

    def forward(projected: jax.Array, bias: jax.Array) -> tuple:
        return tile_attention._attend_forward(_HEADS, _TOKENS, False, projected, bias)[1][2:]

    def backward(*kept: jax.Array) -> tuple:
        return tile_attention._attend_backward(_HEADS, _TOKENS, False, kept[:-1], kept[-1])

    totals = jax.eval_shape(forward, projected, bias)[1]
    return {
        "tile_attention_forward": (forward, [projected, bias]),
        "tile_attention_backward": (backward, [projected, bias, out, totals, out]),
    }


def _stated_flops(function: Callable, arguments: list[jax.ShapeDtypeStruct]) -> float:
    (call,) = [e for e in jax.make_jaxpr(function)(*arguments).eqns if e.primitive.name == "pallas_call"]
    return float(call.params["cost_estimate"].flops)


def main(argv: list[str]) -> None:
    """Measures all kernels; with a kernel and a folder, is the process that compiles it."""
    if len(argv) > 1:
        _compile(*argv[1:])
        return
    for kernel, expected in KERNEL_EFFICIENCY.items():
        found = measure(kernel)
        took = f"{found['cycles']:>9.0f} cycles, {found['seconds'] * 1e3:.3f} ms"
        sys.stdout.write(f"{kernel:<26} {took}, {found['of_peak']:.1%} of the peak ({expected:.0%} is assumed)\n")


if __name__ == "__main__":
    main(sys.argv)
    sys.stdout.flush()
    os._exit(0)  # Unloading the compiler may wait for threads that have nothing left to do.
