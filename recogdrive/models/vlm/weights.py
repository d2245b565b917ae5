"""Loads and writes InternVL's weights as checkpoint folders of either layout, and tells weights by a fingerprint.

A folder is read shard by shard, straight into the arrays of stacked layers: besides these, only a buffer of a
megabyte is in memory. Names are those of `recogdrive.models.vlm.layout`.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from absl import logging

from recogdrive.data.vlm.tokenizer import VlmTokenizer
from recogdrive.models.bridge import check_names_and_shapes
from recogdrive.models.vlm.config import VlmConfig, read_config
from recogdrive.models.vlm.config_files import original_config, transformers_config
from recogdrive.models.vlm.layout import (
    EMBEDDING,
    HEAD,
    FileTensor,
    layer_names,
    original_tensors,
    parameter_shapes,
    stacked_name,
    transformers_tensors,
)
from recogdrive.models.vlm.safetensors_file import DTYPES, PIECE, Tensor, write_safetensors
from recogdrive.models.vlm.stored_tensors import INDEX, SINGLE, Source, find_tensors, read_tensors

_NEW_ROW_STD = 0.02
"""Of new embedding rows: the library's default initialisation. Source: transformers, Qwen2's `initializer_range`."""


@dataclass(frozen=True)
class LoadedVlm:
    """What a checkpoint folder holds.

    Attributes:
      config: Sizes, with as many tokens as the arrays have rows.
      params: Our name -> array, layers stacked along the first axis.
      fingerprint: Of the stored values and of rows added to them; see `params_fingerprint`.
    """

    config: VlmConfig
    params: dict[str, np.ndarray]
    fingerprint: str


def load_weights(
    folder: str | Path, *, dtype: Any = np.float32, vocab_size: int | None = None, seed: int = 0
) -> LoadedVlm:
    """Loads a checkpoint in the original layout (InternVLChatModel) or in transformers'.

    Args:
      folder: With `config.json` and `model.safetensors`, or shards and `model.safetensors.index.json`.
      dtype: Of the arrays: float32, which holds every stored value, or bfloat16; "stored" keeps the files' own (float32
        where the layers of a stack differ).
      vocab_size: Rows of embedding and head; None keeps the stored number. New rows of the head are the mean of the
        old ones, new rows of the embedding are drawn (normal, standard deviation 0.02).
      seed: Of these draws.

    Raises:
      OSError: A file is missing.
      ValueError: A file is damaged, or `vocab_size` is less than stored, or tensors are missing, unknown, misshapen,
        of an unsupported dtype or not finite. Names the files; all tensors that do not fit are listed.

    Source: upstream `internvl_chat_finetune.py`, `resize_token_embeddings` and the mean that follows it.
    """
    folder = Path(folder)
    config = read_config(folder)
    stored_rows = config.language.vocab_size
    if vocab_size is not None and vocab_size < stored_rows:
        raise ValueError(
            f"vocab_size={vocab_size} is less than the {stored_rows} rows stored in {folder}, whose tokens would be "
            f"lost; use {stored_rows} or more"
        )
    sources = find_tensors(folder, config)
    language = dataclasses.replace(config.language, vocab_size=vocab_size or stored_rows)
    config = dataclasses.replace(config, language=language)
    shapes = parameter_shapes(config)
    dtypes = _dtypes(sources, shapes, dtype)
    params = {name: np.empty(shape, dtypes[name]) for name, shape in shapes.items()}
    hashes = _Hashes(shapes)
    for target, start, numbers in read_tensors(sources):
        hashes.update(target, numbers)
        _layer(params, target).reshape(-1)[start : start + numbers.size] = numbers
    if language.vocab_size > stored_rows:
        _add_rows(params, stored_rows, seed, hashes)
        logging.info("%s: added %d rows to embedding and head", folder, language.vocab_size - stored_rows)
    return LoadedVlm(config, params, hashes.digest())


def weights_fingerprint(folder: str | Path) -> str:
    """What `load_weights` gives as `fingerprint` for a folder, found without keeping the weights in memory.

    Raises:
      OSError: See `load_weights`.
      ValueError: See `load_weights`.
    """
    folder = Path(folder)
    config = read_config(folder)
    hashes = _Hashes(parameter_shapes(config))
    for target, _, numbers in read_tensors(find_tensors(folder, config)):
        hashes.update(target, numbers)
    return hashes.digest()


def params_fingerprint(params: Mapping[str, Any]) -> str:
    """A hash of weights in memory: of layer names, shapes and values.

    It depends on values, not on how they are kept: the same for either layout of files, any sharding, stacked arrays
    in memory, and for bfloat16 or float32 that holds the same numbers. One changed value changes it.

    Args:
      params: Our name -> array, layers stacked.
    """
    hashes = _Hashes({name: tuple(value.shape) for name, value in params.items()})
    for name in sorted(params):
        for layer, layer_name in enumerate(layer_names(name, params[name].shape[0])):
            array = np.asarray(params[name][layer] if "*" in name else params[name]).reshape(-1)
            for start in range(0, array.size, PIECE):
                piece = np.ascontiguousarray(array[start : start + PIECE].astype(np.float32, copy=False))
                hashes.update(layer_name, piece)
    return hashes.digest()


def save_original(
    folder: str | Path,
    config: VlmConfig,
    params: Mapping[str, Any],
    tokenizer: VlmTokenizer | None = None,
    *,
    dtype: str = "bfloat16",
    max_shard_bytes: float = 5e9,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint that the original code (InternVLChatModel) reads.

    The folder appears whole or not at all. `config.json` names the original code's Python files (`auto_map`); who loads
    with `trust_remote_code` copies these from the published checkpoint.

    Args:
      folder: Where to.
      config: Sizes.
      params: Our name -> array, layers stacked; LoRA merged.
      tokenizer: Written beside the weights; None writes none.
      dtype: "bfloat16" or "float32", of the stored tensors.
      max_shard_bytes: Most bytes of tensors in a file, larger tensors apart.
      overwrite: Whether a folder that is there already is replaced; without it, it must be empty.

    Raises:
      FileExistsError: The folder holds something, and `overwrite` is off.
      ValueError: `params` are not exactly the model's, or the layout has no place for a setting.
    """
    entries = original_config(config, dtype, tokenizer)
    _save(folder, entries, original_tensors(config), config, params, tokenizer, dtype, max_shard_bytes, overwrite)


