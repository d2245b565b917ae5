import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.models.vlm import layers
from recogdrive.models.vlm.config import internvl3_2b, internvl3_8b
from recogdrive.models.vlm.internvl import InternVL


@pytest.fixture(scope="module")
def hidden_states(tiny_vlm, lively, compiled):
    """The tiny model's hidden states without randomness, compiled once for two rows of twelve tokens and two tiles."""
    model = tiny_vlm()
    params = lively(model)
    cache = {}

    def run(batch):
        batch = {name: batch[name] for name in ("input_ids", "segment_ids", "position_ids", "tiles", "num_tiles")}
        if "run" not in cache:
            cache["run"] = compiled(model.hidden_states, params, batch)
        return np.asarray(cache["run"](params, batch))

    return run


@pytest.mark.parametrize(("config", "count"), [(internvl3_2b, 2_088_957_440), (internvl3_8b, 7_944_373_760)])
def test_the_released_models_have_their_number_of_weights_without_allocating_them(config, count):
    model = InternVL(config(), img_context_id=151_667)
    table = model.parameter_table()
    assert sum(row.count for row in table) == count
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    assert {name: value.shape for name, value in abstract.items()} == {row.name: row.shape for row in table}


def test_the_program_does_not_grow_with_the_number_of_layers(tiny_vlm, vlm_batch):
    base = tiny_vlm().config

    def operations(factor):
        vision = type(base.vision)(**{**vars(base.vision), "layers": 2 * factor})
        language = type(base.language)(**{**vars(base.language), "layers": 2 * factor})
        model = tiny_vlm(config=type(base)(vision=vision, language=language))
        params = jax.eval_shape(model.init, jax.random.key(0))
        text = jax.jit(jax.grad(lambda p, b: model.loss(p, b)[0])).lower(params, vlm_batch()).as_text()
        return text.count("stablehlo.")

    assert operations(5) == operations(1)


def test_padding_tiles_beyond_the_real_ones_and_their_pixels_change_nothing(hidden_states, vlm_batch):
    batch = vlm_batch()
    real = batch["segment_ids"] > 0
    before = hidden_states(batch)
    assert np.isfinite(before).all()
    batch["tiles"][1, 1:] = 255 - batch["tiles"][1, 1:]
    batch["input_ids"][~real] = 5
    np.testing.assert_array_equal(hidden_states(batch)[real], before[real])
    batch["tiles"][1, 0] = 255 - batch["tiles"][1, 0]
    after = hidden_states(batch)
    assert np.abs(after[1] - before[1])[real[1]].max() > 1e-3
    np.testing.assert_array_equal(after[0], before[0])


def test_segments_of_a_packed_row_come_out_as_rows_of_their_own(hidden_states, vlm_batch):
    apart = vlm_batch(lengths=(7, 5), tiles=(1, 1))
    packed = vlm_batch(lengths=(12, 7), tiles=(2, 1))
    for name in ("input_ids", "position_ids"):
        packed[name][0] = np.concatenate([apart[name][0, :7], apart[name][1, :5]])
    packed["segment_ids"][0] = [1] * 7 + [2] * 5
    packed["tiles"][0] = apart["tiles"][:, 0]
    apart["tiles"] = np.concatenate([apart["tiles"], apart["tiles"][:, :1]], axis=1)
    expected, found = hidden_states(apart), hidden_states(packed)[0]
    np.testing.assert_allclose(found[:7], expected[0, :7], atol=1e-5)
    np.testing.assert_allclose(found[7:], expected[1, :5], atol=1e-5)


def test_a_row_padded_on_the_left_has_the_states_of_one_padded_on_the_right(hidden_states, vlm_batch):
    right, left = vlm_batch(), vlm_batch(left=True)
    left["input_ids"][1, 5:] = right["input_ids"][1, :7]
    np.testing.assert_allclose(hidden_states(left)[1, 5:], hidden_states(right)[1, :7], atol=1e-5)


def test_text_alone_runs_without_any_tile(tiny_vlm, lively, vlm_batch):
    model = tiny_vlm()
    batch = vlm_batch(tiles=(0, 0))
    assert batch["tiles"].shape[1] == 0
    shape = jax.eval_shape(model.hidden_states, lively(model), batch).shape
    assert shape == (*batch["input_ids"].shape, model.context_width)


def test_every_remat_policy_gives_the_same_gradients_with_stochastic_depth_on(tiny_vlm, lively, vlm_batch, compiled):
    tiles, key = vlm_batch()["tiles"][0], jax.random.key(4)
    found = []
    for remat in layers.REMAT:
        model = tiny_vlm(remat=remat, drop_path_rate=0.5)
        params = lively(model)

        def total(params, tiles, key, model=model):
            return jnp.sin(model.image_features(params, tiles, key)).sum()

        found.append(compiled(jax.value_and_grad(total), params, tiles, key)(params, tiles, key))
    (value, gradients), *others = found
    assert np.abs(gradients["model.vision_tower.encoder.layer.*.mlp.fc1.weight"][-1]).max() > 1e-3
    for other_value, other in others:
        np.testing.assert_allclose(other_value, value, rtol=1e-5)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(other[name], gradient, atol=1e-4, err_msg=name)


