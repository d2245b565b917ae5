"""Stored runs of the reference planner: discovers them from `<golden>/planner/cases.json` and rebuilds their planner.

A test asks for one of the fixtures in `_GROUPS` and runs once for every case and method that stored such outputs.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from recogdrive.models.planner.diffusion import DDIM, DDPM
from recogdrive.models.planner.encoders import AttentionEgoStatus, MLPEgoStatus
from recogdrive.models.planner.flow import FlowMatching
from recogdrive.models.planner.planner import DiffusionPlanner

_DEFAULT = Path(__file__).resolve().parents[4] / "shared" / "golden"
FOLDER = Path(os.environ.get("RECOGDRIVE_GOLDEN", _DEFAULT)) / "planner"

_GROUPS = {
    "stored": "",
    "trained": "train/",
    "sampled": "sample_",
    "stepped": "p_mean_variance/",
    "rolled_out": "chain_",
    "weighed": "logprob/",
    "optimised": "optim/",
    "reinforced": "grpo/",
}
"""Fixture -> prefix of the outputs a run must have stored for the test to apply."""

_DIFFUSIONS = {"ddim": DDIM, "ddpm": DDPM, "flow": FlowMatching}
_EGO_STATUS = {"mlp": MLPEgoStatus, "attention": AttentionEgoStatus}


class Run:
    """One case of the reference under one diffusion method."""

    def __init__(self, case: dict[str, Any], method: str):
        self.case, self.method, self.name = case, method, case["name"]
        self.outputs = _load(f"{self.name}_{method}")
        self.inputs = _load(f"{self.name}_inputs")
        path = FOLDER / f"{self.name}.json"
        self.report = json.loads(path.read_text()) if path.exists() else {}

    @property
    def id(self) -> str:
        return f"{self.name}-{self.method}"

    @property
    def scalars(self) -> dict[str, Any]:
        return self.report.get("scalars", {}).get(self.method, {})

    @property
    def output_tolerance(self) -> float:
        """Of network outputs, relative to the largest entry: float32 sums in another order, over 4 or 16 blocks."""
        return 2e-5 if self.case["dims"]["layers"] <= 4 else 5e-5

    def planner(self, deterministic: bool = False, **diffusion: Any) -> DiffusionPlanner:
        dims = self.case["dims"]
        assert dims["embed"] == dims["heads"] * dims["head_dim"]
        return DiffusionPlanner(
            context_width=dims["vlm_dim"],
            diffusion=_DIFFUSIONS[self.method](**diffusion),
            ego_status=_EGO_STATUS[self.case.get("ego", "mlp")](),
            heads=dims["heads"],
            head_dim=dims["head_dim"],
            layers=dims["layers"],
            output_dim=dims["output_dim"],
            hidden_dim=dims["hidden_size"],
            denoising_steps=self.case["steps"],
            deterministic=deterministic,
        )

    def params(self, planner: DiffusionPlanner) -> dict[str, jax.Array]:
        weight, seed = recipe().weight, self.case["weight_seed"]
        return {row.name: _weight(weight, row.name, row.shape, seed) for row in planner.parameter_table()}

    def batch(self, source: dict[str, np.ndarray] | None = None, index: Any = slice(None)) -> dict[str, np.ndarray]:
        source = self.inputs if source is None else source
        return {
            "context": source["vl_features"][index],
            "history_trajectory": source["his_traj"][index].reshape(-1, 4, 3),
            "status_feature": source["status_feature"][index],
            "trajectory": source["action"][index],
        }

    @cached_property
    def training_draws(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        time = self.inputs["train_beta"] if self.method == "flow" else self.inputs["train_t"].astype(np.int32)
        masked = None
        if self.case.get("ego", "mlp") == "attention":
            # A case without such an entry was recorded with nothing hidden; zeros and ones are the mask itself.
            draw = next((value for name, value in self.inputs.items() if "mask" in name), None)
            if draw is not None:
                is_mask = np.isin(draw, (0, 1)).all()
                masked = draw.astype(np.float32) if is_mask else (draw < 0.75).astype(np.float32)
        return self.inputs["train_noise"], time, masked

    @cached_property
    def gradients(self) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        """Loss, its parts and the gradient of every weight, with the stored draws."""
        planner = self.planner()
        arguments = (self.params(planner), self.batch(), *self.training_draws)
        (loss, parts), gradients = self.gradient_function(planner, *arguments)(*arguments)
        return loss, parts, gradients

    @staticmethod
    def gradient_function(planner: DiffusionPlanner, *arguments: Any) -> Callable[..., Any]:
        return compiled(jax.value_and_grad(planner.loss_with_noise, has_aux=True), *arguments)

    def denoiser(self, planner: DiffusionPlanner, samples: int) -> Callable[..., jax.Array]:
        """The network with its scene bound, compiled once for all methods of a case (they share weights).

        It stays compiled under `jax.disable_jit`, where the samplers' own loops run step by step.
        """
        params = self.params(planner)
        if (self.name, samples) not in _DENOISERS:
            batch = self.batch()
            encoding = compiled(planner.encode, params, batch)(params, batch)
            scenes = batch["context"].shape[0]
            x, t = np.zeros((scenes, samples, 8, 3), np.float32), np.zeros((scenes, samples), np.int32)
            _DENOISERS[self.name, samples] = encoding, compiled(planner.denoise, params, encoding, x, t)
        encoding, network = _DENOISERS[self.name, samples]

        def denoise(x: Any, t: Any) -> jax.Array:
            with jax.disable_jit(False):
                return network(params, encoding, jnp.asarray(x), jnp.asarray(t, jnp.int32))

        return denoise


_EXECUTABLES: dict[str, Any] = {}
_DENOISERS: dict[tuple[str, int], tuple[dict[str, jax.Array], Callable[..., Any]]] = {}
_WEIGHTS: dict[tuple[str, tuple[int, ...], int], jax.Array] = {}


def compiled(function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """Compiles for these arguments; programs that lower to the same text (DDIM's and DDPM's loss) compile once."""
    lowered = jax.jit(function).lower(*args)
    text = lowered.as_text()
    if text not in _EXECUTABLES:
        # Compiling is what these tests spend their time on; the lowest level does the same arithmetic.
        _EXECUTABLES[text] = lowered.compile({"xla_backend_optimization_level": 0})
    return _EXECUTABLES[text]


def _weight(draw: Callable[..., np.ndarray], name: str, shape: tuple[int, ...], seed: int) -> jax.Array:
    if (name, shape, seed) not in _WEIGHTS:
        _WEIGHTS[name, shape, seed] = jnp.asarray(draw(name, shape, seed))
    return _WEIGHTS[name, shape, seed]


@pytest.fixture
def recipe_weight() -> Callable[[str, tuple[int, ...], int], np.ndarray]:
    """(name, shape, seed) -> the weight that the recipe makes."""
    return recipe().weight


@lru_cache
def recipe() -> Any:
    """The weight recipe that lies beside the stored outputs."""
    spec = importlib.util.spec_from_file_location("planner_recipe", FOLDER / "planner_recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache
def _load(name: str) -> dict[str, np.ndarray]:
    path = FOLDER / f"{name}.safetensors"
    return load_file(path) if path.exists() else {}


@lru_cache
def _runs() -> tuple[Run, ...]:
    path = FOLDER / "cases.json"
    cases = json.loads(path.read_text()) if path.exists() else []
    return tuple(Run(case, method) for case in cases for method in case["methods"])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, prefix in _GROUPS.items():
        if fixture in metafunc.fixturenames:
            runs = [run for run in _runs() if not prefix or any(key.startswith(prefix) for key in run.outputs)]
            if not FOLDER.exists():
                runs = [None]  # one test that says so
            metafunc.parametrize(fixture, runs, indirect=True, ids=lambda run: run.id if run else "absent")


def _run_fixture(request: pytest.FixtureRequest, golden_dir: Path) -> Run:
    return request.param


for _name in _GROUPS:
    globals()[_name] = pytest.fixture(name=_name)(_run_fixture)


@pytest.fixture
def not_stored() -> Callable[[str], None]:
    """Ends a test whose table is not there: other golden cases may lack it, under CI the shared ones may not."""

    def end(reason: str) -> None:
        if os.environ.get("CI") == "true" and "RECOGDRIVE_GOLDEN" not in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)

    return end


@pytest.fixture
def planner_golden_dir(golden_dir: Path) -> Path:
    """The folder of the planner's stored outputs."""
    return golden_dir / "planner"


@pytest.fixture
def compile_once() -> Callable[..., Any]:
    """See `compiled`."""
    return compiled


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """Compares with a stored array of any broadcast-free shape; `relative_to_max` is the README's kind of limit."""

    def check(
        found: Any, stored: np.ndarray, what: str, rtol: float = 0.0, atol: float = 0.0, relative_to_max: float = 0.0
    ) -> None:
        found = np.asarray(found, np.float64)
        assert found.size == stored.size, f"{what}: shape {found.shape}, stored {stored.shape}"
        wanted = stored.astype(np.float64)
        limit = atol + rtol * np.abs(wanted) + relative_to_max * np.abs(wanted).max()
        gap = np.abs(found.reshape(wanted.shape) - wanted)
        assert np.all(gap <= limit), f"{what}: gap {gap.max():.3g}, allowed {np.min(limit):.3g}"

    return check
