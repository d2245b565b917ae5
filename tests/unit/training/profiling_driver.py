"""Trains a few steps with a trace, in a process of its own: JAX's profiler is one a process."""

import importlib.util
import json
import sys
from pathlib import Path

from jax.profiler import ProfileData

from recogdrive.training.loop import Trainer
from recogdrive.training.preemption import Preempted, PreemptionGuard
from recogdrive.training.profiling import StepRange, traces, tracing
from recogdrive.training.sharding import DataParallel

spec = importlib.util.spec_from_file_location("shared_parts", Path(__file__).with_name("conftest.py"))
parts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parts)


def train(workdir):
    # Evaluates and saves at step 4, within the trace.
    trainer = Trainer(9, sharding=DataParallel(1), log_every=2, eval_every=4, save_every=4)
    trainer.fit(parts.Linear(), parts.Counted(), workdir, evaluate=lambda params, step: {"score": 1.0})


def events(folder):
    """Of the host: numbers of the steps, and how often each other phase occurs."""
    (file,) = folder.glob("*.xplane.pb")
    found = {"steps": [], "phases": {}}
    for plane in ProfileData.from_file(str(file)).planes:
        for event in (event for line in plane.lines for event in line.events):
            if event.name == "train":
                found["steps"].append(dict(event.stats)["step_num"])
            elif event.name in ("input_wait", "evaluation", "checkpoint"):
                found["phases"][event.name] = found["phases"].get(event.name, 0) + 1
    return found


def main(workdir):
    requested = PreemptionGuard.requested
    PreemptionGuard.requested = lambda self, step: step == 5
    try:
        with tracing(StepRange(4, 8)):
            train(workdir)
    except Preempted:
        PreemptionGuard.requested = requested
    with tracing(StepRange(4, 8)):
        train(workdir)
    print(json.dumps({folder.name: events(folder) for folder in traces(workdir / "tensorboard")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