def test_stochastic_depth_is_fresh_for_every_key_layer_and_tile_and_off_without_a_key(
    tiny_vlm, lively, vlm_batch, compiled
):
    model = tiny_vlm(drop_path_rate=0.5)
    params = lively(model)
    tiles = np.repeat(vlm_batch()["tiles"][:1, 0], 6, axis=0)
    train = compiled(model.image_features, params, tiles, jax.random.key(0))
    same, again, other = (np.asarray(train(params, tiles, jax.random.key(key))) for key in (0, 0, 1))
    np.testing.assert_array_equal(same, again)
    assert np.abs(same - other).max() > 1e-3
    assert len(np.unique(same[:, 0, 0])) > 1  # equal tiles, different masks
    still = np.asarray(compiled(model.image_features, params, tiles)(params, tiles))
    np.testing.assert_allclose(still, np.broadcast_to(still[:1], still.shape), atol=1e-5)


def test_every_layer_gets_a_key_of_its_own():
    drawn = []

    def layer(weights, hidden, own, key, rows):
        jax.debug.callback(lambda bits: drawn.append(tuple(map(int, bits))), jax.random.key_data(key))
        return hidden

    stacked = {"weight": jnp.zeros((4, 1))}
    layers.scan_layers(layer, stacked, jnp.zeros(2), remat="none", key=jax.random.key(0))
    jax.effects_barrier()
    assert len(set(drawn)) == 4


def test_training_in_bfloat16_stays_finite_with_rows_of_nothing(tiny_vlm, vlm_batch, compiled):
    model = tiny_vlm(compute_dtype="bfloat16", drop_path_rate=0.3, remat="none")
    batch = vlm_batch(lengths=(12, 7, 9, 0), tiles=(2, 1, 0, 0))
    batch["labels"][1:] = -100
    empty = {**batch, "labels": np.full_like(batch["labels"], -100)}
    params = compiled(model.init, jax.random.key(0))(jax.random.key(0))
    gradients = jax.value_and_grad(model.loss, has_aux=True)

    def update(params, batch, key):
        (loss, metrics), gradient = gradients(params, batch, key)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), loss, metrics

    step = compiled(update, params, batch, jax.random.key(0))
    losses = []
    for index in range(6):
        chosen = empty if index % 3 == 1 else batch
        params, loss, metrics = step(params, chosen, jax.random.key(index))
        losses.append(float(loss))
        assert (loss == 0) == (chosen is empty)
        assert metrics["accuracy"] >= 0
    assert np.isfinite(losses).all()
    assert all(np.isfinite(value).all() for value in params.values())
    assert {str(value.dtype) for value in params.values()} == {"float32"}


def test_no_float32_logits_of_whole_rows_exist_in_the_training_program(tiny_vlm, vlm_batch):
    model = tiny_vlm(loss_chunk=4)
    batch = vlm_batch()
    params = jax.eval_shape(model.init, jax.random.key(0))
    text = jax.jit(jax.grad(lambda p, b: model.loss(p, b)[0])).lower(params, batch).as_text()
    vocab = model.config.language.vocab_size
    assert f"tensor<2x4x{vocab}xf32>" in text
    assert f"x12x{vocab}x" not in text
    assert f"tensor<24x{vocab}x" not in text


def test_the_kernels_training_program_is_made_for_a_tpu_on_a_machine_without_one(tiny_vlm, vlm_batch):
    model = tiny_vlm(attention="splash", compute_dtype="bfloat16")
    params = jax.eval_shape(model.init, jax.random.key(0))
    traced = jax.jit(jax.grad(lambda p, b: model.loss(p, b)[0])).trace(params, vlm_batch())
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    # Tower and language model: forward, recomputed forward, and the backward passes to queries and to keys and values.
    assert text.count("tpu_custom_call") >= 2 * 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"img_context_id": 64}, r"img_context_id=64 .*64"),
        ({"remat": "some"}, r"remat='some' .*'full', 'dots', 'none'"),
        ({"compute_dtype": "float16"}, r"compute_dtype='float16' .*'float32' or 'bfloat16'"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate=1.0"),
        ({"loss_mean": "token"}, r"loss_mean='token' .*'group' or 'global'"),
        ({"loss_chunk": 0}, r"loss_chunk=0"),
        ({"attention": "eager"}, r"attention='eager'"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_vlm, setting, message):
    with pytest.raises(ValueError, match=message):
        tiny_vlm(**setting)


def test_a_batch_that_does_not_fit_is_refused_by_the_entry(tiny_vlm, vlm_batch):
    model, batch = tiny_vlm(), vlm_batch()
    run = functools.partial(jax.eval_shape, model.hidden_states, jax.eval_shape(model.init, jax.random.key(0)))
    with pytest.raises(ValueError, match=r"lacks tiles"):
        run({name: value for name, value in batch.items() if name != "tiles"})
    with pytest.raises(ValueError, match=r"'tiles'\] is \(2, 2, 28, 14, 3\), expected \(2, 2, 28, 28, 3\)"):
        run({**batch, "tiles": batch["tiles"][:, :, :, :14]})
    with pytest.raises(ValueError, match=r"no 'labels'"):
        model.loss({}, {name: value for name, value in batch.items() if name != "labels"})
