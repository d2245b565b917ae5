"""The ego-status MLP against plain torch and numbers worked out by hand; its official checkpoints."""

import os
from collections import OrderedDict

import jax
import numpy as np
import pytest
import torch

from recogdrive.models.ego_status_mlp import EgoStatusMLP, EgoStatusNetwork, ego_feature
from recogdrive.models.planner.official_checkpoint import load_official, official_layout, read_official, save_official

KEY = jax.random.key(0)
# Command one-hot (left, straight, right, unknown), velocity x y, acceleration x y: the order of a batch.
STATUS = np.array([[0, 1, 0, 0, 5.0, -0.5, 1.0, 0.25], [1, 0, 0, 0, 2.0, 0.5, -3.0, 0.0]], dtype=np.float32)
NAMES = [f"_mlp.{layer}.{kind}" for layer in (0, 2, 4, 6) for kind in ("weight", "bias")]


def navsim_module(hidden_dim=512):
    """The official module, as NAVSIM's agent holds it."""
    linear, relu = torch.nn.Linear, torch.nn.ReLU
    layers = [linear(8, hidden_dim), relu(), linear(hidden_dim, hidden_dim), relu()]
    layers += [linear(hidden_dim, hidden_dim), relu(), linear(hidden_dim, 24)]
    return torch.nn.Sequential(*layers)


def random_params(model, seed=3):
    rng = np.random.default_rng(seed)
    return {row.name: rng.normal(0, 0.3, row.shape).astype(np.float32) for row in model.parameter_table()}


def in_torch(params, hidden_dim):
    module = navsim_module(hidden_dim)
    module.load_state_dict({k.removeprefix("_mlp."): torch.from_numpy(np.array(v)) for k, v in params.items()})
    return module


def batch(trajectory=None):
    trajectory = np.zeros((2, 8, 3), np.float32) if trajectory is None else trajectory
    return {"status_feature": STATUS, "trajectory": trajectory}


def test_there_are_542232_weights_under_the_official_names():
    table = EgoStatusMLP().parameter_table()
    assert [row.name for row in table] == NAMES
    assert sum(row.count for row in table) == 542_232


def test_the_feature_has_velocity_then_acceleration_then_command():
    np.testing.assert_array_equal(ego_feature(STATUS)[0], [5.0, -0.5, 1.0, 0.25, 0, 1, 0, 0])


def test_a_forward_pass_worked_out_by_hand():
    model = EgoStatusMLP(hidden_dim=1)
    params = {
        "_mlp.0.weight": np.array([[1, 0, 2, 0, 3, 0, 0, 0]], np.float32),  # vx + 2 ax + 3 left
        "_mlp.0.bias": np.array([0.5], np.float32),
        "_mlp.2.weight": np.array([[2.0]], np.float32),
        "_mlp.2.bias": np.array([-1.0], np.float32),
        "_mlp.4.weight": np.array([[-1.0]], np.float32),
        "_mlp.4.bias": np.array([20.0], np.float32),
        "_mlp.6.weight": np.arange(24, dtype=np.float32)[:, None],
        "_mlp.6.bias": np.full(24, -1.0, np.float32),
    }
    # Scene 0: 5 + 2 + 0.5 = 7.5, then 14, then 6. Scene 1: 2 - 6 + 3 + 0.5 = -0.5, cut to 0; -1, cut to 0; 20.
    wanted = np.array([6.0, 20.0])[:, None] * np.arange(24) - 1
    np.testing.assert_allclose(model.plan(params, batch(), KEY), wanted.reshape(2, 8, 3), rtol=1e-6)


def test_every_hidden_layer_is_rectified_and_the_last_is_not():
    model = EgoStatusMLP(hidden_dim=1)
    params = {row.name: np.full(row.shape, -1.0, np.float32) for row in model.parameter_table()}
    # Hidden values are negative and cut to 0 everywhere, so the last layer gives its bias, negative as it is.
    np.testing.assert_array_equal(model.plan(params, batch(), KEY), -1.0)


def test_plan_loss_and_gradient_are_those_of_plain_torch():
    model = EgoStatusMLP(hidden_dim=16)
    params = random_params(model)
    driven = np.random.default_rng(1).normal(0, 5, (2, 8, 3)).astype(np.float32)
    value_and_grad = jax.jit(jax.value_and_grad(model.loss, has_aux=True))
    (loss, _), gradient = value_and_grad(params, batch(driven), KEY)

    module = in_torch(params, 16)
    feature = torch.tensor(np.concatenate([STATUS[:, 4:], STATUS[:, :4]], axis=1))
    planned = module(feature).reshape(-1, 8, 3)
    reference = torch.nn.functional.l1_loss(planned, torch.from_numpy(driven))
    reference.backward()

    np.testing.assert_allclose(model.plan(params, batch(), KEY), planned.detach(), rtol=1e-5, atol=1e-5)
    assert float(loss) == pytest.approx(reference.item(), rel=1e-5)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(gradient[f"_mlp.{name}"], parameter.grad, rtol=1e-4, atol=1e-6)


def constant_plan(model, pose):
    """Weights under which every pose of every scene is `pose`."""
    params = {row.name: np.zeros(row.shape, np.float32) for row in model.parameter_table()}
    return params | {"_mlp.6.bias": np.tile(np.array(pose, np.float32), 8)}


