"""Runs small training runs on command, each in its own process, and kills them when told to.

`python kill_resume_driver.py` imports everything once, then reads one JSON request a line from standard input, forks a
child for it (which starts JAX by itself, the parent never does), and answers with one JSON line. A request:

  workdir: run folder.
  objective: "mlp", "planner", "grpo" or "vlm"; steps: length of the run.
  signal: what to send, 9 or 15; absent to let the run end by itself.
  event, count, delay_s: the signal goes out `delay_s` after the child reported its `count`-th "start", "batch", "save",
    "seal" or "log". The child reports through a pipe and goes on without waiting, so the signal hits wherever it is.

The answer: `exit` (status, or minus the signal that ended it), `sent` (whether the signal was sent).
"""

import json
import os
import select
import signal
import sys
import time
import traceback
import zlib
from collections import Counter
from pathlib import Path

import grain  # noqa: F401 - Imported before forking, like everything the child needs.
import jax
import jax.numpy as jnp
import numpy as np
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401

from recogdrive.data.batching import BatchStream
from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.data.vlm.cameras import TownCamera
from recogdrive.data.vlm.driving_prompt import DrivingPrompt
from recogdrive.data.vlm.fine_tuning_data import FineTuningData, TownTokenizer
from recogdrive.data.vlm.layouts import PackedRows
from recogdrive.data.vlm.scene_conversations import SceneConversations
from recogdrive.data.vlm.tiling import Tiling
from recogdrive.models.planner.planner import DiffusionPlanner
from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.models.vlm.lora import Lora
from recogdrive.models.vlm.trainable import TrainableSet
from recogdrive.pdm.rewards.reward import DeviceReward, RewardScores, where_known
from recogdrive.training import checkpoint, loop, manifest, metrics_file
from recogdrive.training.fine_tuning import FineTuning
from recogdrive.training.grpo import REFERENCE_PREFIX, DiffGrpoObjective, GrpoSettings
from recogdrive.training.optim import AdamW, WarmupCosine
from recogdrive.training.saved import has_checkpoint
from recogdrive.training.state import to_stored

SAVE_EVERY, LOG_EVERY, EVAL_EVERY = 4, 3, 10
"""Out of step with each other, so that windows are open when checkpoints are saved."""
WIDTH = 128


class Mlp:
    """Noise-regression net, heavy enough that a signal can land inside a step."""

    def init(self, key):
        keys = jax.random.split(key, 3)
        return {
            "first": jax.random.normal(keys[0], (8, WIDTH)) / 3,
            "layers": jax.random.normal(keys[1], (6, WIDTH, WIDTH)) / WIDTH**0.5,
            "last": jax.random.normal(keys[2], (WIDTH, 8)) / WIDTH**0.5,
        }

    def loss(self, params, batch, key):
        noise = jax.random.normal(key, batch["x"].shape)
        hidden, _ = jax.lax.scan(
            lambda h, w: (h + jnp.tanh(h @ w), None), (batch["x"] + noise) @ params["first"], params["layers"]
        )
        error = hidden @ params["last"] - noise
        return jnp.mean(error**2), {"noise_mean": noise.mean()}


