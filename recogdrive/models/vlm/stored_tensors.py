"""Finds a model's tensors in the safetensors files of a checkpoint folder, of either layout and any sharding."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recogdrive.models.vlm.config import VlmConfig, is_tied
from recogdrive.models.vlm.layout import EMBEDDING, HEAD, layer_names_of_file, layer_shapes
from recogdrive.models.vlm.safetensors_file import DTYPES, SafetensorsFile

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Names of the only file, or of the list of shards."""


class Source(NamedTuple):
    """A tensor of a file and the layer names that share its rows equally; two sets where embedding and head are one."""

    file: SafetensorsFile
    name: str
    targets: tuple[tuple[str, ...], ...]


def find_tensors(folder: Path, config: VlmConfig) -> list[Source]:
    """Which tensor of which file is what.

    Raises:
      OSError: A file is missing.
      ValueError: A file is damaged, or the tensors are not exactly the model's: all that do not fit are listed.
    """
    expected = layer_shapes(config)
    sources: list[Source] = []
    found: dict[str, str] = {}
    problems: list[str] = []
    for file in _open(folder):
        for name, entry in file.entries.items():
            where, targets = f"{name} {entry.shape} in {file.path.name}", layer_names_of_file(name)
            if targets == ():
                continue
            if targets is None or any(target not in expected for target in targets):
                problems.append(f"unknown: {where}")
                continue
            doubled = [found[target] for target in targets if target in found]
            found |= dict.fromkeys(targets, where)
            rows = sum(expected[target][0] for target in targets)
            wanted = (rows, *expected[targets[0]][1:])
            if doubled:
                problems.append(f"twice: {where}, also {doubled[0]}")
            elif entry.shape != wanted:
                problems.append(f"wrong shape: {where}, expected {wanted}")
            elif entry.dtype not in DTYPES:
                problems.append(f"wrong type: {where} is {entry.dtype}, expected one of {', '.join(DTYPES)}")
            else:
                sources.append(Source(file, name, (targets,)))
    if HEAD not in found and EMBEDDING in found and is_tied(folder):
        found[HEAD] = found[EMBEDDING]
        sources = [s._replace(targets=(*s.targets, (HEAD,))) if s.targets == ((EMBEDDING,),) else s for s in sources]
    problems += [f"missing: {name} {shape}" for name, shape in expected.items() if name not in found]
    if problems:
        raise ValueError(
            f"{folder}: {len(problems)} tensor(s) do not fit the model that {folder / 'config.json'} describes:\n  "
            + "\n  ".join(problems)
        )
    return sources


def read_tensors(sources: list[Source]) -> Iterator[tuple[str, int, np.ndarray]]:
    """Pieces of all tensors: layer name, position of the first number in it, and the numbers as float32.

    A layer's pieces come in order. The numbers are overwritten by the next piece.

    Raises:
      ValueError: A tensor has numbers that are not finite; names it and its file.
    """
    for source in sources:
        size, position = math.prod(source.file.entries[source.name].shape), 0
        for numbers in source.file.pieces(source.name):
            if not np.isfinite(numbers).all():
                raise ValueError(f"{source.file.path}: {source.name} holds NaN or infinity; the checkpoint is broken")
            for targets in source.targets:
                share = size // len(targets)
                for number, target in enumerate(targets):
                    begin, end = number * share, (number + 1) * share
                    start, stop = max(begin, position), min(end, position + numbers.size)
                    if start < stop:
                        yield target, start - begin, numbers[start - position : stop - position]
            position += numbers.size


def _open(folder: Path) -> list[SafetensorsFile]:
    """The headers of a folder's files, which hold what the index says."""
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return [SafetensorsFile.open(folder / SINGLE)]
    if not index.is_file():
        raise FileNotFoundError(
            f"{folder} has no weights: neither {SINGLE} nor {INDEX}; files of other kinds (.bin, .pt) are not read"
        )
    try:
        where = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{index} is no index of shards: {error!r}") from error
    names = sorted(set(where.values()))
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{index} names files outside its folder")
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{index} names {', '.join(absent)}, which {folder} lacks; download them too")
    files = [SafetensorsFile.open(folder / name) for name in names]
    held = {(tensor, file.path.name) for file in files for tensor in file.entries}
    problems = [f"{name} is not in {shard}" for name, shard in where.items() if (name, shard) not in held]
    problems += [f"{shard} holds {name}, which is not listed there" for name, shard in held - set(where.items())]
    if problems:
        raise ValueError(f"{index} and its shards disagree:\n  " + "\n  ".join(sorted(problems)))
    return files
