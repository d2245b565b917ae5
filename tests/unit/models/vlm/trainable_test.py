import dataclasses

import numpy as np
import pytest

from recogdrive.models.vlm.config import VisionConfig, VlmConfig
from recogdrive.models.vlm.lora import Lora
from recogdrive.models.vlm.trainable import TrainableSet, decays

CONFIG = VlmConfig(vision=VisionConfig(layers=4))
TOWER, EMBEDDING = "model.vision_tower.encoder.layer.*.mlp.fc1.weight", "model.vision_tower.embeddings.cls_token"
PROJECTOR, DECODER = "model.multi_modal_projector.linear_1.weight", "model.language_model.layers.*.mlp.up_proj.weight"
HEAD = "lm_head.weight"
ALL = (TOWER, EMBEDDING, PROJECTOR, DECODER, HEAD)


def trained(lora=None, **flags):
    chosen = TrainableSet(**flags)
    return {name for name in ALL if chosen.trains(name, CONFIG, lora)}


def test_everything_trains_unless_frozen():
    assert trained() == set(ALL)
    assert trained(freeze_backbone=True) == {PROJECTOR, DECODER, HEAD}
    assert trained(freeze_llm=True) == {TOWER, EMBEDDING, PROJECTOR}
    assert trained(freeze_mlp=True) == set(ALL) - {PROJECTOR}


@pytest.mark.parametrize(("layers", "mask"), [(-2, [0, 0, 1, 1]), (1, [0, 1, 1, 1]), (0, None), (-4, None)])
def test_layers_of_a_frozen_tower_are_chosen_by_slicing(layers, mask):
    chosen = TrainableSet(freeze_backbone=True, unfreeze_vit_layers=layers)
    found = chosen.layer_mask(TOWER, CONFIG)
    assert found is None if mask is None else np.array_equal(found, mask)
    assert chosen.trains(TOWER, CONFIG) == (layers != 0)
    assert not chosen.trains(EMBEDDING, CONFIG)
    assert chosen.layer_mask(EMBEDDING, CONFIG) is None
    assert chosen.layer_mask(DECODER, CONFIG) is None


def test_a_part_with_adapters_trains_nothing_else():
    assert trained(lora=Lora(2)) == {TOWER, EMBEDDING, PROJECTOR}
    assert trained(lora=Lora(2, part="tower")) == {PROJECTOR, DECODER, HEAD}
    chosen = TrainableSet(freeze_backbone=True)
    assert chosen.trains(TOWER.replace("weight", "lora_a"), CONFIG, Lora(2, part="both"))


def test_layers_that_do_not_exist_and_names_of_no_part_are_refused():
    with pytest.raises(ValueError, match=r"unfreeze_vit_layers=4 .*-4 to 3"):
        TrainableSet(unfreeze_vit_layers=4).trains(TOWER, CONFIG)
    with pytest.raises(ValueError, match="action_head"):
        TrainableSet().trains("action_head.weight", CONFIG)


def test_weights_of_a_towers_rms_norms_decay_and_those_of_its_layer_norms_do_not():
    name = "model.vision_tower.encoder.layer.*.layernorm_before.weight"
    rms = dataclasses.replace(CONFIG, vision=dataclasses.replace(CONFIG.vision, norm="rms_norm"))
    assert not decays(name, CONFIG)
    assert decays(name, rms)
    assert decays("model.language_model.norm.weight", CONFIG)
    assert not decays("model.multi_modal_projector.layer_norm.weight", CONFIG)
