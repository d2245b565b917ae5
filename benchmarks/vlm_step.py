"""Measures fine-tuning steps of a VLM on a mixed set of conversations: layouts of rows, attention, rematerialisation.

    python benchmarks/vlm_step.py                     # a small model, all lengths a sixteenth of the real ones
    python benchmarks/vlm_step.py --size=2b --samples=128             # InternVL3-2B at full lengths; one accelerator
    python benchmarks/vlm_step.py --only packed --only "padded to the longest allowed"

The set has the mix of the reference's: trajectories and questions of 16 tiles, multi-view samples of 18, general
images of 5 to 16, text alone. Each variant goes through the whole set once a round, in turn with the others, whatever
rows it makes of it; tokens a second count real tokens, so padding shows as lost speed. Ratios are medians of
per-round ratios. Layouts:
  packed                         `PackedRows`: three samples of the usual length a row
  padded to the longest allowed  one sample a row, as the reference pads without `group_by_length`
  length buckets                 one sample a row, padded to the smallest of a few sizes, like lengths together
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from recogdrive.data.vlm.grouping import LengthBucketed
from recogdrive.data.vlm.layouts import PackedRows, PaddedRows, RowLayout
from recogdrive.data.vlm.samples import VlmSample
from recogdrive.data.vlm.stream import BatchesOnce
from recogdrive.data.vlm.survey import Survey
from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig, internvl3_2b
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.training.fine_tuning import FineTuning
from recogdrive.training.optim import AdamW, StepCosine
from recogdrive.training.sharding import DataParallel
from recogdrive.training.state import create_state
from recogdrive.training.step import make_train_step

IMG_CONTEXT = 5


@dataclass(frozen=True)
class Size:
    """A model, and by what its samples are shorter than real ones."""

    config: VlmConfig
    shrink: int
    dtype: str


SIZES = {
    "small": Size(
        VlmConfig(
            vision=VisionConfig(width=128, layers=4, heads=4, mlp_width=512, image_size=112),
            language=LanguageConfig(width=128, layers=4, heads=4, kv_heads=2, mlp_width=512, vocab_size=4096),
        ),
        shrink=16,
        dtype="float32",
    ),
    "2b": Size(internvl3_2b(151_682), shrink=1, dtype="bfloat16"),
}


@dataclass(frozen=True)
class Variant:
    """What is measured: a layout, and how the model computes."""

    layout: str = "packed"
    attention: str = "fused"
    remat: str = "full"
    train: bool = True


VARIANTS = {
    "packed": Variant(),
    "padded to the longest allowed": Variant(layout="padded"),
    "length buckets": Variant(layout="buckets"),
    "packed, plain attention": Variant(attention="plain"),
    "packed, remat dots": Variant(remat="dots"),
    "packed, remat none": Variant(remat="none"),
    "packed, forward only": Variant(train=False),
}


def main() -> None:
    """Prints the tables asked for on the command line."""
    arguments = _parse()
    size, names = SIZES[arguments.size], arguments.only or list(VARIANTS)
    samples = Samples(size, arguments.samples)
    print(f"{jax.devices()}, size {arguments.size} in {size.dtype}, {arguments.samples} samples: {samples.summary()}")
    holder: dict[str, Any] = {}
    runs = {name: Run(VARIANTS[name], size, samples, holder) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            seconds[name].append(run())
    _report(runs, seconds, samples)
    if not arguments.only:
        _compare_scan(size, samples)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=list(VARIANTS), help="measure these variants; repeatable")
    return parser.parse_args()


class Samples:
    """Random conversations of the reference's mix of lengths, in the form `BatchesOnce` reads."""

    def __init__(self, size: Size, count: int) -> None:
        rng = np.random.default_rng(0)
        self._shrink, self._vocabulary = size.shrink, size.config.language.vocab_size
        self.tiling = SimpleNamespace(image_size=size.config.tile_size)
        self.tokenizer = SimpleNamespace(pad_id=0)
        self.max_seq_length = 12_288 // size.shrink
        self.tiles = np.array([self._tiles(rng) for _ in range(count)], np.int32)
        self.texts = np.array([self._text(rng, tiles) for tiles in self.tiles], np.int32)
        self.answers = np.maximum(2, self.texts // 4).astype(np.int32)
        self.lengths = self.texts + self.tiles * size.config.tokens_per_tile
        self.survey = Survey(self.lengths, self.tiles, self.answers, (), count)

    def _tiles(self, rng: np.random.Generator) -> int:
        general = rng.choice([0, 5, 7, 10, 13, 16], p=[0.06, 0.14, 0.14, 0.14, 0.38, 0.14])
        return int(rng.choice([16, 18, general], p=[0.6, 0.2, 0.2]))

    def _text(self, rng: np.random.Generator, tiles: int) -> int:
        """Tokens besides image vectors: about 640 for a trajectory, 100 to 500 for other questions."""
        tokens = rng.choice([rng.integers(600, 670), rng.integers(100, 500)]) if tiles == 16 else rng.integers(150, 600)
        return max(8, int(tokens) // self._shrink)

    def sample(self, index: int, epoch: int = 0) -> VlmSample:
        """A conversation: some text, the image vectors, the rest of the text, of which the end is supervised."""
        rng = np.random.default_rng(index)
        ids = rng.integers(IMG_CONTEXT + 1, self._vocabulary, self.lengths[index]).astype(np.int32)
        ids[2 : 2 + self.lengths[index] - self.texts[index]] = IMG_CONTEXT
        labels = np.full(len(ids), -100, np.int32)
        labels[-self.answers[index] :] = ids[-self.answers[index] :]
        side = self.tiling.image_size
        return VlmSample(ids, labels, rng.integers(0, 256, (self.tiles[index], side, side, 3)).astype(np.uint8))

    def layout(self, name: str) -> tuple[RowLayout, int]:
        """A layout and the rows of a batch, about six samples each."""
        if name == "packed":
            return PackedRows(14_336 // self._shrink, 52), 2
        if name == "padded":
            return PaddedRows(), 6
        buckets = tuple(length // self._shrink for length in (1024, 2048, 4096, 4864, 5376, 6144))
        return PaddedRows(buckets, (1, 5, 10, 13, 16, 18), LengthBucketed()), 6

    def summary(self) -> str:
        """Lengths in words."""
        return f"{self.lengths.sum():,} tokens, mean {self.lengths.mean():.0f}, and {self.tiles.sum():,} tiles"


class Run:
    """A variant, compiled for all its shapes; a call goes through the whole set and returns the seconds it took.

    Variants that train share one state, held by the caller: a large model fits once.
    """

    def __init__(self, variant: Variant, size: Size, samples: Samples, holder: dict[str, Any]) -> None:
        layout, rows = samples.layout(variant.layout)
        self._batches = list(BatchesOnce(samples, samples.survey, layout, batch_size=rows))
        self._holder, self._train = holder, variant.train
        vlm = make_vlm(size, variant)
        step = _train_step(vlm, holder) if variant.train else jax.jit(vlm.loss)
        _state(vlm, holder)
        start = time.perf_counter()
        self._compiled = {}
        for batch in self._batches:
            shape = batch["tiles"].shape[:2] + batch["input_ids"].shape[1:]
            if shape not in self._compiled:
                state = holder["state"] if variant.train else holder["state"].params
                self._compiled[shape] = step.lower(state, batch).compile()
        self.compile_s, self.shapes = time.perf_counter() - start, len(self._compiled)
        self.step_mib = max(c.memory_analysis().temp_size_in_bytes for c in self._compiled.values()) / 2**20
        positions = sum(batch["input_ids"].size for batch in self._batches)
        slots = sum(batch["tiles"].shape[0] * batch["tiles"].shape[1] for batch in self._batches)
        self.token_share, self.tile_share = samples.lengths.sum() / positions, samples.tiles.sum() / slots
        self()  # Touches all memory once.

    def __call__(self) -> float:
        """Seconds of one round."""
        start = time.perf_counter()
        for batch in self._batches:
            step = self._compiled[batch["tiles"].shape[:2] + batch["input_ids"].shape[1:]]
            if self._train:
                self._holder["state"], metrics = step(self._holder["state"], batch)
            else:
                metrics = step(self._holder["state"].params, batch)
            jax.block_until_ready(metrics)
        return time.perf_counter() - start


def make_vlm(size: Size, variant: Variant) -> InternVL:
    """The model as a variant computes it."""
    return InternVL(
        size.config,
        img_context_id=IMG_CONTEXT,
        attention=variant.attention,
        remat=variant.remat,
        compute_dtype=size.dtype,
        loss_mean="global",
    )


def _optimizer(objective: FineTuning) -> tuple[Any, Any]:
    return AdamW(StepCosine(), weight_decay=0.05).build(1, 1, 1000, objective.decayed)


def _state(vlm: InternVL, holder: dict[str, Any]) -> None:
    if "state" not in holder:
        objective = FineTuning(vlm)
        transformation, _ = _optimizer(objective)
        holder["state"] = jax.jit(
            lambda key: create_state(objective.init(key), transformation, key, with_ema=False),
            out_shardings=DataParallel(1).replicated,
        )(jax.random.key(0))


def _train_step(vlm: InternVL, holder: dict[str, Any]) -> Callable[..., Any]:
    objective, sharding = FineTuning(vlm), DataParallel(1)
    _state(vlm, holder)
    transformation, rate = _optimizer(objective)
    placement = sharding.state_sharding(holder["state"])
    return make_train_step(objective, transformation, rate, sharding, placement)


def _report(runs: dict[str, Run], seconds: dict[str, list[float]], samples: Samples) -> None:
    print(
        f"\n{'variant':31} {'s a round':>9} {'tokens/s':>9} {'real tokens':>11} {'real tiles':>10} {'shapes':>6} "
        f"{'compile s':>9} {'step MiB':>9} {'packed is':>9}"
    )
    for name, run in runs.items():
        median = statistics.median(seconds[name])
        ratio = "" if "packed" not in runs else f"{_ratio(seconds, name):8.2f}x"
        print(
            f"{name:31} {median:9.2f} {samples.lengths.sum() / median:9,.0f} {run.token_share:11.1%} "
            f"{run.tile_share:10.1%} {run.shapes:6} {run.compile_s:9.1f} {run.step_mib:9,.0f} {ratio}"
        )
    print("\n(packed is: how many times as fast as this variant)")


def _ratio(seconds: dict[str, list[float]], slow: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds["packed"], strict=True))


def _compare_scan(size: Size, samples: Samples) -> None:
    """Seconds to trace and compile loss and gradient with layers in a loop and laid out one after the other."""
    layout, rows = samples.layout("packed")
    batch = BatchesOnce(samples, samples.survey, layout, batch_size=rows)[0]
    print(f"\ncompiling loss and gradient, {size.config.vision.layers} + {size.config.language.layers} layers")
    for name, context in (("scanned", _as_it_is), ("unrolled", _unrolled)):
        vlm = make_vlm(size, Variant())
        start = time.perf_counter()
        with context():
            shapes = jax.eval_shape(vlm.init, jax.random.key(0))
            jax.jit(jax.grad(lambda p, b, vlm=vlm: vlm.loss(p, b)[0])).lower(shapes, batch).compile()
        print(f"{name:31} {time.perf_counter() - start:9.1f} s")


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _unrolled() -> Iterator[None]:
    """Within it, loops over layers are laid out."""
    scan = jax.lax.scan
    jax.lax.scan = functools.partial(scan, unroll=True)
    try:
        yield
    finally:
        jax.lax.scan = scan


if __name__ == "__main__":
    main()
