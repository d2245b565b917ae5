"""The process that compiles: builds the experiment for a topology's devices and hands its step to the compiler.

Run as `python -m recogdrive.ahead_of_time.worker REQUEST.json`; whoever starts it may end it once it has seen enough.
"""

import contextlib
import json
import os
import sys
import traceback
from pathlib import Path

from recogdrive.experiment import ConfigurationError
from recogdrive.run_folder import write_text

SHAPES_FILE, DONE_FILE, FAILURE_FILE = "shapes.json", "done.json", "failure.json"
DUMP_FOLDER = "dump"


def main(request_file: str) -> None:
    """Compiles what a request names; leaves `SHAPES_FILE` before, `DONE_FILE` after, or `FAILURE_FILE`.

    Args:
      request_file: JSON with `config` (file of gin statements) and `topology`; answers go beside it.
    """
    folder = Path(request_file).parent
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    try:
        _compile(request["config"], request["topology"], folder)
    except (ConfigurationError, ValueError, NotImplementedError) as error:
        _answer(folder / FAILURE_FILE, {"message": str(error), "traceback": traceback.format_exc()})
        sys.exit(1)


def _compile(config: str, topology: str, folder: Path) -> None:
    from recogdrive.ahead_of_time.chips import memory_limit, open_topology
    from recogdrive.ahead_of_time.flops import count_flops
    from recogdrive.composition import compose
    from recogdrive.stages import base
    from recogdrive.target import targeting
    from recogdrive.training.abstract_step import AbstractStep

    devices = open_topology(topology)
    with contextlib.ExitStack() as stack:
        stack.enter_context(targeting(devices))
        compose(None, [config], [])
        stage, _ = base.build()
        if not hasattr(stage, "step_shapes"):
            raise ConfigurationError(f"{type(stage).__name__} trains nothing, so there is no step to compile.")
        shapes = stage.step_shapes()
        step = AbstractStep(shapes)
        traced = step.step.trace(step.state, step.batch, step.frozen)
        flops = shapes.flops
        _answer(
            folder / SHAPES_FILE,
            {
                "argument_bytes": step.argument_bytes(),
                "waiting_bytes": step.waiting_bytes(),
                "limit_bytes": memory_limit(devices[0]),
                "devices": step.sharding.mesh.size,
                "mesh": dict(step.sharding.mesh.shape),
                "rows": shapes.rows,
                "accumulation_steps": shapes.trainer.accumulation_steps,
                "flops": count_flops(traced.jaxpr) if flops is None else flops,
                "dynamic_trips": shapes.dynamic_trips,
            },
        )
        options = {"xla_dump_to": str(folder / DUMP_FOLDER), "xla_dump_hlo_as_text": True}
        try:
            traced.lower().compile(compiler_options=options)
        except Exception as error:  # The compiler's refusals are of no type of their own.
            if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
                raise
            _answer(folder / FAILURE_FILE, {"message": str(error).splitlines()[0], "out_of_memory": True})
            return
        _answer(folder / DONE_FILE, {})  # What there is to know is in the dump.


def _answer(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)  # Unloading the compiler may wait for threads that have nothing left to do.
