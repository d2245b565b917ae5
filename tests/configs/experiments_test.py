"""Every experiment composes to a text that is checked in, so that a review shows what a change of configuration did.

`RECOGDRIVE_UPDATE_CONFIGS=1 pytest tests/configs` writes the texts anew.
"""

import os
import re
from pathlib import Path

import gin
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from recogdrive.composition import compose
from recogdrive.experiment import load_registry
from recogdrive.stages import base

RESOLVED = Path(__file__).parent / "resolved"
REGISTRY = load_registry()


def resolved_text(name):
    experiment = REGISTRY[name]
    reference = experiment.reference
    header = {
        "experiment": experiment.name,
        "description": experiment.description,
        "starts from": experiment.starts_from,
        "reference": reference and f"{reference.pdms} PDMS on {reference.split} ({reference.source})",
        "missing": experiment.missing,
    }
    lines = [f"# {key}: {value}" for key, value in header.items() if value is not None]
    return "\n".join(lines) + "\n\n" + compose(experiment, [], []).resolved()


@pytest.mark.parametrize("name", REGISTRY)
def test_an_experiment_resolves_to_its_checked_in_text(name):
    path = RESOLVED / f"{name}.txt"
    text = resolved_text(name)
    if os.environ.get("RECOGDRIVE_UPDATE_CONFIGS") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.is_file(), f"{path} is missing; write it with RECOGDRIVE_UPDATE_CONFIGS=1"
    assert text == path.read_text()


def test_texts_and_registry_match_both_ways():
    assert {p.stem for p in RESOLVED.glob("*.txt")} == set(REGISTRY)


@pytest.mark.parametrize("name", [n for n, e in REGISTRY.items() if e.missing is None])
def test_a_runnable_experiment_builds_its_stage_and_leaves_nothing_unbound(name):
    bindings = [f"{REGISTRY[name].parent_macro}='somewhere'"] if REGISTRY[name].starts_from else []
    compose(REGISTRY[name], [], bindings)
    stage, parent = base.build()
    kinds = {
        r"baseline_ego_status_mlp": "Imitation",
        r"baseline_.*|.*_vlm_eval|mini_score_submission": "EvaluateAgents",
        r".*_eval": "Evaluate",
        r".*_submission": "WriteSubmission",
        r"doctor": "Doctor",
        r"(mini_)?data_check": "DataCheck",
        r".*_cache_metrics": "CacheMetrics",
        r".*_cache(_navtest)?": "CacheHiddenStates",
        r".*_sft": "VlmSft",
        r".*_drive": "DriveOnce",
        r".*_rl": "DiffGrpo",
        r"quickstart|.*_il(_ema)?": "Imitation",
    }
    kind = next(kind for pattern, kind in kinds.items() if re.fullmatch(pattern, name))
    assert type(stage).__name__ == kind
    assert (parent == Path("somewhere")) == bool(bindings)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_macro_of_an_experiment_is_used_or_documented_as_a_fact(name):
    """A macro nothing reads is a knob that turns nothing; gin itself would not say so."""
    text = compose(REGISTRY[name], [], []).resolved()
    # What comes with a VLM's file; not every stage that includes it reads all of it.
    facts = {"VLM", "CONTEXT_WIDTH", "CONTEXT_TOKENS", "IMAGE_SIZE", "TOKENS_PER_TILE", "VOCAB_SIZE", "IMG_CONTEXT_ID"}
    macros = {line.split(" = ")[0] for line in text.splitlines() if line.split(" = ")[0].isupper()}
    unavailable = REGISTRY[name].missing is not None
    unused = {m for m in macros - facts if f"%{m}" not in text}
    assert not unused or unavailable, f"{name} defines {sorted(unused)} and uses them nowhere"


@pytest.mark.parametrize("name", ["2b_il", "8b_il_ema", "quickstart", "mini_il"])
def test_fragments_bind_the_references_optimiser(name):
    compose(REGISTRY[name], [], [])
    trainer = gin.get_configurable("Trainer")()
    optimizer = trainer.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay, optimizer.clip_norm) == (0.9, 0.95, 1e-4, 1.0)
    assert optimizer.schedule.warmup_epochs == 3


def test_the_large_runs_have_the_references_schedule_and_length():
    compose(REGISTRY["2b_il"], [], [])
    trainer = gin.get_configurable("Trainer")()
    assert (trainer.optimizer.schedule.learning_rate, trainer.optimizer.schedule.epochs) == (1e-4, 200)
    assert trainer.steps == round(85_109 * 200 / 512)
    assert trainer.ema_decay is None
    compose(REGISTRY["2b_il_ema"], [], [])
    averaged = gin.get_configurable("Trainer")()
    assert averaged.steps == round(85_109 * 100 / 512) and averaged.ema_decay == 0.999


def test_the_ego_status_mlp_is_trained_as_by_torchs_adam():
    """Three updates of the experiment's own optimiser, on gradients large enough for clipping to show."""
    compose(REGISTRY["baseline_ego_status_mlp"], [], [])
    transformation, _ = gin.get_configurable("Trainer")().optimizer.build(64, 1000)
    start = np.array([0.5, -2.0, 30.0], np.float32)
    reference = torch.nn.Parameter(torch.from_numpy(start.copy()))
    adam = torch.optim.Adam([reference], lr=1e-4)
    params = {"w": jnp.asarray(start)}
    state = transformation.init(params)
    for gradient in ([9.0, -0.1, 3.0], [-5.0, 0.2, 3.0], [1.0, 0.0, 3.0]):
        reference.grad = torch.tensor(gradient)
        adam.step()
        updates, state = transformation.update({"w": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"] - start, reference.detach().numpy() - start, rtol=1e-3)


def test_the_ego_status_mlp_has_the_references_batch_and_no_average():
    compose(REGISTRY["baseline_ego_status_mlp"], [], [])
    text = gin.config_str()
    assert "BATCH_SIZE = 64" in text and "LEARNING_RATE = 0.0001" in text
    assert gin.get_configurable("Trainer")().ema_decay is None
