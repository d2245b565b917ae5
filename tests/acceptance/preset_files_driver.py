"""Run with eight virtual devices: builds an experiment with each file of `gin/runtime/` and trains one step of it.

`python preset_files_driver.py FOLDER EXPERIMENT FILES [BINDING ...]` with the files' names joined by commas prints, for
each of them, the mesh and the loss. The batch has ones in it, as data is not what is looked at.
"""

import json
import sys
from pathlib import Path

import numpy as np

from recogdrive.composition import compose
from recogdrive.experiment import find_experiment
from recogdrive.stages import base


class Ones:
    """The same batch for ever."""

    def __init__(self, shapes):
        self.batch = {name: np.ones(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
        self.batch_size = self.samples_per_epoch = len(next(iter(self.batch.values())))

    def __iter__(self):
        return self

    def __next__(self):
        return self.batch

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def main(folder, experiment, files, bindings):
    answer = {}
    for name in files:
        compose(find_experiment(experiment), [f"gin/runtime/{name}.gin"], bindings)
        stage, _ = base.build()
        step = stage.step_shapes()
        step.trainer.best_metric = None  # Nothing is evaluated.
        step.trainer.fit(step.objective, Ones(step.batch), folder / name)
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        answer[name] = {
            "mesh": dict(step.trainer.sharding.mesh.shape),
            "losses": [json.loads(x)["loss"] for x in lines],
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(","), sys.argv[4:])
