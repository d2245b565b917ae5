"""State dict tables, generated weights, schedule constants and normalisation against the reference."""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from recogdrive.models.planner import diffusion as processes
from recogdrive.models.planner.diffusion import DDIM
from recogdrive.models.planner.flow import FlowMatching
from recogdrive.models.planner.normalization import denormalize, normalize
from recogdrive.models.planner.official_checkpoint import ETA, PREFIX, official_entries, official_state_dict
from recogdrive.models.planner.planner import DiffusionPlanner

CONSTANT = {"rtol": 1e-6, "atol": 1e-6}  # one rounding of float32
LOGARITHM = {"rtol": 1e-6, "atol": 1e-5}  # of float32 variances, near 1e-20 at the first step


def _limits(name):
    return LOGARITHM if "logvar" in name else CONSTANT


def _table(entries):
    return {name: {"shape": list(value.shape), "dtype": str(value.dtype)} for name, value in entries.items()}


def test_state_dict_has_the_references_names_shapes_and_types_in_order(stored, not_stored):
    if "state_dict" not in stored.report:
        not_stored(f"{stored.name}.json holds no state dict table")
    planner = stored.planner()
    found = _table(official_entries(stored.params(planner), planner))
    assert list(found.items()) == list(stored.report["state_dict"][stored.method].items())


def test_generated_weights_have_the_recorded_sha256(stored, not_stored):
    if "weight_sha256" not in stored.report:
        not_stored(f"{stored.name}.json holds no hashes")
    recorded = stored.report["weight_sha256"]
    hashes = recorded[stored.method]
    if hashes == "same parameters as the first method":
        hashes = recorded[stored.case["methods"][0]]
    params = stored.params(stored.planner())
    assert hashes
    for name, expected in hashes.items():
        assert hashlib.sha256(np.asarray(params[name]).tobytes()).hexdigest() == expected, name


def test_stored_state_and_buffers_are_ours(stored, planner_golden_dir, assert_close, not_stored):
    paths = [planner_golden_dir / f"{stored.name}_{stored.method}_{kind}.safetensors" for kind in ("state", "buffers")]
    if not any(path.exists() for path in paths):
        not_stored(f"no state or buffers of {stored.id}")
    planner = stored.planner()
    entries = official_entries(stored.params(planner), planner)
    compared = 0
    for path in paths:
        for name, value in (load_file(path) if path.exists() else {}).items():
            compared += 1
            assert entries[name].dtype == value.dtype, name
            if name == ETA:
                assert np.isposinf(entries[name]).all()
                continue
            assert_close(entries[name], value, name, **_limits(name))
    assert compared


@pytest.mark.parametrize(("size", "width", "trainable"), [("2B", 1536, 34_329_219), ("8B", 3584, 35_115_651)])
def test_small_planner_has_the_official_checkpoints_layout(planner_golden_dir, size, width, trainable, not_stored):
    path = planner_golden_dir / f"checkpoint_keys_{size}_IL.json"
    if not path.exists():
        not_stored(f"no table at {path}")
    table = json.loads(path.read_text())
    planner = DiffusionPlanner(width)
    params = {row.name: np.broadcast_to(np.float32(0), row.shape) for row in planner.parameter_table()}
    found = _table({PREFIX + name: value for name, value in official_entries(params, planner).items()})
    assert list(found.items()) == list(table["keys"].items())
    assert len(found) == table["entries"] == 347
    assert sum(row.count for row in planner.parameter_table()) == table["parameters_trainable"] == trainable


@pytest.mark.parametrize(("size", "width"), [("2B", 1536), ("8B", 3584)])
def test_a_planner_of_the_reinforcement_learning_stage_holds_every_key_twice(
    planner_golden_dir, size, width, not_stored
):
    path = planner_golden_dir / f"checkpoint_keys_{size}_IL.json"
    if not path.exists():
        not_stored(f"no table at {path}")
    table = json.loads(path.read_text())
    rule = table.get("rl_checkpoint") or not_stored(f"{path.name} states no rule for it")
    planner = DiffusionPlanner(width)
    params = {row.name: np.broadcast_to(np.float32(0), row.shape) for row in planner.parameter_table()}
    found = _table(official_state_dict(params, planner, old_policy=params))
    second = {rule["extra_prefix"] + key.removeprefix(PREFIX): entry for key, entry in table["keys"].items()}
    assert found == table["keys"] | second
    assert len(found) == rule["entries"] == 694


@pytest.fixture
def constants(planner_golden_dir):
    path = planner_golden_dir / "constants.json"
    if not path.exists():
        not_stored(f"no constants at {path}")
    return json.loads(path.read_text())


def test_schedule_constants_are_the_references(constants, assert_close):
    found = DDIM().buffers(5)
    stored = constants["ddim_ddpm_buffers"]
    assert set(found) == set(stored) - {"model.rotary_embedder.inv_freq"}
    for name, entry in stored.items():
        if name in found:
            assert str(found[name].dtype) == entry["dtype"]
            assert_close(found[name], np.array(entry["values"]), name, **_limits(name))


def test_flow_times_are_the_references(constants):
    flow = FlowMatching()
    times = processes.schedule.flow_sampling_times(5, flow.buckets)
    assert times.tolist() == constants["flow"]["inference_timesteps_5"]
    assert flow.time_scale == constants["flow"]["noise_s"]
    assert [flow.beta_alpha, 1.0] == constants["flow"]["beta"]
    assert flow.buckets == constants["flow"]["buckets"]


def test_clips_and_floors_are_the_references(constants):
    stored = constants["grpo_defaults"]
    assert stored["denoised_clip_value"] == processes.DENOISED_CLIP
    assert stored["eval_randn_clip_value"] == processes.EVALUATION_NOISE_CLIP
    assert stored["randn_clip_value"] == processes.ROLLOUT_NOISE_CLIP
    assert stored["final_action_clip_value"] == processes.FINAL_CLIP
    assert stored["eval_min_sampling_denoising_std"] == processes.DDIM_EVALUATION_STD_FLOOR
    assert stored["min_sampling_denoising_std"] == processes.ROLLOUT_STD_FLOOR
    assert stored["min_logprob_denoising_std"] == processes.LOG_PROB_STD_FLOOR


def test_normalisation_is_the_references_both_ways(constants, assert_close):
    samples = {name: np.array(v, np.float32) for name, v in constants["normalisation"]["samples"].items()}
    assert_close(normalize(samples["physical"]), samples["normalised"], "normalised", **CONSTANT)
    # Metres: half a unit in the last place of a normalised value is worth 33 m x 6e-8.
    back = denormalize(jnp.asarray(samples["normalised"]))
    assert_close(back, samples["round_trip"], "round trip", rtol=1e-6, atol=1e-5)