def save_transformers(
    folder: str | Path,
    config: VlmConfig,
    params: Mapping[str, Any],
    tokenizer: VlmTokenizer | None = None,
    *,
    img_context_id: int | None = None,
    dtype: str = "bfloat16",
    max_shard_bytes: float = 5e9,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint that transformers' `InternVLForConditionalGeneration.from_pretrained` reads.

    Args:
      img_context_id: Token that stands for an image's vectors; None takes the tokenizer's, or InternVL3's without one.
      folder: See `save_original`, like all other arguments.
      config: Sizes.
      params: Our name -> array.
      tokenizer: Written beside the weights.
      dtype: Of the stored tensors.
      max_shard_bytes: Most bytes of a file.
      overwrite: Whether to replace a folder.

    Raises:
      FileExistsError: See `save_original`.
      ValueError: See `save_original`.
    """
    entries = transformers_config(config, dtype, tokenizer, img_context_id)
    _save(folder, entries, transformers_tensors(config), config, params, tokenizer, dtype, max_shard_bytes, overwrite)


class _Hashes:
    """A hash per layer name, fed in pieces of float32, and their combination."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self._hashes = {}
        for stacked, shape in shapes.items():
            for name in layer_names(stacked, shape[0]):
                head = f"{name} {tuple(map(int, shape[1:] if '*' in stacked else shape))}\n"
                self._hashes[name] = hashlib.sha256(head.encode())

    def update(self, name: str, numbers: np.ndarray) -> None:
        self._hashes[name].update(memoryview(numbers).cast("B"))

    def digest(self) -> str:
        whole = hashlib.sha256()
        for name in sorted(self._hashes):
            whole.update(self._hashes[name].digest())
        return whole.hexdigest()


def _dtypes(sources: list[Source], shapes: Mapping[str, tuple[int, ...]], dtype: Any) -> dict[str, np.dtype]:
    """The dtype of each array."""
    if not isinstance(dtype, str) or dtype != "stored":
        wanted = np.dtype(ml_dtypes.bfloat16 if isinstance(dtype, str) and dtype == "bfloat16" else dtype)
        if wanted not in (np.float32, ml_dtypes.bfloat16):
            raise ValueError(f"dtype={wanted.name} must be float32, bfloat16 or 'stored'")
        return dict.fromkeys(shapes, wanted)
    kinds: dict[str, set[np.dtype]] = {name: set() for name in shapes}
    for source in sources:
        for targets in source.targets:
            for target in targets:
                kinds[stacked_name(target)[0]].add(DTYPES[source.file.entries[source.name].dtype])
    return {name: kind.pop() if len(kind) == 1 else np.dtype(np.float32) for name, kind in kinds.items()}


def _layer(params: Mapping[str, np.ndarray], layer_name: str) -> np.ndarray:
    """The part of an array that a layer name stands for."""
    name, layer = stacked_name(layer_name)
    return params[name] if layer is None else params[name][layer]


def _add_rows(params: dict[str, np.ndarray], stored: int, seed: int, hashes: _Hashes) -> None:
    """Fills the rows after the stored ones."""
    embedding, head = params[EMBEDDING], params[HEAD]
    added, width = embedding.shape[0] - stored, embedding.shape[1]
    embedding[stored:] = np.random.default_rng(seed).normal(0.0, _NEW_ROW_STD, (added, width))
    total = np.zeros(width)
    step = max(1, PIECE // width)
    for start in range(0, stored, step):
        total += head[start : min(stored, start + step)].astype(np.float32).sum(axis=0, dtype=np.float64)
    head[stored:] = total / stored
    for name, array in ((EMBEDDING, embedding), (HEAD, head)):
        hashes.update(name, np.ascontiguousarray(array[stored:].astype(np.float32)).reshape(-1))


def _save(
    folder: str | Path,
    entries: Mapping[str, Any],
    tensors: list[FileTensor],
    config: VlmConfig,
    params: Mapping[str, Any],
    tokenizer: VlmTokenizer | None,
    dtype: str,
    max_shard_bytes: float,
    overwrite: bool,
) -> None:
    """Writes a folder beside its place and moves it there."""
    folder = Path(folder)
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already; remove it, write elsewhere, or say overwrite=True")
    adapters = [name for name in params if name.endswith((".lora_a", ".lora_b"))]
    if adapters:
        raise ValueError(f"{len(adapters)} LoRA array(s), {adapters[0]} the first; merge them into the weights first")
    check_names_and_shapes({n: tuple(v.shape) for n, v in params.items()}, parameter_shapes(config), "parameter")
    temporary, replaced = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        _write_shards(
            temporary, [Tensor(name, _parts(params, names)) for name, names in tensors], dtype, max_shard_bytes
        )
        if tokenizer is not None:
            tokenizer.save(temporary)
        (temporary / "config.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.replace(replaced)
        temporary.replace(folder)
    finally:
        for left in (temporary, replaced):
            shutil.rmtree(left, ignore_errors=True)


class _Part(NamedTuple):
    """One layer of a stacked array, taken out of it only when it is written."""

    array: Any
    layer: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape if self.layer is None else self.array.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array if self.layer is None else self.array[self.layer], dtype)


def _parts(params: Mapping[str, Any], names: tuple[str, ...]) -> list[_Part]:
    return [_Part(params[name], layer) for name, layer in map(stacked_name, names)]


def _write_shards(folder: Path, tensors: list[Tensor], dtype: str, max_shard_bytes: float) -> None:
    """Writes tensors in as many files as their size needs, with the index that says which is where."""
    kind = {"bfloat16": "BF16", "float32": "F32"}[dtype]
    shards: list[list[Tensor]] = [[]]
    filled = total = 0
    for tensor in tensors:
        size = math.prod(tensor.shape) * DTYPES[kind].itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled, total = filled + size, total + size
    if len(shards) == 1:
        write_safetensors(folder / SINGLE, tensors, kind)
        return
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard, kind)
    where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
