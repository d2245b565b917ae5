"""A scene as what the VLM reads, in place of context tokens: for a planner that runs the VLM itself."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import gin
import numpy as np

from recogdrive.data.hidden_cache.container import fingerprint_of
from recogdrive.data.types import PromptRow, Scene
from recogdrive.data.vlm.tiling import Tiling


class PromptRows(Protocol):
    """What makes rows for the VLM: `ScenePrompts`.

    Attributes:
      num_tokens: T, tokens of a row.
      tiles_per_scene: N, tile slots of a row.
      tiling: Says how large a tile is.
    """

    num_tokens: int
    tiles_per_scene: int
    tiling: Tiling

    def inputs(self, scene: Scene) -> Mapping[str, np.ndarray]:
        """One row of a VLM batch without batch axis, see `docs/vlm.md`."""
        ...

    def with_tokenizer_of(self, weights: Path) -> Self:
        """The same with the tokenizer beside these weights, unless another one is set."""
        ...


@gin.register
class VlmInputs:
    """Context source whose samples hold prompt and tiles, which an `OnlinePlanner` turns into hidden states.

    Args:
      prompts: Makes the rows.
      width: V, width of the hidden states that the VLM makes of them.
      weights: Folder beside whose weights the tokenizer lies, unless `prompts` has one.

    Attributes:
      num_tokens: T.
      width: V.
      prompts: Makes the rows.
      fields: What decides the hidden states, once `identified` is told.
      fingerprint: Of these; None before.

    Raises:
      ValueError: The width is not positive.
    """

    holds_prompts = True
    """What tells these samples from those with context tokens."""

    def __init__(self, prompts: PromptRows, width: int, weights: str | Path | None = None) -> None:
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise ValueError(f"VlmInputs.width={width!r} must be a positive whole number: CONTEXT_WIDTH of the VLM.")
        self.prompts = prompts if weights is None else prompts.with_tokenizer_of(Path(weights))
        self.fields: Mapping[str, Any] = {}
        self.fingerprint: str | None = None
        self.num_tokens = prompts.num_tokens
        self.width = width

    def __call__(self, scene: Scene) -> PromptRow:
        """The row of one scene."""
        return PromptRow(self.prompts.inputs(scene))

    def identified(self, fields: Mapping[str, Any]) -> Self:
        """The same, knowing what decides the hidden states that a VLM makes of it: the fields of a cache of them."""
        other = copy.copy(self)
        other.fields, other.fingerprint = fields, fingerprint_of(fields)
        return other

    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of every entry of a row."""
        tokens, side = (self.num_tokens,), self.prompts.tiling.image_size
        shapes = {name: (tokens, np.dtype(np.int32)) for name in ("input_ids", "segment_ids", "position_ids")}
        tiles = (self.prompts.tiles_per_scene, side, side, 3)
        return shapes | {"tiles": (tiles, np.dtype(np.uint8)), "num_tiles": ((), np.dtype(np.int32))}
