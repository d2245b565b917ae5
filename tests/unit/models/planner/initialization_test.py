import math

import jax
import numpy as np
import pytest
import torch

from recogdrive.models.planner.encoders import AttentionEgoStatus


@pytest.fixture
def params(program, key):
    return program("init", heads=4, head_dim=16, hidden_dim=128, output_dim=64)(key)


def test_modulation_layers_start_at_zero_and_norms_at_one(params):
    for name, value in params.items():
        if "adaLN" in name or "modulation_proj" in name:
            assert not value.any(), name
        elif "norm" in name and name.endswith("weight"):
            assert (value == 1).all(), name
        elif "norm" in name:
            assert not value.any(), name


def test_linear_layers_are_uniform_within_one_over_root_fan_in(params):
    weight, bias = params["model.transformer_blocks.1.attn.to_k.weight"], params["fusion_projector.bias"]
    bound = 1 / math.sqrt(64)
    assert 0.99 * bound < np.abs(weight).max() <= bound
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert abs(float(weight.mean())) < 0.01 * bound * 3
    assert np.abs(bias).max() <= 1 / math.sqrt(3 * 64)


def test_the_position_embedding_is_normal_with_std_0_02(params):
    assert float(params["position_embedding.weight"].std()) == pytest.approx(0.02, rel=0.1)


def test_no_two_tensors_share_their_numbers(params):
    seen = [v for name, v in params.items() if v.ndim == 2 and v.any()]
    starts = {tuple(np.asarray(v).ravel()[:3]) for v in seen}
    assert len(starts) == len(seen)


def test_the_same_key_gives_the_same_weights_and_another_key_others(program):
    first, again, other = (program("init")(jax.random.key(k)) for k in (0, 0, 1))
    name = "feature_encoder.weight"
    np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first[name], other[name])


def test_initialisation_leaves_torchs_random_state_alone(make_planner, key):
    before = torch.get_rng_state()
    make_planner().init(key)
    assert torch.equal(before, torch.get_rng_state())


def test_shapes_are_known_without_drawing(make_planner, key):
    planner = make_planner()
    abstract = jax.eval_shape(planner.init, key)
    assert {(n, v.shape, v.dtype.name) for n, v in abstract.items()} == {
        (row.name, row.shape, row.dtype) for row in planner.parameter_table()
    }


def test_the_attention_encoder_starts_as_torchs_multihead_attention(make_planner, key):
    params = make_planner(heads=4, head_dim=16, ego_status=AttentionEgoStatus()).init(key)
    of_encoder = {n.removeprefix("ego_status_encoder."): v for n, v in params.items() if "ego_status" in n}
    bound = math.sqrt(6 / (64 + 3 * 64))
    assert 0.99 * bound < np.abs(of_encoder["attn.in_proj_weight"]).max() <= bound
    assert not of_encoder["attn.in_proj_bias"].any()
    assert not of_encoder["attn.out_proj.bias"].any()
    assert np.abs(of_encoder["attn.out_proj.weight"]).max() <= 1 / math.sqrt(64)
    assert float(of_encoder["pos_embed"].std()) == pytest.approx(0.02, rel=0.15)
    assert np.abs(of_encoder["linears.3.weight"]).max() <= 1
