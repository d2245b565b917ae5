import collections
import logging
import os
import pathlib

import jax
import numpy as np
import pytest
import torch

from recogdrive.models.ego_status_mlp import EgoStatusMLP
from recogdrive.models.planner.diffusion import DDPM
from recogdrive.models.planner.official_checkpoint import (
    OLD_POLICY,
    PREFIX,
    load_official,
    official_entries,
    read_official,
    save_official,
)


class RunsCode:
    """Pickles to a call of os.mkdir."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def planner(make_planner):
    return make_planner()


@pytest.fixture
def params(planner, lively_params):
    return lively_params(planner)


@pytest.fixture
def path(tmp_path, planner, params):
    save_official(tmp_path / "planner.ckpt", params, planner)
    return tmp_path / "planner.ckpt"


def _rewrite(path, change):
    """Applies `change` to the stored state dict, in place."""
    content = torch.load(path, weights_only=True)
    change(content["state_dict"])
    torch.save(content, path)
    return path


def test_what_was_saved_is_loaded_bit_for_bit(path, planner, params):
    loaded = load_official(path, planner)
    assert list(loaded) == [row.name for row in planner.parameter_table()]
    for name, value in params.items():
        np.testing.assert_array_equal(loaded[name], value)


def test_the_file_is_a_lightning_state_dict_with_buffers_and_infinite_eta(path, planner):
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    assert all(key.startswith("agent.action_head.") for key in state)
    assert torch.isposinf(state["agent.action_head.eta.eta_logit"]).all()
    assert state["agent.action_head.ddim_t"].dtype == torch.int64
    assert state["agent.action_head.ddim_t"].tolist() == [80, 60, 40, 20, 0]
    assert len(state) == len(planner.parameter_table()) + 19 + 1 + 1
    assert {"epoch", "global_step", "pytorch-lightning_version"} <= set(content)


def test_torch_itself_accepts_the_weights_under_their_names(path, planner):
    state = {k.removeprefix(PREFIX): v for k, v in torch.load(path, weights_only=True)["state_dict"].items()}
    report = planner.network.load_state_dict(state, strict=False, assign=True)
    assert report.missing_keys == []
    assert all(name.startswith(("ddpm_", "ddim_", "eta.")) for name in report.unexpected_keys)


def test_missing_extra_and_misshapen_entries_are_listed_in_one_error(path, planner):
    def change(state):
        del state[PREFIX + "fusion_projector.bias"]
        state[PREFIX + "surprise"] = torch.zeros(2)
        state[PREFIX + "feature_encoder.weight"] = torch.zeros(8, 7)

    with pytest.raises(ValueError, match=r"3 checkpoint entry") as raised:
        load_official(_rewrite(path, change), planner)
    message = str(raised.value)
    assert "missing: fusion_projector.bias (8,)" in message
    assert "unknown: surprise (2,)" in message
    assert "feature_encoder.weight is (8, 7), expected (8, 6)" in message
    assert str(path) in message


def test_a_checkpoint_of_another_width_is_refused_with_both_shapes(path, make_planner):
    with pytest.raises(ValueError, match=r"feature_encoder.weight is \(8, 6\), expected \(16, 6\)"):
        load_official(path, make_planner(heads=4))


def test_another_noise_schedule_is_refused(path, planner):
    def change(state):
        state[PREFIX + "ddpm_betas"] = state[PREFIX + "ddpm_betas"] * 1.1

    with pytest.raises(ValueError, match="other schedule: ddpm_betas differs by up to 0.0999"):
        load_official(_rewrite(path, change), planner)


def test_another_number_of_sampling_steps_is_refused(path, make_planner):
    with pytest.raises(ValueError, match=r"ddim_t is \(5,\), expected \(4,\)"):
        load_official(path, make_planner(denoising_steps=4))


def test_a_checkpoint_of_another_process_is_refused(path, make_planner):
    with pytest.raises(ValueError, match=r"unknown: ddim_t \(5,\)") as raised:
        load_official(path, make_planner(diffusion=DDPM()))
    assert "unknown: eta.eta_logit" in str(raised.value)


@pytest.mark.parametrize("eta", [float("inf"), float("nan"), 0.3])
def test_eta_may_hold_anything(path, planner, eta):
    def change(state):
        state[PREFIX + "eta.eta_logit"] = torch.tensor([eta])

    assert "eta.eta_logit" not in load_official(_rewrite(path, change), planner)


def test_weights_that_are_not_finite_are_refused(path, planner):
    def change(state):
        state[PREFIX + "fusion_projector.bias"][1] = float("nan")

    with pytest.raises(ValueError, match="not finite: fusion_projector.bias"):
        load_official(_rewrite(path, change), planner)


def test_half_precision_widens_exactly_and_double_is_refused(path, planner, params):
    name = "fusion_projector.bias"

    def to(dtype):
        def change(state):
            state[PREFIX + name] = state[PREFIX + name].to(dtype)

        return change

    loaded = load_official(_rewrite(path, to(torch.bfloat16)), planner)
    wanted = torch.from_numpy(params[name]).to(torch.bfloat16).to(torch.float32)
    np.testing.assert_array_equal(loaded[name], wanted)
    with pytest.raises(ValueError, match=f"wrong type: {name} is torch.float64"):
        load_official(_rewrite(path, to(torch.float64)), planner)


def test_other_parts_of_a_file_are_passed_over_and_counted(path, planner, params, caplog):
    def change(state):
        for key in [k for k in state if k.startswith(PREFIX)]:
            state[PREFIX + "old_policy." + key.removeprefix(PREFIX)] = state[key] * 0
        state["agent.backbone.model.weight"] = torch.zeros(3)
        state["agent.model.vision.weight"] = torch.zeros(3)

    _rewrite(path, change)
    state, passed_over = read_official(path)
    assert passed_over == {
        "agent.action_head.old_policy.": len(state),
        "agent.backbone.": 1,
        "agent.model": 1,
    }
    with caplog.at_level(logging.INFO, logger="absl"):
        loaded = load_official(path, planner)
    assert "reference policy" in caplog.text
    np.testing.assert_array_equal(loaded["fusion_projector.bias"], params["fusion_projector.bias"])


def test_a_reference_policy_repeats_every_key_and_leaves_the_planner_as_it_is(tmp_path, planner, params):
    reference = {name: value + 1 for name, value in params.items()}
    path = tmp_path / "rl.ckpt"
    save_official(path, params, planner, old_policy=reference)
    state = torch.load(path, weights_only=True)["state_dict"]
    alone = [key for key in state if not key.startswith(PREFIX + OLD_POLICY)]
    assert list(state) == alone + [PREFIX + OLD_POLICY + key.removeprefix(PREFIX) for key in alone]
    name = "fusion_projector.bias"
    np.testing.assert_array_equal(load_official(path, planner)[name], params[name])
    np.testing.assert_array_equal(state[PREFIX + OLD_POLICY + name].numpy(), reference[name])


def test_a_reference_policy_of_a_model_that_has_none_is_refused(tmp_path):
    model = EgoStatusMLP(4)
    params = model.init(jax.random.key(0))
    with pytest.raises(TypeError, match="EgoStatusMLP has no official checkpoints with a reference policy"):
        save_official(tmp_path / "mlp.ckpt", params, model, old_policy=params)


def test_keys_of_no_known_part_are_refused(path):
    def change(state):
        state["agent.surprise"] = torch.zeros(1)

    with pytest.raises(ValueError, match=r"1 key\(s\) of no known part:\n  agent.surprise"):
        read_official(_rewrite(path, change))


def test_a_file_that_would_run_code_is_refused_by_the_name_of_its_class(tmp_path, planner):
    path, marker = tmp_path / "crafted.ckpt", tmp_path / "executed"
    torch.save({"state_dict": {}, "hyper_parameters": RunsCode(marker)}, path)
    with pytest.raises(ValueError, match=r"crafted.ckpt names (posix|os).mkdir"):
        load_official(path, planner)
    assert not marker.exists()


def test_plain_settings_beside_the_weights_are_allowed_and_classes_are_not(path, planner):
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] = collections.OrderedDict(lr=1e-4, names=("a", "b"))
    torch.save(content, path)
    load_official(path, planner)
    content["hyper_parameters"] = {"folder": pathlib.PurePosixPath("x")}
    torch.save(content, path)
    with pytest.raises(ValueError, match="names pathlib"):
        load_official(path, planner)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read"), (b"not a checkpoint", "cannot be read"), ({"weights": {}}, "no 'state_dict'")],
)
def test_files_of_another_kind_are_refused(tmp_path, planner, content, message):
    path = tmp_path / "other.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        load_official(path, planner)


def test_a_truncated_file_is_refused(path, planner):
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="cannot be read"):
        load_official(path, planner)


def test_a_missing_file_is_named(tmp_path, planner):
    with pytest.raises(FileNotFoundError, match="nowhere.ckpt"):
        load_official(tmp_path / "nowhere.ckpt", planner)


def test_incomplete_weights_are_not_written(tmp_path, planner, params):
    partial = {name: value for name, value in params.items() if name != "fusion_projector.bias"}
    with pytest.raises(ValueError, match="missing: fusion_projector.bias"):
        save_official(tmp_path / "partial.ckpt", partial, planner)
    assert list(tmp_path.iterdir()) == []


def test_entries_of_a_ddpm_planner_have_no_ddim_buffers_and_no_eta(make_planner, lively_params):
    planner = make_planner(diffusion=DDPM())
    entries = official_entries(lively_params(planner), planner)
    assert not [name for name in entries if name.startswith(("ddim_", "eta"))]
    assert len([name for name in entries if name.startswith("ddpm_")]) == 12
