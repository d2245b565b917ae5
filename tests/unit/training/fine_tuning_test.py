"""The objective of fine-tuning: what trains, what decays, what an update over micro-batches comes to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.models.vlm.lora import Lora
from recogdrive.models.vlm.trainable import TrainableSet
from recogdrive.training.fine_tuning import FineTuning
from recogdrive.training.optim import AdamW, Constant
from recogdrive.training.sharding import DataParallel
from recogdrive.training.state import create_state
from recogdrive.training.step import make_train_step

LAYER = "model.vision_tower.encoder.layer.*.mlp.fc1."


@pytest.fixture(scope="module")
def params(tiny_sft):
    vlm = tiny_sft.vlm()
    return {name: np.asarray(value) for name, value in jax.jit(vlm.init)(jax.random.key(0)).items()}


def test_all_parameters_train_unless_told_otherwise(tiny_sft, params):
    trained, frozen = FineTuning(tiny_sft.vlm()).split(params)
    assert trained.keys() == params.keys() and not frozen


def test_every_parameter_is_in_one_part_and_frozen_ones_are_in_the_precision_they_are_used_in(tiny_sft, params):
    objective = FineTuning(tiny_sft.vlm(compute_dtype="bfloat16"), TrainableSet(freeze_llm=True))
    trained, frozen = objective.split(params)
    assert sorted([*trained, *frozen]) == sorted(params)
    assert {value.dtype for value in trained.values()} == {np.dtype(np.float32)}
    assert {value.dtype for value in frozen.values()} == {np.dtype(jnp.bfloat16)}
    assert "lm_head.weight" in frozen


def test_shapes_of_frozen_parameters_are_known_without_drawing_them(tiny_sft, params):
    objective = FineTuning(tiny_sft.vlm(), TrainableSet(freeze_mlp=True))
    _, frozen = objective.split(params)
    shapes = objective.frozen_shapes()
    assert {n: (s.shape, s.dtype) for n, s in shapes.items()} == {n: (v.shape, v.dtype) for n, v in frozen.items()}


def test_parts_drawn_apart_are_those_drawn_together(tiny_sft, params):
    objective = FineTuning(tiny_sft.vlm(), TrainableSet(freeze_backbone=True))
    key = jax.random.key(0)
    drawn = jax.jit(objective.init)(key) | jax.jit(objective.init_frozen)(key)
    for name, value in params.items():
        np.testing.assert_array_equal(drawn[name], value)


def test_nothing_to_train_is_refused(tiny_sft):
    everything = TrainableSet(freeze_backbone=True, freeze_llm=True, freeze_mlp=True)
    with pytest.raises(ValueError, match="Nothing trains"):
        FineTuning(tiny_sft.vlm(), everything)
    FineTuning(tiny_sft.vlm(lora=Lora(rank=1)), everything)


def test_masks_are_one_number_a_layer_and_only_where_layers_differ(tiny_sft):
    objective = FineTuning(tiny_sft.vlm(), TrainableSet(freeze_backbone=True, unfreeze_vit_layers=-1))
    assert objective.update_mask(f"{LAYER}weight").tolist() == [[[0.0]], [[1.0]]]
    assert objective.update_mask(f"{LAYER}bias").tolist() == [[0.0], [1.0]]
    assert objective.update_mask("lm_head.weight") is None
    assert FineTuning(tiny_sft.vlm()).update_mask(f"{LAYER}weight") is None


def test_biases_and_layer_norms_do_not_decay(tiny_sft):
    decayed = FineTuning(tiny_sft.vlm()).decayed
    assert not decayed(f"{LAYER}bias") and not decayed("model.multi_modal_projector.layer_norm.weight")
    assert decayed(f"{LAYER}weight") and decayed("model.language_model.norm.weight")


@pytest.fixture(scope="module")
def batch(tiny_sft, tmp_path_factory):
    """Four rows of packed conversations."""
    data = tiny_sft.data()
    samples, survey = data.samples(data.open_train(), tiny_sft.tokenizer, 1, 0, tmp_path_factory.mktemp("survey"))
    stream = data.stream(samples, survey, batch_size=4, seed=0, process_index=0, process_count=1)
    first = next(stream)
    stream.close()
    return first


def first_update(objective, params, batch, accumulation_steps):
    """Weights after one step of plain AdamW, and its metrics."""
    sharding = DataParallel(1)
    transformation, rate = AdamW(Constant(1e-2), clip_norm=None).build(4, 100, 10, objective.decayed)
    state = create_state(
        {n: jnp.array(v) for n, v in params.items()}, transformation, jax.random.key(1), with_ema=False
    )
    step = make_train_step(
        objective, transformation, rate, sharding, sharding.state_sharding(state), accumulation_steps=accumulation_steps
    )
    after, metrics = step(sharding.put_state(state), sharding.put_batch(batch, 4))
    # The first moment is the gradient times 0.1; Adam's first step alone would only tell its sign.
    return after.opt_state[1][0].mu, jax.device_get(metrics)


def test_micro_batches_have_the_gradient_of_the_whole_batch(tiny_sft, params, batch):
    """Rows that differ in their number of labels: each is a group, and groups count alike in any division."""
    objective = FineTuning(tiny_sft.vlm())
    whole, metrics = first_update(objective, params, batch, 1)
    parts, of_parts = first_update(objective, params, batch, 2)
    assert len(np.unique((batch["labels"] >= 0).sum(axis=1))) > 1
    assert of_parts["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    largest = max(np.abs(np.asarray(value)).max() for value in whole.values())
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-4, atol=1e-5 * largest, err_msg=name)


def test_weights_of_labels_scale_out_within_a_row(tiny_sft, params, batch):
    vlm = tiny_sft.vlm()
    loss = jax.jit(lambda b: vlm.loss(params, b)[0])
    doubled = batch | {"loss_weight": 2 * batch["loss_weight"]}
    assert float(loss(doubled)) == pytest.approx(float(loss(batch)), rel=1e-5)
