"""Reads and writes hidden states as ReCogDrive's own code caches them: two gzipped pickles a scene.

`<cache>/<log>/<token>/internvl_feature.gz` holds `last_hidden_state` (2800, V), `history_trajectory` (4, 3),
`status_feature` (8) and `high_command_one_hot` (4), `trajectory_target.gz` holds `trajectory` (8, 3): float32 tensors.
How many rows are padding is not in there.
"""

import gzip
import io
import pickle
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gin
import ml_dtypes
import numpy as np

from recogdrive.data.hidden_cache.container import HiddenCacheError
from recogdrive.data.hidden_cache.record import HiddenStates
from recogdrive.data.safe_pickle import DataPickleError
from recogdrive.data.samples import PlannerSamples, SceneSource
from recogdrive.data.torch_pickle import load_tensor_pickle
from recogdrive.data.types import FUTURE_FRAMES, HISTORY_FRAMES, Context, Scene

FEATURE_FILE, TARGET_FILE = "internvl_feature.gz", "trajectory_target.gz"
_MAX_BYTES = 2**28
"""Of an unpacked file; 8B's have 40 MB."""
_LEVEL = 1
_COMMANDS = 4
_SMALL = {"history_trajectory": (HISTORY_FRAMES, 3), "status_feature": (8,)}


@gin.register
class OfficialHiddenStates:
    """Context tokens from a cache in ReCogDrive's layout, and a source for conversion.

    The states must be bfloat16 values, as the original code's are; others are refused, so that nothing is rounded.
    Equal rows at the start, of which there must be two, are taken for padding, since the files do not say.

    Args:
      path: Folder of the logs' folders.
      num_tokens: T.
      width: V.
      fingerprint: What a planner's run records of it; the files do not say which weights they come from.

    Raises:
      ValueError: No folder is named.
    """

    dtype = "bfloat16"

    def __init__(
        self, path: str | Path | None, *, num_tokens: int = 2800, width: int = 1536, fingerprint: str | None = None
    ) -> None:
        if not path:
            raise ValueError("No official cache is named: set OFFICIAL_HIDDEN_CACHE to the folder of one.")
        self.path = Path(path)
        self.num_tokens, self.width = num_tokens, width
        self.fingerprint = fingerprint

    def __call__(self, scene: Scene) -> Context:
        """The states of a scene; raises HiddenCacheError if the cache lacks it or its file cannot be used."""
        states = self.read(scene.log_name, scene.token, need_target=False)
        return Context(states.tokens, states.mask)

    def samples(self, source: SceneSource) -> PlannerSamples:
        """Training samples of a split, read anew every time."""
        return PlannerSamples(source, self, keep=False)

    def entries(self) -> list[tuple[str, str]]:
        """(log, token) of every folder that holds one of the two files, sorted.

        Raises:
          HiddenCacheError: There is none.
        """
        found = sorted({(p.parent.parent.name, p.parent.name) for p in self._files()})
        if not found:
            raise HiddenCacheError(f"{self.path} holds no LOG/TOKEN/{FEATURE_FILE}; name the cache's top folder.")
        return found

    def read(self, log_name: str, token: str, *, need_target: bool = True) -> HiddenStates:
        """What the cache holds of a scene.

        Args:
          log_name: Of the scene.
          token: Likewise.
          need_target: Whether the file of the driven trajectory must be there.

        Raises:
          HiddenCacheError: A file is missing, damaged or not what ReCogDrive writes; names it.
        """
        folder = self.path / log_name / token
        feature = _load(folder / FEATURE_FILE)
        shapes = {"last_hidden_state": (self.num_tokens, self.width), **_SMALL}
        arrays = {name: _array(feature, name, shape, folder / FEATURE_FILE) for name, shape in shapes.items()}
        target = None
        if need_target or (folder / TARGET_FILE).exists():
            path = folder / TARGET_FILE
            target = _array(_load(path), "trajectory", (FUTURE_FRAMES, 3), path)
        tokens = _exact(arrays["last_hidden_state"], folder / FEATURE_FILE)
        history, status = arrays["history_trajectory"], arrays["status_feature"]
        return HiddenStates(token, log_name, tokens, _length(tokens), history, status, target)

    def _files(self) -> Iterator[Path]:
        for name in (FEATURE_FILE, TARGET_FILE):
            yield from self.path.glob(f"*/*/{name}")


def write_official(states: HiddenStates, path: Path) -> Path:
    """Writes a scene for the original code to read; returns its folder.

    Raises:
      HiddenCacheError: The scene has no driven trajectory, without which the original code takes it for missing.
    """
    import torch  # Only who writes tensors needs it.

    if states.target is None:
        raise HiddenCacheError(f"Scene {states.token} has no driven trajectory, which the official layout needs.")
    folder = path / states.log_name / states.token
    folder.mkdir(parents=True, exist_ok=True)
    feature = {
        "history_trajectory": states.history,
        "high_command_one_hot": states.status[:_COMMANDS].copy(),
        "last_hidden_state": states.tokens.astype(np.float32),
        "status_feature": states.status,
    }
    for name, arrays in ((FEATURE_FILE, feature), (TARGET_FILE, {"trajectory": states.target})):
        with (folder / name).open("wb") as file, gzip.GzipFile("", "wb", _LEVEL, file, mtime=0) as packed:
            pickle.dump({key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}, packed)
    return folder


def _load(path: Path) -> Mapping[str, Any]:
    """The content of a gzipped pickle of named tensors."""
    try:
        with path.open("rb") as file, gzip.GzipFile(fileobj=file) as packed:
            content = io.BytesIO()
            while piece := packed.read(2**20):
                content.write(piece)
                if content.tell() > _MAX_BYTES:
                    raise HiddenCacheError(f"{path} unpacks to more than {_MAX_BYTES} bytes; it is no cached feature.")
    except FileNotFoundError:
        raise HiddenCacheError(f"{path} is not there; the official cache lacks this scene.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise HiddenCacheError(f"{path} is damaged ({error}); make or download it again.") from error
    try:
        loaded = load_tensor_pickle(content.getvalue(), str(path), what="a cached feature", max_bytes=_MAX_BYTES)
    except DataPickleError as error:
        raise HiddenCacheError(str(error)) from error
    if not isinstance(loaded, dict):
        raise HiddenCacheError(f"{path} holds a {type(loaded).__name__} instead of a dict of tensors.")
    return loaded


def _array(entries: Mapping[str, Any], name: str, shape: tuple[int, ...], path: Path) -> np.ndarray:
    array = entries.get(name)
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "missing"
        raise HiddenCacheError(f"{path}: {name} is {found}; expected float32 {shape}.")
    return array


def _exact(values: np.ndarray, path: Path) -> np.ndarray:
    """The values as bfloat16, which they must be already."""
    bits = values.view(np.uint32)
    if (bits & 0xFFFF).any():
        row, channel = np.argwhere(bits & 0xFFFF)[0].tolist()
        raise HiddenCacheError(
            f"{path}: last_hidden_state[{row}, {channel}] = {values[row, channel]!r} is no bfloat16 value. The cache "
            "was not made in bfloat16; make it anew with --experiment=2b_cache."
        )
    return (bits >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)


def _length(tokens: np.ndarray) -> int:
    """Rows that are no padding: all, unless the first two or more are equal."""
    bits = tokens.view(np.uint16)
    differs = (bits != bits[0]).any(axis=1)
    first = int(differs.argmax()) if differs.any() else 0
    return len(bits) - first if first > 1 else len(bits)