class Samples:
    """Sample i is a function of i alone, in the planner's and the net's terms."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return {
            "x": rng.normal(size=8).astype(np.float32),
            "context": rng.normal(size=(5, 6)).astype(np.float32),
            "context_mask": np.ones(5, bool),
            "history_trajectory": rng.normal(size=(4, 3)).astype(np.float32),
            "status_feature": rng.normal(size=8).astype(np.float32),
            "trajectory": rng.normal(size=(8, 3)).astype(np.float32),
            "index": np.int32(index),
            "reward/known": np.bool_(index % 7 != 0),
        }


class EndReward(DeviceReward):
    """Ends further ahead are worth more; some scenes have no reward, and in some all are worth the same."""

    def __call__(self, batch, trajectories):
        ahead = jnp.where(batch["index"][:, None] % 5 == 0, 1.0, trajectories[..., -1, 0])
        return RewardScores(where_known(batch["reward/known"], ahead), {"ahead": ahead})


def make_objective(name):
    if name == "mlp":
        return Mlp()
    if name in ("planner", "grpo"):
        planner = DiffusionPlanner(context_width=6, heads=2, head_dim=4, layers=2, output_dim=8, hidden_dim=8)
        if name == "planner":
            return planner
        return DiffGrpoObjective(planner, EndReward(), GrpoSettings(group_size=3))
    config = VlmConfig(
        vision=VisionConfig(width=16, layers=2, heads=2, mlp_width=24, image_size=28),
        language=LanguageConfig(width=16, layers=2, heads=2, kv_heads=1, mlp_width=24, vocab_size=768),
    )
    # Everything that draws: stochastic depth and the adapters' dropout; and weights that are in no checkpoint.
    vlm = InternVL(config, img_context_id=5, remat="dots", drop_path_rate=0.2, loss_chunk=32, lora=Lora(2, dropout=0.2))
    return FineTuning(vlm, TrainableSet(freeze_mlp=True))


def make_stream(name, workdir):
    if name != "vlm":
        return BatchStream(Samples(), batch_size=16, seed=3)
    conversations = SceneConversations(SyntheticTown(num_scenes=5), DrivingPrompt("town"), TownCamera(64, 36))
    data = FineTuningData(
        lambda: conversations,
        TownTokenizer(conversations, vocab_size=768),
        Tiling(28, dynamic=False),
        PackedRows(256, 3),
        max_seq_length=160,
    )
    samples, survey = data.samples(conversations, data.tokenizer.open(None), 1, 3, workdir / "data")
    return data.stream(samples, survey, batch_size=2, seed=3, process_index=0, process_count=1)


@jax.jit
def squared_norm(params):
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))


def weight_norm(params, step):
    del step
    return {"weight_norm": float(squared_norm(params))}


def report_events(pipe):
    """Reports the moments a signal can be tied to; what the library does at them is unchanged."""

    def reporting(function, event):
        def wrapped(*args, **kwargs):
            os.write(pipe, event)
            return function(*args, **kwargs)

        return wrapped

    loop.DevicePrefetch.take = reporting(loop.DevicePrefetch.take, b"b")
    checkpoint.Checkpoints.save = reporting(checkpoint.Checkpoints.save, b"s")
    manifest.seal = reporting(manifest.seal, b"e")
    metrics_file.MetricsFile.write = reporting(metrics_file.MetricsFile.write, b"l")
    os.write(pipe, b"t")


def record_order(workdir):
    """Writes which samples every executed step used, one line a step, replayed ones again."""
    make = loop.make_train_step
    file = (workdir / "order.jsonl").open("a")

    def make_recording(*args, **kwargs):
        train_step = make(*args, **kwargs)

        def recording(state, batch, frozen):
            step, indices = int(state.step), samples_of(batch)
            os.write(file.fileno(), (json.dumps([step, indices]) + "\n").encode())
            return train_step(state, batch, frozen)

        return recording

    loop.make_train_step = make_recording


def samples_of(batch):
    """Something that tells the rows of a batch apart."""
    if "index" in batch:
        return np.asarray(batch["index"]).tolist()
    return [zlib.crc32(row.tobytes()) for row in np.asarray(batch["input_ids"])]


def train(request, pipe):
    jax.config.update("jax_compilation_cache_dir", str(Path(request["workdir"]).parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    workdir = Path(request["workdir"])
    workdir.mkdir(parents=True, exist_ok=True)
    report_events(pipe)
    record_order(workdir)
    trainer = loop.Trainer(
        request["steps"],
        optimizer=AdamW(WarmupCosine(learning_rate=1e-3, warmup_epochs=2, epochs=30)),
        accumulation_steps=2 if request["objective"] == "mlp" else 1,
        ema_decay=0.9,
        seed=7,
        log_every=LOG_EVERY,
        eval_every=EVAL_EVERY,
        save_every=SAVE_EVERY,
        best_metric="weight_norm",
        best_mode="max",
    )
    objective, stream = make_objective(request["objective"]), make_stream(request["objective"], workdir)
    frozen = None
    if isinstance(objective, FineTuning):
        frozen = objective.init_frozen(jax.random.key(1))
    kept = None
    if isinstance(objective, DiffGrpoObjective) and not has_checkpoint(workdir):
        kept = {REFERENCE_PREFIX + name: value for name, value in objective.init(jax.random.key(1)).items()}
    elif isinstance(objective, DiffGrpoObjective):  # Then only the checkpoint knows the reference policy.
        shapes = jax.eval_shape(objective.init, jax.random.key(1))
        kept = {REFERENCE_PREFIX + name: shape for name, shape in shapes.items()}
    state = trainer.fit(objective, stream, workdir, evaluate=weight_norm, frozen=frozen, kept=kept)
    paths, _ = jax.tree_util.tree_flatten_with_path(to_stored(state))
    np.savez(workdir / "final.npz", **{jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in paths})


def child(request, pipe):
    status = 1
    try:
        train(request, pipe)
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


EVENTS = {"start": "t", "batch": "b", "save": "s", "seal": "e", "log": "l"}


def serve(request):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        child(request, writer)
    os.close(writer)
    seen, sent = Counter(), False
    while True:
        ready, _, _ = select.select([reader], [], [], 120)
        events = os.read(reader, 1) if ready else b""
        if not events:
            break
        seen.update(events.decode())
        if "signal" in request and not sent and seen[EVENTS[request["event"]]] == request["count"]:
            time.sleep(request["delay_s"])
            os.kill(pid, request["signal"])
            sent = True
    if not sent and "signal" in request and not ready:
        os.kill(pid, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    return {"exit": os.waitstatus_to_exitcode(status), "sent": sent}


def main():
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
