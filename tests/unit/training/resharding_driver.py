"""Run with four virtual devices: trains on some of them, continues on another number, prints the losses."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np

from recogdrive.training.loop import Trainer
from recogdrive.training.sharding import DataParallel

spec = importlib.util.spec_from_file_location("shared_parts", Path(__file__).with_name("conftest.py"))
parts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parts)


def train(workdir, devices, steps):
    trainer = Trainer(
        steps, sharding=DataParallel(devices), accumulation_steps=2, ema_decay=0.9, log_every=1, save_every=100
    )
    state = trainer.fit(parts.Linear(), parts.Counted(), workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return state, [line["loss"] for line in lines]


def shared_buffers():
    """How many buffers two states have in common that were made of the same weights on one device."""
    weights = {"bias": jax.device_put(np.ones((8, 8), np.float32), jax.devices()[0])}
    states = [weights, *(sharding.put_state(weights) for sharding in (DataParallel(), DataParallel(), DataParallel(1)))]
    pointers = [shard.data.unsafe_buffer_pointer() for s in states for shard in s["bias"].addressable_shards]
    return len(pointers) - len(set(pointers))


def main(folder):
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    straight = train(folder / "straight", 1, 5)[1]
    answer = {"straight": straight, "next_loss": {}, "devices_of_restored_state": {}}
    for before, after in ((1, 2), (1, 4), (2, 1), (4, 1)):
        workdir = folder / f"from_{before}_to_{after}"
        train(workdir, before, 2)
        state, losses = train(workdir, after, 3)
        answer["next_loss"][f"{before}->{after}"] = losses[2]
        answer["devices_of_restored_state"][str(after)] = len(state.params["bias"].sharding.device_set)
    for steps, devices in ((1, 1), (2, 2), (3, 4), (4, 2), (5, 1)):
        answer["round_trip"] = train(folder / "round_trip", devices, steps)[1]
    answer["shared_buffers"] = shared_buffers()
    print(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
