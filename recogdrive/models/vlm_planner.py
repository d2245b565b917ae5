"""VLM and planner in one program: hidden states are made where they are used, no cache lies between."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float, Key

from recogdrive.data.vlm.scene_prompts import ScenePrompts
from recogdrive.data.vlm.tokenizer import VlmTokenizer
from recogdrive.data.vlm.weights_folder import ORIGINAL, TRANSFORMERS, find_weights_folder
from recogdrive.models.bridge import Params
from recogdrive.models.planner.planner import ParameterRow
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.models.vlm.loading import VlmWeights, load_vlm
from recogdrive.models.vlm.trainable import decays
from recogdrive.models.vlm.weights import save_original, save_transformers

Batch = Mapping[str, Any]

VLM_PREFIX = "vlm."
"""What names of the VLM's weights start with where they stand beside the planner's."""


class Encoder(Protocol):
    """Makes hidden states bit for bit as the cache has them, as `HiddenStateEncoder` does.

    Attributes:
      vlm: The model.
    """

    vlm: InternVL

    def load(self, folder: str | Path | None) -> VlmWeights:
        """Weights for `encode`, in memory of the host."""
        ...

    def check(self, prompts: ScenePrompts) -> None:
        """Refuses prompts that are not for this model."""
        ...

    def context_fields(self, weights: str, prompts: ScenePrompts) -> dict[str, Any]:
        """Everything that decides the states."""
        ...

    def encode(self, params: Params, batch: Batch) -> BFloat16[Array, "B T V"]:
        """Hidden states of a batch of prompts and tiles."""
        ...


class ContextPlanner(Protocol):
    """A planner that reads context tokens from its batches, such as `DiffusionPlanner`."""

    name: str
    context_width: int

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial weights."""
        ...

    def parameter_table(self) -> Sequence[ParameterRow]:
        """Every trainable tensor."""
        ...

    def loss(self, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Training loss of a batch with `context` and `context_mask`."""
        ...

    def decayed(self, name: str) -> bool:
        """Whether weight decay reaches a tensor: the planner's all, the VLM's as in fine-tuning."""
        return not name.startswith(VLM_PREFIX) or decays(name.removeprefix(VLM_PREFIX), self.encoder.vlm.config)

    def plan(self, params: Params, batch: Batch, keys: Key[Array, "B"]) -> Float[Array, "B 8 3"]:
        """A trajectory a scene."""
        ...


@gin.register
class OnlinePlanner:
    """A planner that makes its context itself, with the VLM, from batches with prompts and tiles (`VlmInputs`).

    Weights are one flat dictionary: the planner's under their own names, the VLM's with `vlm.` in front. A frozen VLM
    is no part of what trains, of checkpoints and of exports; its weights come from `vlm_weights` and are handed to
    every compiled function as an argument.

    Args:
      encoder: Runs the VLM as the hidden-state cache does.
      planner: What reads the hidden states.
      vlm_weights: Folder of the VLM's weights in either layout, or a run that exported them; None describes a planner
        that cannot run.
      train_vlm: Whether the VLM learns with the planner. Its weights then are part of the run's checkpoints, and
        gradients go through all of it, so that a step needs the memory of fine-tuning.

    Attributes:
      name: The planner's.
      context_width: Width of the hidden states.
      planner: The planner.

    Raises:
      ValueError: The planner reads another width than the VLM makes.
    """

    reads_prompts = True
    """What tells it from planners that read context tokens."""

    def __init__(
        self,
        encoder: Encoder,
        planner: ContextPlanner,
        vlm_weights: str | Path | None,
        *,
        train_vlm: bool = False,
    ) -> None:
        if planner.context_width != encoder.vlm.context_width:
            raise ValueError(
                f"The planner reads tokens of width {planner.context_width}, the VLM makes "
                f"{encoder.vlm.context_width}; set CONTEXT_WIDTH={encoder.vlm.context_width}."
            )
        self.name = planner.name
        self.context_width = encoder.vlm.context_width
        self.planner = planner
        self.train_vlm = train_vlm
        self.encoder = encoder
        self._vlm_weights = vlm_weights
        self._frozen: VlmWeights | None = None

    def parameter_table(self) -> list[ParameterRow]:
        """Every tensor that trains."""
        rows = list(self.planner.parameter_table())
        if self.train_vlm:
            rows += [row._replace(name=VLM_PREFIX + row.name) for row in self.encoder.vlm.parameter_table()]
        return rows

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial weights, all of them drawn; `complete` takes those of the VLM from its folder instead."""
        params = self.planner.init(key)
        if self.train_vlm:
            params = params | _prefixed(self.encoder.vlm.init(jax.random.fold_in(key, 1)))
        return params

    def frozen(self) -> Params:
        """Weights that `loss` and `plan` need beside those that train; read once.

        Raises:
          OSError: There is no such folder.
          ValueError: It holds no VLM, or another one.
        """
        return {} if self.train_vlm else _prefixed(self._frozen_vlm().params)

    def frozen_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of `frozen()`, without reading anything."""
        rows = () if self.train_vlm else self.encoder.vlm.parameter_table()
        return _prefixed({row.name: jax.ShapeDtypeStruct(row.shape, row.dtype) for row in rows})

    def context_fields(self, prompts: ScenePrompts) -> dict[str, Any] | None:
        """What decides the hidden states made of these prompts, as a cache has it; None where the VLM changes.

        Raises:
          OSError: There are no weights.
          ValueError: Weights or prompts do not fit the VLM.
        """
        self.encoder.check(prompts)
        return None if self.train_vlm else self.encoder.context_fields(self._frozen_vlm().fingerprint, prompts)

    def identity(self) -> dict[str, str]:
        """What must stay the same for a run to be continued: the frozen VLM."""
        return {} if self.train_vlm else {"vlm": self._frozen_vlm().fingerprint}

    def complete(self, params: Params) -> Params:
        """Weights to start from, given those of the planner: with the VLM's from their folder where these train too."""
        if not self.train_vlm:
            return params
        return params | _prefixed(load_vlm(self.encoder.vlm, self._vlm_weights).params)

    def loss(self, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The planner's loss on hidden states made here; `params` hold the VLM's weights, frozen ones too.

        With a frozen VLM it is that of the planner on cached hidden states, with the same key.
        """
        vlm_key = None
        if self.train_vlm:
            key, vlm_key = jax.random.split(key)
        own, batch = self._with_context(params, batch, vlm_key)
        return self.planner.loss(own, batch, key)

    def plan(self, params: Params, batch: Batch, keys: Key[Array, "B"]) -> Float[Array, "B 8 3"]:
        """The planner's trajectories on hidden states made here; `params` likewise."""
        own, batch = self._with_context(params, batch, None)
        return self.planner.plan(own, batch, keys)

    def export_vlm(self, folder: Path, params: Params) -> None:
        """Writes a trained VLM with its tokenizer, in the original layout and in transformers', below a folder.

        Without effect where the VLM is frozen.
        """
        if not self.train_vlm:
            return
        vlm = {name: np.asarray(value) for name, value in self.split(params)[1].items()}
        tokenizer = VlmTokenizer.from_folder(find_weights_folder(self._vlm_weights))
        for layout, save in ((ORIGINAL, save_original), (TRANSFORMERS, save_transformers)):
            save(folder / layout, self.encoder.vlm.config, vlm, tokenizer, overwrite=True)

    def split(self, params: Params) -> tuple[Params, Params]:
        """Weights of the planner and of the VLM, each under its own names."""
        own = {name: value for name, value in params.items() if not name.startswith(VLM_PREFIX)}
        vlm = {n.removeprefix(VLM_PREFIX): value for n, value in params.items() if n.startswith(VLM_PREFIX)}
        return own, vlm

    def _with_context(self, params: Params, batch: Batch, key: Key[Array, ""] | None) -> tuple[Params, Batch]:
        """The planner's weights, and the batch with hidden states in place of prompts."""
        own, vlm = self.split(params)
        if key is None:
            hidden = self.encoder.encode(vlm, batch)
        else:
            hidden = self.encoder.vlm.hidden_states(vlm, batch, key).astype(jnp.bfloat16)
        return own, {**batch, "context": hidden, "context_mask": jnp.asarray(batch["segment_ids"]) > 0}

    def _frozen_vlm(self) -> VlmWeights:
        if self._frozen is None:
            loaded = self.encoder.load(self._vlm_weights)
            self._frozen = loaded._replace(params=jax.device_put(loaded.params))
        return self._frozen


def _prefixed(params: Mapping[str, Any]) -> dict[str, Any]:
    return {VLM_PREFIX + name: value for name, value in params.items()}
