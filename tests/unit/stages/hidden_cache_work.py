"""A cache stage that costs nothing to run, here and in a process that gets killed."""

import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from recogdrive.data.splits import PlanningSplits
from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.stages.cache_hidden_states import CacheHiddenStates

TOKENS, WIDTH = 10, 16


class Prompts:
    """Numbers made of a scene's token in place of a prompt; scenes of the list fail."""

    num_tokens, tiles_per_scene = TOKENS, 1

    def __init__(self, broken=(), delay_s=0.0):
        self.broken, self.delay_s = set(broken), delay_s
        self.made = []

    def with_tokenizer_of(self, weights):
        return self

    def inputs(self, scene):
        time.sleep(self.delay_s)
        if scene.token in self.broken:
            raise ValueError(f"Scene {scene.token}: its picture is missing")
        self.made.append(scene.token)
        number = int(scene.token, 16)
        first = number % 4
        segments = np.zeros(TOKENS, np.int32)
        segments[first:] = 1
        ids = np.where(segments == 1, number % 1000 + np.arange(TOKENS), 0).astype(np.int32)
        return {"input_ids": ids, "segment_ids": segments}


class Encoder:
    """States that are sines of the ids; those of scenes whose first id is in `infinite` are not finite."""

    width, rows_at_once = WIDTH, 1

    def __init__(self, weights="abc", infinite=()):
        self.weights, self.infinite = weights, tuple(infinite)
        self.batches = []

    def context_fields(self, weights, prompts, storage):
        return {"weights": weights, "prompt": "numbers", "storage": str(storage)}

    def load(self, folder):
        return {"scale": np.float32(3)}, self.weights

    def check(self, prompts):
        pass

    def flops(self, num_tokens, tiles):
        return 2e12

    def encode(self, params, batch):
        self.batches.append(batch["input_ids"].shape)
        ids = batch["input_ids"].astype(jnp.float32)[..., None]
        states = jnp.sin(params["scale"] * ids + jnp.arange(WIDTH))
        for number in self.infinite:
            states = jnp.where((batch["input_ids"][:, -1] == number)[:, None, None], jnp.inf, states)
        return states.astype(jnp.bfloat16)


def town(seed, scenes):
    return lambda: SyntheticTown(num_scenes=scenes, seed=seed, name=f"town_{seed}")


def splits(train=5, val=3):
    return PlanningSplits(train=town(1, train), evaluate=[("val", town(2, val))])


class Folder:
    """Stands for a `RunFolder`."""

    def __init__(self, path):
        self.path, self.facts = Path(path), {}

    def update(self, **facts):
        self.facts |= facts


def stage(prompts=None, encoder=None, **options):
    given = {"samples_per_shard": 3, "batch_size": 2, "num_threads": 2}
    return CacheHiddenStates(splits(), prompts or Prompts(), encoder or Encoder(), **{**given, **options})


if __name__ == "__main__":
    stage(Prompts(delay_s=0.2), num_threads=1).run(Folder(sys.argv[1]), Path(sys.argv[1]))
