"""Which parameters of an InternVL train, and which of them decay."""

import gin
import numpy as np
from absl import logging
from jaxtyping import Float

from recogdrive.models.vlm.config import VlmConfig
from recogdrive.models.vlm.layers import PROJECTOR, VISION_LAYERS
from recogdrive.models.vlm.lora import Lora, is_adapter

_TOWER, _LANGUAGE, _HEAD = "model.vision_tower.", "model.language_model.", "lm_head."


@gin.register
class TrainableSet:
    """Decides by name which parameters train; everything unless told otherwise.

    Adapters always train. A part that carries adapters is frozen but for them.

    Args:
      freeze_backbone: Freezes the vision tower.
      freeze_llm: Freezes the language model, embedding and head included.
      freeze_mlp: Freezes the projector.
      unfreeze_vit_layers: n other than 0 trains the tower's layers[n:] all the same, in Python's slicing: -2 the last
        two, 2 all from the third.
      unfreeze_lm_head: Accepted, and without effect, as in the reference; a warning says so.

    Source: upstream `internvl_chat_finetune.main`.
    """

    def __init__(
        self,
        freeze_backbone: bool = False,
        freeze_llm: bool = False,
        freeze_mlp: bool = False,
        unfreeze_vit_layers: int = 0,
        unfreeze_lm_head: bool = False,
    ):
        if not isinstance(unfreeze_vit_layers, int) or isinstance(unfreeze_vit_layers, bool):
            raise ValueError(f"unfreeze_vit_layers={unfreeze_vit_layers!r} must be a whole number.")
        self.freeze_backbone, self.freeze_llm, self.freeze_mlp = freeze_backbone, freeze_llm, freeze_mlp
        self.unfreeze_vit_layers = unfreeze_vit_layers
        if unfreeze_lm_head and freeze_llm:
            logging.warning("unfreeze_lm_head has no effect, as in the reference: the head stays frozen with the LLM.")

    def trains(self, name: str, config: VlmConfig, lora: Lora | None = None) -> bool:
        """Whether a parameter trains, be it in some layers only.

        Raises:
          ValueError: The name is of no part of the model, or `unfreeze_vit_layers` names no layer.
        """
        if is_adapter(name):
            return True
        if name.startswith(VISION_LAYERS):
            return bool(self._layers(config, lora).any())
        if name.startswith(_TOWER):
            return not self._tower_frozen(lora)
        if name.startswith(PROJECTOR):
            return not self.freeze_mlp
        if name.startswith((_LANGUAGE, _HEAD)):
            return not (self.freeze_llm or (lora is not None and lora.on_language_model))
        raise ValueError(f"{name} is no parameter of an InternVL model.")

    def layer_mask(self, name: str, config: VlmConfig, lora: Lora | None = None) -> Float[np.ndarray, "L"] | None:
        """Factor of a parameter's gradient in each layer, 1 or 0; None where all layers train, or none does.

        A masked parameter must not decay in its frozen layers either: mask the update, not only the gradient.
        """
        if not name.startswith(VISION_LAYERS) or is_adapter(name):
            return None
        layers = self._layers(config, lora)
        return None if layers.all() or not layers.any() else layers.astype(np.float32)

    def _tower_frozen(self, lora: Lora | None) -> bool:
        return self.freeze_backbone or (lora is not None and lora.on_tower)

    def _layers(self, config: VlmConfig, lora: Lora | None) -> np.ndarray:
        """(layers,) whether the weights of each layer of the tower train."""
        count = config.vision.layers
        layers = np.full(count, not self._tower_frozen(lora))
        if self.unfreeze_vit_layers:
            if not -count <= self.unfreeze_vit_layers < count:
                raise ValueError(
                    f"unfreeze_vit_layers={self.unfreeze_vit_layers} names no layer of a tower of {count}; "
                    f"choose {-count} to {count - 1}."
                )
            layers[self.unfreeze_vit_layers :] = True
        return layers


def decays(name: str, config: VlmConfig) -> bool:
    """Whether weight decay applies: to all but biases and the weights of torch's LayerNorms.

    The RMSNorms of the language model, layer scale, class token and position table decay.

    Source: upstream's trainer, transformers 4.37 `get_decay_parameter_names`.
    """
    if name.endswith(".bias") or name.startswith(f"{PROJECTOR}layer_norm."):
        return False
    block_norm = name.startswith((f"{VISION_LAYERS}layernorm_before.", f"{VISION_LAYERS}layernorm_after."))
    return not (block_norm and config.vision.norm == "layer_norm")