def test_the_loss_is_the_mean_over_all_entries_with_its_parts():
    model = EgoStatusMLP(hidden_dim=2)
    loss, parts = model.loss(constant_plan(model, (3.0, -1.0, 0.2)), batch(), KEY)
    assert float(loss) == pytest.approx((3.0 + 1.0 + 0.2) / 3)
    assert {name: float(value) for name, value in parts.items()} == pytest.approx(
        {"mae_x": 3.0, "mae_y": 1.0, "mae_heading": 0.2}
    )


def test_headings_are_compared_as_numbers():
    """Nearly equal directions on either side of pi are nearly a full turn apart, as in the official loss."""
    model = EgoStatusMLP(hidden_dim=2)
    driven = np.tile(np.array([0.0, 0.0, -3.1], np.float32), (2, 8, 1))
    _, parts = model.loss(constant_plan(model, (0.0, 0.0, 3.1)), batch(driven), KEY)
    assert float(parts["mae_heading"]) == pytest.approx(6.2, rel=1e-6)


def test_initial_weights_are_uniform_as_torchs_and_follow_the_key_alone():
    model = EgoStatusMLP(hidden_dim=64)
    params, again = model.init(jax.random.key(1)), model.init(jax.random.key(1))
    other = model.init(jax.random.key(2))
    for name, value in params.items():
        bound = 1 / np.sqrt(8 if name.startswith("_mlp.0.") else 64)
        assert np.abs(value).max() <= bound, name
        assert np.abs(value).max() > 0.8 * bound, name
        np.testing.assert_array_equal(value, again[name])
        assert not np.array_equal(value, other[name]), name
    # A uniform law over [-b, b] has standard deviation b / sqrt(3).
    assert float(params["_mlp.2.weight"].std()) == pytest.approx(1 / np.sqrt(3 * 64), rel=0.03)


@pytest.mark.parametrize(
    ("entries", "message"),
    [({}, "found none"), ({"status_feature": np.zeros((2, 7))}, r"found \(2, 7\)")],
)
def test_a_batch_without_a_status_of_eight_entries_is_refused(entries, message):
    model = EgoStatusMLP(hidden_dim=2)
    with pytest.raises(ValueError, match=r"status_feature'\] must be \(B, 8\); " + message):
        model.plan(random_params(model), entries, KEY)


@pytest.mark.parametrize("hidden_dim", [0, 1.5])
def test_a_width_that_is_no_positive_number_is_refused(hidden_dim):
    with pytest.raises(ValueError, match=f"hidden_dim={hidden_dim}"):
        EgoStatusMLP(hidden_dim)


def test_an_export_is_what_the_official_module_loads(tmp_path):
    model = EgoStatusMLP(hidden_dim=4)
    params = random_params(model)
    save_official(tmp_path / "mlp.ckpt", params, model)
    content = torch.load(tmp_path / "mlp.ckpt", weights_only=True)
    assert list(content["state_dict"]) == [f"agent.{name}" for name in NAMES]
    official = torch.nn.ModuleDict({"agent": torch.nn.ModuleDict({"_mlp": navsim_module(4)})})
    official.load_state_dict(content["state_dict"], strict=True)
    for name, value in params.items():
        np.testing.assert_array_equal(official.state_dict()[f"agent.{name}"], value)


def test_a_file_of_the_official_code_plans_as_the_official_module(tmp_path):
    module = navsim_module(4)
    state = OrderedDict((f"agent._mlp.{name}", value) for name, value in module.state_dict().items())
    torch.save({"state_dict": state, "epoch": 99, "hyper_parameters": {"lr": 1e-4}}, tmp_path / "official.ckpt")
    model = EgoStatusMLP(hidden_dim=4)
    params = load_official(tmp_path / "official.ckpt", model)
    wanted = module(torch.tensor(np.concatenate([STATUS[:, 4:], STATUS[:, :4]], axis=1))).reshape(-1, 8, 3)
    np.testing.assert_allclose(model.plan(params, batch(), KEY), wanted.detach(), rtol=1e-5, atol=1e-6)


def test_a_file_of_another_model_or_width_is_refused_by_the_names_that_differ(tmp_path):
    path = tmp_path / "other.ckpt"
    save_official(path, random_params(EgoStatusMLP(hidden_dim=3)), EgoStatusMLP(hidden_dim=3))
    with pytest.raises(ValueError, match=r"(?s)other.ckpt does not hold this model.*_mlp.0.bias is \(3,\)"):
        load_official(path, EgoStatusMLP(hidden_dim=4))
    torch.save({"state_dict": {"agent.action_head.model.weight": torch.zeros(2)}}, path)
    with pytest.raises(ValueError, match=r"(?s)missing: _mlp.0.weight.*unknown: action_head.model.weight"):
        load_official(path, EgoStatusMLP(hidden_dim=4))


def test_keys_outside_the_agent_are_refused(tmp_path):
    torch.save({"state_dict": {"loss.weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"1 key\(s\) of no known part:\n  loss.weight"):
        read_official(tmp_path / "other.ckpt", official_layout(EgoStatusMLP()).prefix, {})


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class RunsCode:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"state_dict": {}, "hyper_parameters": RunsCode()}, tmp_path / "crafted.ckpt")
    with pytest.raises(ValueError, match=r"crafted.ckpt names (posix|os).mkdir"):
        load_official(tmp_path / "crafted.ckpt", EgoStatusMLP())
    assert not (tmp_path / "executed").exists()


def test_a_model_without_official_checkpoints_is_named():
    with pytest.raises(TypeError, match="EgoStatusNetwork has no official checkpoints"):
        official_layout(EgoStatusNetwork(2))
