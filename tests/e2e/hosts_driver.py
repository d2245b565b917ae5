"""One process of several that train a small net: `python hosts_driver.py WORKDIR ADDRESS COUNT NUMBER STEP_S [FAULT]`.

The training loop, its checkpoints and its data are those of every experiment; without experiments and their models it
starts in seconds. STEP_S slows samples down. FAULT "error" has process 1 fail with an error of its own in step 5.
"""

import os
import sys
import time
from pathlib import Path

from recogdrive.hosts.settings import detect
from recogdrive.hosts.supervisor import MEMBER_VARIABLE, supervise

STEPS, BATCH_SIZE = 8, 8


def work():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from recogdrive.data.batching import BatchStream
    from recogdrive.hosts import member
    from recogdrive.training.loop import Trainer
    from recogdrive.training.preemption import PREEMPTED_EXIT_CODE, Preempted
    from recogdrive.training.sharding import FullySharded

    class Net:
        def init(self, key):
            return {"first": jax.random.normal(key, (8, 64)) / 3, "last": jax.random.normal(key, (64, 8)) / 8}

        def loss(self, params, batch, key):
            noise = jax.random.normal(key, batch["x"].shape)
            error = jnp.tanh((batch["x"] + noise) @ params["first"]) @ params["last"] - noise
            return jnp.mean(error**2), {}

    class Samples:
        def __len__(self):
            return 20

        def __getitem__(self, index):
            time.sleep(float(sys.argv[5]) * jax.process_count() / BATCH_SIZE)
            if (
                sys.argv[6:] == ["error"]
                and jax.process_index() == 1
                and (Path(sys.argv[1]) / "checkpoints/4").exists()
            ):
                raise ValueError("log 17 is damaged")
            return {"x": np.random.default_rng(index).normal(size=8).astype(np.float32)}

    stream = BatchStream(
        Samples(), batch_size=BATCH_SIZE, seed=3, process_index=jax.process_index(), process_count=jax.process_count()
    )
    trainer = Trainer(STEPS, sharding=FullySharded(min_size=64), save_every=2, log_every=1)
    try:
        member.require_shared(Path(sys.argv[1]))
        trainer.fit(Net(), stream, sys.argv[1], lambda params, step: {"size": member.on_lead(lambda: 1.0)})
    except Preempted:
        return PREEMPTED_EXIT_CODE
    return 0


def main():
    if MEMBER_VARIABLE in os.environ:
        from recogdrive.hosts import member

        return member.run(work)
    folder, address, count, number = sys.argv[1:5]
    Path(folder).mkdir(parents=True, exist_ok=True)
    flags = {"coordinator_address": address, "num_processes": count, "process_id": number}
    command = [sys.executable, *sys.argv]
    return supervise(detect(flags, {}), command, print, [*sys.argv[1:2], *sys.argv[3:4]])


if __name__ == "__main__":
    sys.exit(main())
