"""Run with two virtual devices: a host reward in a worker process, which is killed once; prints what came of it."""

import json
import math
import os
import signal

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from recogdrive.pdm.rewards.host import HostReward

KILLED = 1000.0


def record_of(index):
    return float(index)


def last_x(record, trajectories):
    if trajectories[0, 0, 0] == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    return trajectories[:, -1, 0] + record, {"process": np.full(len(trajectories), os.getpid() % 2**20)}


def main():
    reward = HostReward(last_x, ["process"], workers=1)
    reward.attach(record_of)
    spec = P("data")

    def score(batch, trajectories):
        return reward.collect(reward.submit(batch, trajectories), trajectories)

    step = jax.jit(
        jax.shard_map(
            score, mesh=Mesh(np.array(jax.devices()), ("data",)), in_specs=spec, out_specs=spec, check_vma=False
        )
    )
    batch = {"index": np.arange(1, 5)}
    trajectories = np.zeros((4, 2, 8, 3), np.float32)
    trajectories[:, :, -1, 0] = [10.0, 11.0]
    deadly = trajectories.copy()
    deadly[:, 0, 0, 0] = KILLED
    found, killed, afterwards = (
        jax.block_until_ready(step(batch, plans)) for plans in (trajectories, deadly, trajectories)
    )
    refusal = ""
    thread = HostReward(last_x, ["process"])
    thread.attach(record_of)
    try:
        thread.submit(batch, trajectories)
    except ValueError as error:
        refusal = str(error)
    answer = {
        "devices": len({shard.device for shard in found.total.addressable_shards}),
        "totals": found.total.tolist(),
        "totals_when_killed": [[None if math.isnan(v) else v for v in row] for row in killed.total.tolist()],
        "totals_afterwards": afterwards.total.tolist(),
        "processes": len(set(np.unique(found.parts["process"]))),
        "refusal_of_a_thread": refusal,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
