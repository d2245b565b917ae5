"""Weights of a folder for a configured VLM."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recogdrive.data.vlm.weights_folder import find_weights_folder
from recogdrive.models.bridge import Params, check_names_and_shapes
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.models.vlm.weights import load_weights


class VlmWeights(NamedTuple):
    """Weights in memory of the host.

    Attributes:
      params: As `InternVL` takes them.
      fingerprint: Of their content.
    """

    params: Params
    fingerprint: str


def load_vlm(vlm: InternVL, folder: str | Path | None, dtype: Any = np.float32) -> VlmWeights:
    """Reads a VLM's weights.

    Args:
      vlm: The configured model; where it has more tokens than the checkpoint, rows are added.
      folder: Checkpoint in either layout, or a run that exported one.
      dtype: Of the weights, float32 or bfloat16.

    Raises:
      OSError: A file is missing.
      ValueError: No folder is named, or nothing is there, or another model than the configured one; every misfit is
        named.
    """
    if folder is None:
        raise ValueError("No weights of a VLM are named: set VLM_WEIGHTS to their folder, or to a run that wrote some.")
    loaded = load_weights(find_weights_folder(Path(folder)), dtype=dtype, vocab_size=vlm.config.language.vocab_size)
    table = {row.name: tuple(row.shape) for row in vlm.parameter_table()}
    try:
        check_names_and_shapes({name: tuple(p.shape) for name, p in loaded.params.items()}, table, "weight")
    except ValueError as error:
        raise ValueError(f"{folder} holds another VLM than the configured one: {error}") from None
    return VlmWeights(dict(loaded.params), loaded.fingerprint)
