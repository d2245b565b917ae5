import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.models.vlm.lora import LANGUAGE_LINEARS, VISION_LINEARS, Lora, is_adapter, merge_lora

LORA = Lora(rank=3, dropout=0.5, part="both")


@pytest.fixture(scope="module")
def adapted(tiny_vlm, lively):
    model = tiny_vlm(lora=LORA)
    return model, lively(model)


@pytest.fixture
def batch(vlm_batch):
    whole = vlm_batch()
    return {name: whole[name] for name in ("input_ids", "segment_ids", "position_ids", "tiles", "num_tiles")}


def test_merged_weights_compute_what_the_adapters_do(tiny_vlm, adapted, batch, compiled):
    model, params = adapted
    merged = merge_lora(params, LORA)
    base = tiny_vlm()
    assert {name: value.shape for name, value in merged.items()} == base.parts.shapes
    found = compiled(base.hidden_states, merged, batch)(merged, batch)
    expected = compiled(model.hidden_states, params, batch)(params, batch)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    without = {name: value for name, value in params.items() if not is_adapter(name)}
    assert np.abs(compiled(base.hidden_states, without, batch)(without, batch) - expected).max() > 1e-2


def test_dropout_of_the_adapters_is_fresh_for_every_key(adapted, batch, compiled):
    model, params = adapted
    run = compiled(model.hidden_states, params, batch, jax.random.key(0))
    first, again, other = (np.asarray(run(params, batch, jax.random.key(k))) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2


@pytest.mark.parametrize("part", ["llm", "tower", "both"])
def test_each_linear_layer_of_the_chosen_part_carries_an_adapter(tiny_vlm, part):
    names = [row.name for row in tiny_vlm(lora=Lora(2, part=part)).parameter_table() if row.name.endswith(".lora_a")]
    language = {name.split(".")[-2] for name in names if "language_model" in name}
    tower = {name.split(".")[-2] for name in names if "vision_tower" in name}
    assert language == (set(LANGUAGE_LINEARS) if part in ("llm", "both") else set())
    assert tower == (set(VISION_LINEARS) if part in ("tower", "both") else set())


def test_a_fresh_adapter_adds_nothing(tiny_vlm, compiled):
    model = tiny_vlm(lora=Lora(4))
    params = compiled(model.init, jax.random.key(0))(jax.random.key(0))
    merged = merge_lora(params, Lora(4))
    for name, value in merged.items():
        np.testing.assert_array_equal(value, params[name])
    a = np.asarray(params["model.language_model.layers.*.mlp.down_proj.lora_a"])
    bound = 1 / np.sqrt(a.shape[-1])
    assert 0.9 * bound < np.abs(a).max() <= bound
    np.testing.assert_allclose(a.std(), bound / np.sqrt(3), rtol=0.1)


def test_alpha_is_twice_the_rank_unless_given():
    assert Lora(8).scale == 2
    assert Lora(8, alpha=4).scale == 0.5


@pytest.mark.parametrize("settings", [{"rank": 0}, {"rank": 2, "dropout": 1.0}, {"rank": 2, "part": "head"}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="Lora."):
        Lora(**settings)


def test_half_an_adapter_is_refused_with_its_name():
    with pytest.raises(ValueError, match=r"adapter of x\.q_proj .*\.lora_b"):
        merge_lora({"x.q_proj.weight": jnp.ones((2, 2)), "x.q_proj.lora_a": jnp.ones((1, 2))}, Lora(1))
