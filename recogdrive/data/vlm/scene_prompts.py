"""A scene as one row of a VLM batch: the prompt, left padded to a constant length, and the tiles of its picture."""

import copy
import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Self

import gin
import numpy as np

from recogdrive.data.types import Scene
from recogdrive.data.vlm.cameras import FrontCamera
from recogdrive.data.vlm.chat import tokenise_prompt
from recogdrive.data.vlm.driving_prompt import DrivingPrompt
from recogdrive.data.vlm.pictures import Picture
from recogdrive.data.vlm.tiling import Tiling
from recogdrive.data.vlm.tokenizer import VlmTokenizer
from recogdrive.data.vlm.weights_folder import find_weights_folder

Row = dict[str, np.ndarray]

PADDING = "left, sees nothing, position 1"
"""How rows are filled up; part of the fingerprint, since planners read the padding too."""


@gin.register
class ScenePrompts:
    """Makes the inputs of the VLM for scenes, all of one shape.

    Args:
      prompt: Writes system and human turn.
      camera: Says what the front camera sees.
      tiling: Cuts the picture into tiles.
      tokenizer: Makes token ids, or its folder (of a tokenizer, of weights, or of a run that exported some), which is
        read when it is first needed; None takes that of the weights (`with_tokenizer_of`).
      tokens_per_tile: Vectors that a tile becomes, `VlmConfig.tokens_per_tile`.
      num_tokens: T; prompts are padded on the left to it.
      tiles_per_scene: N; slots for tiles. 9 are what a picture of 1920 x 1080 gives.

    Raises:
      ValueError: A number is not positive.

    Source: upstream `recogdrive_features.py`, which pads to 2,800 tokens.
    """

    def __init__(
        self,
        prompt: DrivingPrompt,
        camera: FrontCamera,
        tiling: Tiling,
        tokenizer: VlmTokenizer | str | Path | None = None,
        *,
        tokens_per_tile: int = 256,
        num_tokens: int = 2800,
        tiles_per_scene: int = 9,
    ) -> None:
        sizes = {"tokens_per_tile": tokens_per_tile, "num_tokens": num_tokens, "tiles_per_scene": tiles_per_scene}
        for name, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"ScenePrompts.{name}={value!r} must be a positive whole number.")
        self.prompt, self.camera, self.tiling = prompt, camera, tiling
        self.tokens_per_tile, self.num_tokens, self.tiles_per_scene = tokens_per_tile, num_tokens, tiles_per_scene
        self._tokenizer = tokenizer

    @functools.cached_property
    def tokenizer(self) -> VlmTokenizer:
        """Makes token ids; raises OSError or ValueError if there is none, or none that can be read."""
        if self._tokenizer is None:
            raise ValueError("ScenePrompts.tokenizer is not set: name the folder of the VLM's tokenizer or weights.")
        return self._tokenizer if isinstance(self._tokenizer, VlmTokenizer) else _read_tokenizer(Path(self._tokenizer))

    def with_tokenizer_of(self, weights: Path) -> Self:
        """The same with the tokenizer that lies beside these weights, unless another one is set."""
        if self._tokenizer is not None:
            return self
        other = copy.copy(self)
        other._tokenizer = weights
        return other

    @property
    def fields(self) -> dict[str, Any]:
        """What decides the rows of a scene, as JSON values."""
        return {
            "prompt": f"{self.prompt.style} {self.prompt.fingerprint}",
            "camera": self.camera.fingerprint,
            "tiling": repr(self.tiling),
            "tokenizer": self.tokenizer.fingerprint,
            "tokens_per_tile": self.tokens_per_tile,
            "num_tokens": self.num_tokens,
            "tiles_per_scene": self.tiles_per_scene,
            "padding": PADDING,
        }

    @property
    def fingerprint(self) -> str:
        """Changes with everything that rows depend on besides the scene."""
        return hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()

    def inputs(self, scene: Scene) -> Row:
        """One row of a VLM batch without batch axis and labels; see docs/vlm.md.

        Returns:
          `input_ids`, `segment_ids`, `position_ids` (T,) int32, `tiles` (N, S, S, 3) uint8, `num_tiles` () int32.

        Raises:
          ValueError: The picture gives more tiles than there are slots, or the prompt more tokens than T; names the
            scene and the number.
          PictureError: There is no picture.
        """
        return self._row(scene, self.camera.picture(scene))

    def picture_inputs(self, scene: Scene, picture: Picture) -> Row:
        """The same with another picture in place of the camera's."""
        return self._row(scene, picture)

    def _row(self, scene: Scene, picture: Picture) -> Row:
        count = self.tiling.count(*picture.size())
        if count > self.tiles_per_scene:
            width, height = picture.size()
            raise ValueError(
                f"Scene {scene.token} of log {scene.log_name}: its picture of {width} x {height} pixels gives {count} "
                f"tiles, rows have {self.tiles_per_scene} slots; raise ScenePrompts.tiles_per_scene and num_tokens, or "
                "lower Tiling.max_tiles."
            )
        ids = tokenise_prompt(self.prompt.prompt(scene), self.tokenizer, [count], self.tokens_per_tile)
        if len(ids) > self.num_tokens:
            raise ValueError(
                f"Scene {scene.token} of log {scene.log_name}: its prompt has {len(ids)} tokens, rows have "
                f"{self.num_tokens}; set ScenePrompts.num_tokens to {len(ids)} or more."
            )
        made = self.tiling.tiles(picture.open())
        tiles = np.zeros((self.tiles_per_scene, *made.shape[1:]), np.uint8)
        tiles[:count] = made
        return {**self._padded(ids), "tiles": tiles, "num_tiles": np.int32(count)}

    def _padded(self, ids: np.ndarray) -> Row:
        first = self.num_tokens - len(ids)
        row = {
            "input_ids": np.full(self.num_tokens, self.tokenizer.pad_id, np.int32),
            "segment_ids": np.zeros(self.num_tokens, np.int32),
            "position_ids": np.ones(self.num_tokens, np.int32),
        }
        row["input_ids"][first:] = ids
        row["segment_ids"][first:] = 1
        row["position_ids"][first:] = np.arange(len(ids))
        return row


def _read_tokenizer(folder: Path) -> VlmTokenizer:
    try:
        return VlmTokenizer.from_folder(folder)
    except FileNotFoundError:
        return VlmTokenizer.from_folder(find_weights_folder(folder))
