import math

import numpy as np
import pytest
import torch

from recogdrive.models.planner.dit import DiT, FinalLayer, RMSNorm, RotaryEmbedding, SwiGLU, TimestepEncoder

HEADS, HEAD_DIM, POINTS = 2, 4, 8


@pytest.fixture
def dit():
    torch.manual_seed(0)
    model = DiT(HEADS, HEAD_DIM, layers=2, output_dim=6, positions=POINTS)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def _context(dit, tokens, values):
    return dit.project_context(tokens, values) | {"tokens": tokens}


def test_rms_norm_has_its_epsilon_inside_the_root_and_a_weight_after():
    norm = RMSNorm(2)
    norm.weight.data = torch.tensor([2.0, 3.0])
    out = norm(torch.tensor([3e-3, 4e-3]))
    root = math.sqrt((9e-6 + 16e-6) / 2 + 1e-6)
    torch.testing.assert_close(out, torch.tensor([2 * 3e-3 / root, 3 * 4e-3 / root]))


def test_rms_norm_of_bfloat16_is_computed_in_float32():
    norm = RMSNorm(3).to(torch.bfloat16)
    x = torch.tensor([200.0, 1.0, 3.0], dtype=torch.bfloat16)
    wanted = (x.float() / torch.sqrt((x.float() ** 2).mean() + 1e-6)).to(torch.bfloat16)
    assert torch.equal(norm(x), wanted)


def test_rotary_code_pairs_channel_i_with_i_plus_half():
    rotary = RotaryEmbedding(4, positions=3)
    out = rotary(torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(1, 1, 3, 1, 4))
    for position in range(3):
        a, b = float(position), position / 100  # frequencies 10000^0 and 10000^(-1/2)
        wanted = [math.cos(a), -math.sin(b), math.sin(a), math.cos(b)]
        np.testing.assert_allclose(out[0, 0, position, 0], wanted, atol=1e-6)


def test_rotary_scores_depend_on_the_distance_only():
    rotary = RotaryEmbedding(HEAD_DIM, POINTS)
    q, k = torch.randn(2, HEAD_DIM)
    turned_q, turned_k = (rotary(v.expand(1, 1, POINTS, 1, HEAD_DIM))[0, 0, :, 0] for v in (q, k))
    torch.testing.assert_close(turned_q[5] @ turned_k[3], turned_q[2] @ turned_k[0])


def test_the_conditioning_time_code_is_cosine_first_with_127_as_divisor():
    encoder = TimestepEncoder(4)
    seen = []
    encoder.timestep_embedder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(torch.tensor([9]))
    angles = [9 * math.exp(-math.log(10000) * i / 127) for i in range(128)]
    np.testing.assert_allclose(seen[0][0], np.concatenate([np.cos(angles), np.sin(angles)]), atol=2e-6)


def test_the_feed_forward_gates_with_its_first_half():
    ffn = SwiGLU(2)
    x = torch.randn(5, 2)
    hidden = ffn.w12(x)
    gate, value = hidden[:, :2], hidden[:, 2:]
    torch.testing.assert_close(ffn(x), ffn.w3(gate * torch.sigmoid(gate) * value))


def test_the_final_layers_modulation_gives_the_shift_first():
    layer = FinalLayer(2, 3)
    torch.nn.init.zeros_(layer.modulation_proj[1].weight)
    layer.modulation_proj[1].bias.data = torch.tensor([1.0, 2.0, 0.5, -0.5])
    x = torch.randn(1, 1, 4, 2)
    wanted = layer.linear(layer.norm_final(x) * torch.tensor([1.5, 0.5]) + torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(layer(x, torch.zeros(1, 1, 2)), wanted)


def _cross_attention_by_loops(attention, x, tokens, rotary, keep):
    """One query, one head at a time."""
    heads = lambda y: y.reshape(*y.shape[:-1], HEADS, HEAD_DIM)  # noqa: E731
    q = rotary(attention.q_norm(heads(attention.to_q(x))))
    k, v = attention.k_norm(heads(attention.to_k(tokens))), heads(attention.to_v(tokens))
    out = torch.zeros_like(q)
    for b in range(x.shape[0]):
        for s in range(x.shape[1]):
            for point in range(POINTS):
                for h in range(HEADS):
                    scores = k[b, keep[b], h] @ q[b, s, point, h] / math.sqrt(HEAD_DIM)
                    out[b, s, point, h] = torch.softmax(scores, 0) @ v[b, keep[b], h]
    return attention.to_out[0](out.reshape(x.shape))


@pytest.mark.parametrize("values", [True, False], ids=["projected values", "pooled tokens"])
@pytest.mark.parametrize("masked", [True, False])
def test_cross_attention_is_softmax_attention_with_normalised_keys_and_rotated_queries(dit, values, masked):
    attention, rotary = dit.transformer_blocks[1].attn, dit.rotary_embedder
    x, tokens = torch.randn(2, 3, POINTS, 8), torch.randn(2, 5, 8)
    keep = torch.ones(2, 5, dtype=torch.bool)
    context = {name: v[0] for name, v in dit.project_context(tokens, values).items()} | {"tokens": tokens}
    if masked:
        keep[1, 2:] = False
        context["bias"] = (~keep) * torch.finfo(torch.float32).min
    found = attention.attend_to_context(x, context, rotary)
    torch.testing.assert_close(
        found, _cross_attention_by_loops(attention, x, tokens, rotary, keep), rtol=1e-4, atol=1e-5
    )


def test_self_attention_stays_within_each_sample(dit):
    attention, rotary = dit.transformer_blocks[0].attn, dit.rotary_embedder
    x = torch.randn(1, 2, POINTS, 8)
    changed = x.clone()
    changed[0, 1] += 1
    torch.testing.assert_close(
        attention.attend_to_itself(x, rotary)[0, 0], attention.attend_to_itself(changed, rotary)[0, 0]
    )


def test_self_attention_turns_queries_and_keys(dit):
    attention, rotary = dit.transformer_blocks[0].attn, dit.rotary_embedder
    x = torch.randn(1, 1, POINTS, 8)
    q, k = (
        rotary(norm(linear(x).reshape(1, 1, POINTS, HEADS, HEAD_DIM)))[0, 0].transpose(0, 1)
        for norm, linear in ((attention.q_norm, attention.to_q), (attention.k_norm, attention.to_k))
    )
    v = attention.to_v(x).reshape(POINTS, HEADS, HEAD_DIM).transpose(0, 1)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(1, 1, POINTS, 8)
    torch.testing.assert_close(attention.attend_to_itself(x, rotary), attention.to_out[0](wanted), rtol=1e-4, atol=1e-5)


def test_a_block_with_zero_modulation_is_the_identity(dit):
    block = dit.transformer_blocks[0]
    torch.nn.init.zeros_(block.adaLN_modulation[1].weight)
    torch.nn.init.zeros_(block.adaLN_modulation[1].bias)
    x = torch.randn(1, 1, POINTS, 8)
    assert torch.equal(block(x, torch.randn(1, 1, 8), dit.rotary_embedder, None), x)


def test_samples_of_one_scene_are_independent_of_each_other(dit):
    x, tokens, ego = torch.randn(2, 3, POINTS, 8), torch.randn(2, 5, 8), torch.randn(2, 8)
    t = torch.tensor([[1, 50, 99], [0, 7, 7]])
    together = dit(x, t, ego, _context(dit, tokens, True))
    for s in range(3):
        alone = dit(x[:, s : s + 1], t[:, s : s + 1], ego, _context(dit, tokens, True))
        torch.testing.assert_close(together[:, s : s + 1], alone, rtol=1e-4, atol=1e-5)
