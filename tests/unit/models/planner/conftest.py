"""A planner small enough to compile in a second, and batches for it."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np
import pytest

from recogdrive.models.planner.planner import DiffusionPlanner

TINY = {"heads": 2, "head_dim": 4, "layers": 2, "output_dim": 8, "hidden_dim": 16}
WIDTH = 6


def tiny_planner(**arguments: Any) -> DiffusionPlanner:
    """A planner of width 8 for 6-wide tokens."""
    return DiffusionPlanner(WIDTH, **{**TINY, **arguments})


@lru_cache
def _program(method: str, arguments: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    planner = tiny_planner(**dict(arguments))
    return jax.jit(getattr(planner, method), compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def program() -> Callable[..., Callable[..., Any]]:
    """A method of a tiny planner, jitted once for all tests that use it: `program("sample", heads=2)`."""
    return lambda method, **arguments: _program(method, tuple(sorted(arguments.items())))


@pytest.fixture
def make_planner() -> Callable[..., DiffusionPlanner]:
    """See `tiny_planner`."""
    return tiny_planner


@lru_cache
def _lively_params(output_channels: int, attention: bool) -> dict[str, np.ndarray]:
    from recogdrive.models.planner.encoders import AttentionEgoStatus
    from recogdrive.models.planner.flow import FlowMatching

    planner = tiny_planner(
        diffusion=FlowMatching(mean_variance_head=output_channels == 6),
        ego_status=AttentionEgoStatus() if attention else None,
    )
    rng = np.random.default_rng(3)
    return {row.name: rng.normal(0, 0.4, row.shape).astype(np.float32) for row in planner.parameter_table()}


@pytest.fixture
def lively_params() -> Callable[[DiffusionPlanner], dict[str, np.ndarray]]:
    """Weights without the zeros of an untrained planner, under which most mistakes would not show."""

    def make(planner: DiffusionPlanner) -> dict[str, np.ndarray]:
        names = {row.name for row in planner.parameter_table()}
        return _lively_params(planner.diffusion.output_channels, "ego_status_encoder.query" in names)

    return make


@pytest.fixture
def make_batch() -> Callable[..., dict[str, np.ndarray]]:
    """Random batches of B scenes with T tokens."""

    def make(size: int = 2, tokens: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {
            "context": rng.normal(size=(size, tokens, WIDTH)).astype(np.float32),
            "context_mask": np.ones((size, tokens), bool),
            "history_trajectory": rng.normal(size=(size, 4, 3)).astype(np.float32),
            "status_feature": rng.normal(size=(size, 8)).astype(np.float32),
            "trajectory": rng.uniform(0, 1, size=(size, 8, 3)).astype(np.float32),
            "index": np.arange(size, dtype=np.int32),
        }

    return make


@pytest.fixture
def key() -> jax.Array:
    """A random key."""
    return jax.random.key(7)
