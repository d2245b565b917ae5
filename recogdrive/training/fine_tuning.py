"""What fine-tuning of a VLM minimises: the model's loss over the parameters that train."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from recogdrive.models.bridge import Params
from recogdrive.models.vlm.internvl import Batch, InternVL
from recogdrive.models.vlm.trainable import TrainableSet, decays


class FineTuning:
    """Objective of Stage 1: next-token cross entropy of answers.

    Args:
      vlm: The model.
      trainable: Which parameters train; all unless given.
    """

    def __init__(self, vlm: InternVL, trainable: TrainableSet | None = None) -> None:
        self.vlm = vlm
        self._trainable = trainable or TrainableSet()
        self._shapes = {row.name: row.shape for row in vlm.parameter_table()}
        self._trained = frozenset(n for n in self._shapes if self._trainable.trains(n, vlm.config, vlm.lora))
        if not self._trained:
            raise ValueError("Nothing trains: every part is frozen and there are no adapters. Unfreeze one part.")

    def split(self, params: Params) -> tuple[Params, Params]:
        """Parameters that train, and those that do not, which keep the precision they are computed in."""
        trained = {name: value for name, value in params.items() if name in self._trained}
        kept = self.vlm.compute_dtype
        return trained, {name: value.astype(kept) for name, value in params.items() if name not in self._trained}

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial parameters that train."""
        return self.split(self.vlm.init(key))[0]

    def init_frozen(self, key: Key[Array, ""]) -> Params:
        """The others, drawn together with them."""
        return self.split(self.vlm.init(key))[1]

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """See `InternVL.loss`; `params` are trained and frozen ones together."""
        return self.vlm.loss(params, batch, key)

    def decayed(self, name: str) -> bool:
        """Whether weight decay applies to a parameter."""
        return decays(name, self.vlm.config)

    def update_mask(self, name: str) -> Array | None:
        """1 or 0 for each layer of a stack of which a part trains; None for all others."""
        mask = self._trainable.layer_mask(name, self.vlm.config, self.vlm.lora)
        if mask is None:
            return None
        return jnp.asarray(mask).reshape(-1, *[1] * (len(self._shapes[name]) - 1))

    def frozen_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the parameters that do not train."""
        return jax.eval_shape(self.init_frozen, jax.random.key(0))
