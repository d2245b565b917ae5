"""Measures storage of hidden states: bytes a scene, reading speed of a core, and what 8-bit integers cost the planner.

    python benchmarks/hidden_cache.py                   # made-up states, widths of InternVL3-2B and 8B
    python benchmarks/hidden_cache.py --cache runs/X    # those of a cache of our own

All layouts hold the same scenes and are written to files and read back in turn within every round, in one process on
one core; ratios are medians of per-round ratios of processor time, which other programs on the machine disturb less
than the clock. The reference layout is what ReCogDrive's code writes and reads:
`gzip` level 1 of a pickle of float32 torch tensors. Files come from the page cache, so no disk is measured.
"""

import argparse
import gzip
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCENES = 85_109
REAL_ROWS = 2790
TOKENS = 2800
WIDTHS = {"2B": 1536, "8B": 3584}
REFERENCE, RAW, LOSSLESS, INT8 = "reference (float32, gzip 1, pickle)", "bfloat16, raw", "lossless planes", "int8"


def main() -> None:
    """Prints the tables."""
    arguments = _parse()
    if not arguments.measure:
        # Libraries size their thread pools when they start, so that one core needs a process of its own.
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--measure"], check=True)
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _print_machine()
    if arguments.cache:
        _compare(f"{arguments.cache}", _cached(arguments.cache, arguments.scenes), arguments.rounds)
    else:
        for size, width in WIDTHS.items():
            _compare(f"made-up states, {size}", _made_up(width, arguments.scenes), arguments.rounds)
        _compare("states of a random VLM", _random_vlm(8 * arguments.scenes), arguments.rounds)
    if not arguments.no_planner:
        _planner_loss(arguments.steps)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scenes", type=int, default=3, help="scenes of a round")
    parser.add_argument("--steps", type=int, default=300, help="training steps of the planner that int8 is tried on")
    parser.add_argument("--cache", help="container, or run that wrote one, to take states from")
    parser.add_argument("--no_planner", action="store_true", help="leave the planner's loss out")
    parser.add_argument("--measure", action="store_true", help="measure in this process, on one core")
    return parser.parse_args()


def _print_machine() -> None:
    import torch
    import zstandard

    from recogdrive.pdm.machine import machine_stamp

    torch.set_num_threads(1)
    stamp = machine_stamp()
    print(f"{stamp['cpu']}, one core; NumPy {stamp['numpy']}, torch {torch.__version__}, zstd {zstandard.ZSTD_VERSION}")


