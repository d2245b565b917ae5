"""A tiny InternVL, batches for it, and compilation at the lowest level, which is what these tests wait for."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig
from recogdrive.models.vlm.internvl import InternVL

IMG_CONTEXT = 60
STOP = 63
CONFIG = VlmConfig(
    vision=VisionConfig(width=16, layers=2, heads=2, mlp_width=24, image_size=28),
    language=LanguageConfig(width=32, layers=3, heads=4, kv_heads=2, mlp_width=40, vocab_size=64),
)
"""Tiles of 28 pixels: four patches, one vector."""


@pytest.fixture(scope="session")
def tiny_vlm() -> Callable[..., InternVL]:
    def make(**settings: Any) -> InternVL:
        config = settings.pop("config", CONFIG)
        return InternVL(config, **{"img_context_id": IMG_CONTEXT, "compute_dtype": "float32", **settings})

    return make


@pytest.fixture(scope="session")
def lively() -> Callable[[InternVL], dict[str, jax.Array]]:
    """Weights far enough from their initial values that every part of the model matters."""

    def draw(model: InternVL) -> dict[str, jax.Array]:
        random = np.random.default_rng(7)

        def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
            noise = random.normal(size=shape).astype(np.float32)
            if "norm" in name and name.endswith("weight"):
                return 1 + 0.1 * noise
            if len(shape) - ("*" in name) < 2:
                return 0.3 * noise
            return noise / np.sqrt(np.prod(shape[1 + ("*" in name) :]))

        return {row.name: jnp.asarray(value(row.name, row.shape)) for row in model.parameter_table()}

    return draw


@pytest.fixture(scope="session")
def vlm_batch() -> Callable[..., dict[str, np.ndarray]]:
    """Rows of given lengths, padded left or right, each with as many image tokens as its tiles have vectors."""

    def make(
        lengths: tuple[int, ...] = (12, 7), tiles: tuple[int, ...] = (2, 1), tokens: int = 12, left: bool = False
    ) -> dict[str, np.ndarray]:
        random = np.random.default_rng(3)
        shape = (len(lengths), tokens)
        ids = random.integers(0, IMG_CONTEXT, shape).astype(np.int32)
        segments, positions = np.zeros(shape, np.int32), np.ones(shape, np.int32)
        labels = np.full(shape, -100, np.int32)
        for row, (length, count) in enumerate(zip(lengths, tiles, strict=True)):
            start = tokens - length if left else 0
            segments[row, start : start + length] = 1
            positions[row, start : start + length] = np.arange(length)
            ids[row, start + 1 : start + 1 + count] = IMG_CONTEXT
            labels[row, start + 1 + count : start + length] = ids[row, start + 1 + count : start + length]
        pixels = random.integers(0, 256, (len(lengths), max(tiles), 28, 28, 3)).astype(np.uint8)
        return {
            "input_ids": ids,
            "segment_ids": segments,
            "position_ids": positions,
            "labels": labels,
            "loss_weight": (labels != -100).astype(np.float32),
            "tiles": pixels,
            "num_tiles": np.asarray(tiles, np.int32),
        }

    return make


@pytest.fixture(scope="session")
def compiled() -> Callable[..., Any]:
    """Compiles a function for the shapes of given arguments."""

    def compile_for(function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
        return jax.jit(function).lower(*args).compile({"xla_backend_optimization_level": 0})

    return compile_for
