import math

import numpy as np
import pytest
import torch
from torch import nn

from recogdrive.models.planner.encoders import MLP, ActionEncoder, AttentionEgoStatus, MLPEgoStatus


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_the_mlp_normalises_after_its_activation():
    mlp = MLP(3, 5, 2)
    x = torch.randn(4, 3)
    hidden = mlp.fc1(x)
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    normed = (gelu - gelu.mean(-1, keepdim=True)) / torch.sqrt(gelu.var(-1, keepdim=True, unbiased=False) + 1e-5)
    torch.testing.assert_close(mlp(x), mlp.fc2(normed))


def test_the_action_encoders_time_code_is_sine_first_with_the_half_width_as_divisor():
    encoder = ActionEncoder(3, 8)
    seen = []
    encoder.fc2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(torch.zeros(1, 2, 3), torch.tensor([7]))
    code = seen[0][0, 0, 8:].detach().numpy()
    angles = [7 * 10000 ** (-i / 4) for i in range(4)]
    np.testing.assert_allclose(code, np.concatenate([np.sin(angles), np.cos(angles)]), rtol=1e-5)


def test_every_point_of_a_trajectory_gets_the_same_time_code():
    encoder = ActionEncoder(3, 8)
    out = encoder(torch.ones(2, 4, 3), torch.tensor([3, 50]))
    torch.testing.assert_close(out[0, 0], out[0, 3])
    assert not torch.allclose(out[0, 0], out[1, 0])


@pytest.fixture
def attention():
    encoder = AttentionEgoStatus().build(dim=16, hidden_dim=99)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter)
    return encoder


@pytest.mark.parametrize("masked", [None, [[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]])
def test_the_attention_encoder_is_multihead_attention_of_one_query_over_status_tokens(attention, masked):
    status = torch.randn(2, 8)
    tokens = torch.stack([linear(status[:, i : i + 1]) for i, linear in enumerate(attention.linears)], 1)
    padding = None
    if masked is not None:
        masked = torch.tensor(masked)
        padding = torch.cat([masked.bool(), torch.zeros(2, 4, dtype=torch.bool)], 1)
    tokens = tokens + attention.pos_embed
    wanted, _ = attention.attn(attention.query.expand(2, -1, -1), tokens, tokens, key_padding_mask=padding)
    torch.testing.assert_close(attention(status, masked), wanted[:, 0], rtol=1e-4, atol=1e-4)


def test_hidden_entries_have_no_influence(attention):
    status = torch.randn(1, 8)
    other = status.clone()
    other[0, 2] = 100.0
    masked = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    torch.testing.assert_close(attention(status, masked), attention(other, masked))
    assert not torch.allclose(attention(status), attention(other))


def test_only_the_attention_encoder_hides_entries_in_training():
    assert MLPEgoStatus().mask_probability == 0
    assert (AttentionEgoStatus().mask_probability, AttentionEgoStatus().masked_channels) == (0.75, 4)


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_a_mask_probability_outside_the_unit_interval_is_refused(probability):
    with pytest.raises(ValueError, match=f"mask_probability={probability}"):
        AttentionEgoStatus(mask_probability=probability)


def test_a_width_that_does_not_divide_over_the_heads_is_refused():
    with pytest.raises(ValueError, match="width 18 does not divide over 4"):
        AttentionEgoStatus().build(dim=18, hidden_dim=1)
