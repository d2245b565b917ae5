"""The official metric cache of NAVSIM v1, as published with ReCogDrive, as a source of scenes to score in.

Neither navsim nor nuplan-devkit is needed, and nothing in the files is run.
"""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import gin
import numpy as np
from absl import logging

from recogdrive.data.safe_pickle import DataPickleError
from recogdrive.data.scene_filter import EXPECTED_SCENES
from recogdrive.data.types import Scene
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.making import GEOMETRIES, FailedScene, MadeScene
from recogdrive.pdm.official_files import OfficialFile, list_files
from recogdrive.pdm.official_records import open_cache
from recogdrive.pdm.official_scene import official_scene
from recogdrive.pdm.scene import PDM_CLOSED, PdmScene


@gin.register
class OfficialMetricCache:
    """Makes scenes to score in of the files of an official metric cache; a `SceneMaker`.

    Args:
      path: Folder of the cache, which holds `metadata` and a folder a log.
      geometry: "float32", whose error at 100 m is 4 micrometres, or "float64".
      name: What to call the split ("navtest", ...), by default the folder's name.

    Attributes:
      name: As above.

    Raises:
      ValueError: No folder is named, or an argument is out of range.
    """

    def __init__(self, path: str | Path | None, *, geometry: str = "float32", name: str | None = None) -> None:
        if geometry not in GEOMETRIES:
            raise ValueError(f"OfficialMetricCache.geometry={geometry!r} must be one of {', '.join(GEOMETRIES)}.")
        self._root = _root_of(path)
        self._dtype = np.dtype(geometry)
        self.name = name or self._root.name

    @functools.cached_property
    def _files(self) -> tuple[OfficialFile, ...]:
        """Files of the cache; listed when first needed, so that an experiment can be described without it."""
        return tuple(list_files(self._root))

    @property
    def tokens(self) -> Sequence[str]:
        """Of all scenes, by log.

        Raises:
          FileNotFoundError: There is no cache in the folder.
          ValueError: The lists of the cache are damaged.
        """
        return tuple(file.token for file in self._files)

    @property
    def expected_scenes(self) -> int | None:
        """Scenes that the complete official split of this name holds; None where that is not known."""
        return EXPECTED_SCENES.get(self.name)

    def describe(self) -> Mapping[str, object]:
        """Split, normaliser and geometry; not where the files lie."""
        return {
            "source": "official_metric_cache",
            "name": self.name,
            "normaliser": PDM_CLOSED,
            "geometry": self._dtype.name,
        }

    def make(self, positions: Sequence[int]) -> Iterator[MadeScene | FailedScene]:
        """Records of the scenes at these positions, in order; a file that is missing or damaged gives the reason."""
        for position in positions:
            file = self._files[position]
            try:
                yield _read(self._root, file, self._dtype)
            except (SceneError, DataPickleError, OSError) as error:
                yield FailedScene(file.token, str(error))


@gin.register
class OfficialPdmScenes:
    """Looks the record up by the scene's token in an official metric cache; a `PdmSceneSource`.

    Args:
      path: Folder of the cache.
      geometry: "float32" or "float64".

    Raises:
      ValueError: No folder is named, or an argument is out of range.
    """

    def __init__(self, path: str | Path | None, *, geometry: str = "float32") -> None:
        if geometry not in GEOMETRIES:
            raise ValueError(f"OfficialPdmScenes.geometry={geometry!r} must be one of {', '.join(GEOMETRIES)}.")
        self._root = _root_of(path)
        self._dtype = np.dtype(geometry)

    @functools.cached_property
    def _files(self) -> Mapping[str, OfficialFile]:
        """Token -> file; listed when it is first needed, so that an experiment can be described without the cache."""
        return {file.token: file for file in list_files(self._root)}

    def require(self) -> None:
        """Lists the cache.

        Raises:
          FileNotFoundError: There is no cache in the folder.
          ValueError: Its lists are damaged.
        """
        logging.info("scenes to score in: %d of the official metric cache %s", len(self._files), self._root)

    def __call__(self, scene: Scene) -> PdmScene:
        """The record of `scene`; raises SceneError for a token that is not there or whose file cannot be used."""
        file = self._files.get(scene.token)
        if file is None:
            raise SceneError(
                f"scene {scene.token} is not in the official metric cache {self._root}, which holds "
                f"{len(self._files)} scenes; complete the cache or leave the scene out"
            )
        try:
            return _read(self._root, file, self._dtype).scene
        except (DataPickleError, OSError) as error:
            raise SceneError(f"scene {scene.token}: {error}") from error


def _root_of(path: str | Path | None) -> Path:
    if not path:
        raise ValueError("No official metric cache is named: give the folder of one.")
    return Path(path).expanduser()


def _read(root: Path, file: OfficialFile, dtype: np.dtype) -> MadeScene:
    """One scene; raises SceneError, DataPickleError or OSError, each naming the file."""
    path = file.under(root)
    start = time.perf_counter()
    cache = open_cache(path)
    opened = time.perf_counter()
    scene, vertices = official_scene(cache, path, file.token, file.log_name, dtype)
    seconds = {"reading the pickle": opened - start, "conversion": time.perf_counter() - opened}
    return MadeScene(scene, vertices, seconds)