def _made_up(width: int, scenes: int):
    """Normal values, log-normal scales of channels, three outlier channels (specification, B3)."""
    import ml_dtypes
    import numpy as np

    rng = np.random.default_rng(0)
    scale = np.exp(0.5 * rng.normal(size=width)).astype(np.float32)
    scale[[3, width // 3, width // 2]] *= 100
    for index in range(scenes):
        rows = (rng.standard_normal((TOKENS, width), np.float32) * scale).astype(ml_dtypes.bfloat16)
        rows[: TOKENS - REAL_ROWS] = rows[0]
        yield _states(index, rows, REAL_ROWS, rng)


def _states(index: int, rows, length: int, rng):
    import numpy as np

    from recogdrive.data.hidden_cache.record import HiddenStates

    history, status, target = (rng.standard_normal(shape, np.float32) for shape in ((4, 3), 8, (8, 3)))
    return HiddenStates(f"{index:016x}", "log", rows, length, history, status, target)


def _random_vlm(scenes: int):
    """Hidden states of a VLM with random weights, two layers of width 256, 690 of 700 tokens real."""
    import jax
    import numpy as np

    from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig
    from recogdrive.models.vlm.encoder import HiddenStateEncoder
    from recogdrive.models.vlm.internvl import InternVL

    config = VlmConfig(
        vision=VisionConfig(width=64, layers=2, heads=2, mlp_width=128, image_size=112),
        language=LanguageConfig(width=256, layers=2, heads=4, kv_heads=2, mlp_width=512, vocab_size=512),
    )
    vlm, rng, tokens = InternVL(config, img_context_id=511, attention="plain"), np.random.default_rng(0), 700
    encode, params = jax.jit(HiddenStateEncoder(vlm).encode), vlm.init(jax.random.key(0))
    for index in range(scenes):
        segments = np.ones((1, tokens), np.int32)
        segments[:, :10] = 0
        ids = rng.integers(0, 500, (1, tokens), dtype=np.int32)
        ids[:, :10], ids[:, 20 : 20 + 9 * config.tokens_per_tile] = 0, 511
        batch = {
            "input_ids": ids,
            "segment_ids": segments,
            "position_ids": np.where(segments == 1, np.cumsum(segments, axis=1) - 1, 1).astype(np.int32),
            "tiles": rng.integers(0, 256, (1, 9, 112, 112, 3), dtype=np.uint8),
            "num_tiles": np.array([9], np.int32),
        }
        yield _states(index, np.array(encode(params, batch))[0], tokens - 10, rng)


def _cached(path: str, scenes: int):
    from recogdrive.data.hidden_cache.reader import HiddenStateCache

    container = HiddenStateCache(path).container
    for token in container.tokens[:scenes]:
        yield container.read(token)


def _compare(title: str, scenes, rounds: int) -> None:
    """Writes the scenes in every layout, reads them in turn, prints the table."""
    everything = list(scenes)
    folder = Path(tempfile.mkdtemp())
    try:
        readers = _write_all(folder, everything)
        times: dict[str, list[float]] = {name: [] for name in readers}
        clocks: dict[str, list[float]] = {name: [] for name in readers}
        for turn in range(rounds + 1):
            for name, (_, read) in readers.items():
                clock, start = time.perf_counter(), time.process_time()
                for index in range(len(everything)):
                    read(index)
                if turn:  # The first round fills caches.
                    times[name].append((time.process_time() - start) / len(everything))
                    clocks[name].append((time.perf_counter() - clock) / len(everything))
        _check(readers, everything)
        _print_table(title, everything, {name: size for name, (size, _) in readers.items()}, times, clocks)
    finally:
        shutil.rmtree(folder)


def _write_all(folder: Path, everything):
    """Layout -> (bytes a scene, reader of scene i)."""
    import ml_dtypes
    import numpy as np

    from recogdrive.data.hidden_cache.official import FEATURE_FILE, TARGET_FILE, write_official
    from recogdrive.data.hidden_cache.record import Storage

    files = [write_official(states, folder / "official") for states in everything]

    def read_reference(index: int):
        for name in (TARGET_FILE, FEATURE_FILE):
            with gzip.open(files[index] / name) as file:
                loaded = pickle.load(file)
        return loaded["last_hidden_state"]

    for index, states in enumerate(everything):
        states.tokens.view(np.uint16).tofile(folder / f"raw{index}")
    shape = everything[0].tokens.shape

    def read_raw(index: int):
        return np.fromfile(folder / f"raw{index}", np.uint16).view(ml_dtypes.bfloat16).reshape(shape)

    reference = sum(path.stat().st_size for file in files for path in file.iterdir()) / len(files)
    readers = {REFERENCE: (reference, read_reference), RAW: ((folder / "raw0").stat().st_size, read_raw)}
    for name, storage in ((LOSSLESS, Storage.BFLOAT16), (INT8, Storage.INT8)):
        readers[name] = _write_container(folder / name, everything, storage)
    return readers


def _write_container(folder: Path, everything, storage):
    from recogdrive.data.hidden_cache.container import ShardWriter, claim, write_manifest
    from recogdrive.data.hidden_cache.reader import HiddenStateContainer

    plan = claim(folder, {})
    writer = ShardWriter(folder, 0, storage, plan)
    for states in everything:
        writer.add(states)
    shape = everything[0].tokens.shape
    manifest = write_manifest(folder, fields={}, shape=shape, splits={"all": len(everything)}, shards=[writer.close()])
    container = HiddenStateContainer(folder)
    return manifest["bytes"] / len(everything), lambda index: container.read(container.tokens[index]).tokens


def _check(readers, everything) -> None:
    """Whatever claims to be exact is."""
    import numpy as np

    for index, states in enumerate(everything):
        for name in (REFERENCE, RAW, LOSSLESS):
            found = np.asarray(readers[name][1](index), np.float32)
            assert np.array_equal(found, states.tokens.astype(np.float32)), name


def _print_table(title: str, everything, sizes, times, clocks) -> None:
    from recogdrive.data.hidden_cache.codec import encode_int8

    rows, width = everything[0].tokens.shape
    print(
        f"\n## {title}: {rows:,} x {width:,}, {everything[0].length:,} of them real; {len(everything)} scenes, "
        f"{len(times[RAW])} rounds\n"
    )
    columns = ("layout", "bytes a scene", "of the reference", "TB for 85,109", "ms a scene", "by the clock")
    print("| " + " | ".join((*columns, "scenes/s and core", "times the reference")) + " |\n" + "|---" * 8 + "|")
    for name, size in sizes.items():
        value = statistics.median(times[name])
        faster = statistics.median(a / b for a, b in zip(times[REFERENCE], times[name], strict=True))
        print(
            f"| {name} | {size:,.0f} | {size / sizes[REFERENCE]:.3f} | {size * SCENES / 1e12:.3f} | {1e3 * value:.1f} "
            f"| {1e3 * statistics.median(clocks[name]):.1f} | {1 / value:,.1f} | {faster:.1f} |"
        )
    errors = [encode_int8(states.tokens.view("uint16")[-states.length :])[1] for states in everything]
    print(
        f"\nint8: largest error {max(e.max_relative for e in errors):.4f} of a channel's largest magnitude, root mean "
        f"square {statistics.mean(e.rms_relative for e in errors):.4f} of that of all numbers."
    )


def _planner_loss(steps: int) -> None:
    """Trains a small planner on exact states and compares its loss and plans on exact and on 8-bit ones.

    The states are made up but tell of the scene: tokens of lanes and agents of the synthetic town, through a random
    matrix to 256 channels with log-normal scales and three outlier channels.
    """
    import jax
    import numpy as np
    import optax

    from recogdrive.models.planner.planner import DiffusionPlanner

    planner = DiffusionPlanner(256, heads=4, head_dim=16, layers=4, output_dim=64, hidden_dim=128)
    train, unseen = _town_batch(512, 1), _town_batch(256, 2)
    optimizer = optax.adam(1e-3)
    params = planner.init(jax.random.key(0))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch, key):
        (loss, _), gradient = jax.value_and_grad(planner.loss, has_aux=True)(params, batch, key)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    rng, key = np.random.default_rng(0), jax.random.key(1)
    for number in range(steps):
        rows = rng.choice(len(train["context"]), 32, replace=False)
        params, state, _ = step(params, state, {k: v[rows] for k, v in train.items()}, jax.random.fold_in(key, number))
    rounded = {**unseen, "context": _through_int8(unseen["context"])}
    loss, sample = jax.jit(planner.loss), jax.jit(planner.sample)
    print("\n## Loss of a planner on exact and on int8 states\n")
    print(f"Small planner, {steps} steps of 32 town scenes; 512 scenes in training, 256 unseen.\n")
    print("| scenes | loss, exact | loss, int8 | change |\n|---|---|---|---|")
    for name, exact, coarse in (
        ("unseen", unseen, rounded),
        ("training", train, {**train, "context": _through_int8(train["context"])}),
    ):
        losses = [np.mean([loss(params, batch, jax.random.key(i))[0] for i in range(8)]) for batch in (exact, coarse)]
        print(f"| {name} | {losses[0]:.6f} | {losses[1]:.6f} | {losses[1] / losses[0] - 1:+.4%} |")
    plans = [np.asarray(sample(params, batch, jax.random.key(0))) for batch in (unseen, rounded)]
    moved = np.linalg.norm(plans[0][..., :2] - plans[1][..., :2], axis=-1)
    shuffled = {**unseen, "context": np.roll(unseen["context"], 1, axis=0)}
    other = np.linalg.norm(
        plans[0][..., :2] - np.asarray(sample(params, shuffled, jax.random.key(0)))[..., :2], axis=-1
    )
    print(
        f"\nWith the same noise, int8 moves planned positions by {moved.mean():.4f} m in the mean, {moved.max():.3f} m "
        f"at most; another scene's context moves them by {other.mean():.2f} m."
    )


def _town_batch(scenes: int, seed: int):
    import ml_dtypes
    import numpy as np

    from recogdrive.data.context import SceneTokens
    from recogdrive.data.samples import planner_sample, stack_samples
    from recogdrive.data.synthetic.town import SyntheticTown

    tokens = SceneTokens(num_map_tokens=48, num_agent_tokens=16)
    town = SyntheticTown(num_scenes=scenes, seed=seed)
    batch = stack_samples([planner_sample(town[i], tokens, i) for i in range(scenes)])
    rng = np.random.default_rng(0)
    scale = np.exp(0.5 * rng.normal(size=256))
    scale[[3, 85, 128]] *= 30
    matrix = rng.normal(size=(tokens.width, 256)) / np.sqrt(tokens.width) * scale
    return {**batch, "context": (batch["context"] @ matrix).astype(ml_dtypes.bfloat16)}


def _through_int8(context):
    import numpy as np

    from recogdrive.data.hidden_cache.codec import decode_int8, encode_int8

    out = np.empty_like(context)
    for rows, found in zip(context, out, strict=True):
        decode_int8(encode_int8(rows.view(np.uint16))[0], found.view(np.uint16))
    return out


if __name__ == "__main__":
    main()
