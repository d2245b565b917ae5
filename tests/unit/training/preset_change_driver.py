"""Run with eight virtual devices: a run of four, all split (FSDP), is continued under every other placement.

`python preset_change_driver.py FOLDER OBJECTIVE [PRESET ...]` prints what became of it: whether the restored state is
the saved one bit for bit, on how many devices it lies, how much of the largest tensor one of them holds, and the losses
that follow. All presets unless some are named.
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from recogdrive.models.planner.planner import DiffusionPlanner
from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.training.fine_tuning import FineTuning
from recogdrive.training.loop import Trainer
from recogdrive.training.optim import AdamW, Constant
from recogdrive.training.sharding import DataParallel, FullySharded
from recogdrive.training.state import to_stored

PRESETS = {
    **{f"data_{n}": lambda n=n: DataParallel(n) for n in (1, 2, 4, 8)},
    **{f"split_{n}": lambda n=n: FullySharded(n, min_size=64) for n in (1, 2, 4, 8)},
    **{f"split_{n}_replicas_2": lambda n=n: FullySharded(n, min_size=64, replicas=2) for n in (2, 4, 8)},
    **{f"split_{n}_model_2": lambda n=n: FullySharded(n, min_size=64, model_devices=2) for n in (2, 4, 8)},
    "split_8_replicas_2_model_2": lambda: FullySharded(8, min_size=64, replicas=2, model_devices=2),
}
WRITTEN_BY = "split_4"
SAVED, END, ROWS = 2, 4, 16


class Layers:
    """Residual layers under names that the table of the language model has lines for: compiles at once."""

    def init(self, key):
        up, down = jax.random.normal(key, (2, 2, 32, 16)) / 8
        return {
            "language_model.layers.*.mlp.gate_proj.weight": up,
            "language_model.layers.*.mlp.down_proj.weight": down.swapaxes(1, 2),
            "bias": jnp.zeros(16),
        }

    def loss(self, params, batch, key):
        def layer(hidden, weights):
            up, down = weights
            return hidden + jnp.tanh(hidden @ up.T) @ down.T, None

        up, down = (params[f"language_model.layers.*.mlp.{name}_proj.weight"] for name in ("gate", "down"))
        noise = 0.1 * jax.random.normal(key, batch["x"].shape)
        hidden, _ = jax.lax.scan(layer, batch["x"] + noise, (up, down))
        return jnp.mean((hidden + params["bias"] - batch["y"]) ** 2), {"noise_mean": noise.mean()}


def layers_rows(rng):
    x = rng.normal(size=(ROWS, 16)).astype(np.float32)
    return {"x": x, "y": x[:, ::-1].copy()}


def planner():
    return DiffusionPlanner(context_width=8, heads=2, head_dim=8, layers=2, output_dim=16, hidden_dim=16)


def vlm():
    config = VlmConfig(
        vision=VisionConfig(width=16, layers=2, heads=2, mlp_width=32, image_size=28),
        language=LanguageConfig(width=32, layers=2, heads=4, kv_heads=2, mlp_width=64, vocab_size=64),
    )
    return FineTuning(
        InternVL(config, img_context_id=5, compute_dtype="float32", attention="plain", remat="none", loss_chunk=16)
    )


class Rows:
    """An endless stream: batch n is a function of n alone."""

    batch_size, samples_per_epoch = ROWS, 64

    def __init__(self, make):
        self.make, self.next_batch = make, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.next_batch += 1
        return self.make(np.random.default_rng(self.next_batch))

    def get_state(self):
        return {"next_batch": self.next_batch}

    def set_state(self, state):
        self.next_batch = state["next_batch"]


def planner_rows(rng):
    return {
        "context": rng.normal(size=(ROWS, 5, 8)).astype(np.float32),
        "context_mask": np.ones((ROWS, 5), bool),
        "history_trajectory": rng.normal(size=(ROWS, 4, 3)).astype(np.float32),
        "status_feature": rng.normal(size=(ROWS, 8)).astype(np.float32),
        "trajectory": rng.normal(size=(ROWS, 8, 3)).astype(np.float32),
        "index": np.arange(ROWS, dtype=np.int32),
    }


def vlm_rows(rng):
    """Rows of twelve tokens, the first that of one tile of 28 pixels."""
    tokens = 12
    ids = rng.integers(6, 64, size=(ROWS, tokens)).astype(np.int32)
    ids[:, 0] = 5
    labels = np.where(np.arange(tokens) < 4, -100, ids).astype(np.int32)
    return {
        "input_ids": ids,
        "segment_ids": np.ones_like(ids),
        "position_ids": np.tile(np.arange(tokens, dtype=np.int32), (ROWS, 1)),
        "labels": labels,
        "loss_weight": np.where(labels == -100, 0.0, 1.0).astype(np.float32),
        "num_tiles": np.ones(ROWS, np.int32),
        "tiles": rng.integers(0, 256, size=(ROWS, 1, 28, 28, 3)).astype(np.uint8),
    }


OBJECTIVES = {"layers": (Layers, layers_rows), "planner": (planner, planner_rows), "vlm": (vlm, vlm_rows)}


def train(objective, workdir, preset, steps):
    make, rows = OBJECTIVES[objective]
    trainer = Trainer(
        steps,
        optimizer=AdamW(Constant(1e-3)),
        sharding=PRESETS[preset](),
        ema_decay=0.9,
        log_every=1,
        save_every=SAVED,
        keep_last=1,
    )
    return trainer.fit(make(), Rows(rows), workdir)


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def leaves(state):
    paths, _ = jax.tree_util.tree_flatten_with_path(to_stored(state))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def main(folder, objective, presets):
    written = leaves(train(objective, folder / "written", WRITTEN_BY, SAVED))
    expected = {name: np.asarray(leaf) for name, leaf in written.items()}
    shutil.copytree(folder / "written", folder / "straight")
    train(objective, folder / "straight", WRITTEN_BY, END)
    answer = {"straight": losses(folder / "straight"), "kinds": sorted({name.split("/")[0] for name in expected})}
    answer["presets"] = {}
    for preset in presets:
        workdir = folder / preset
        shutil.copytree(folder / "written", workdir)
        # All its steps are done, so this gives back what it restores.
        restored = leaves(train(objective, workdir, preset, SAVED))
        different = [n for n, leaf in restored.items() if np.asarray(leaf).tobytes() != expected[n].tobytes()]
        largest = max(restored.values(), key=lambda leaf: leaf.size)
        found = {
            "different": different,
            "missing": sorted(set(expected) ^ set(restored)),
            "devices": len(largest.sharding.device_set),
            "held": largest.addressable_shards[0].data.size / largest.size,
        }
        train(objective, workdir, preset, END)
        answer["presets"][preset] = found | {"losses": losses(workdir)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:] or list(PRESETS))
