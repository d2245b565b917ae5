"""Where scenes to score in come from: made from the scene at hand, or read from a container."""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import gin
from absl import logging

from recogdrive.data.types import Scene
from recogdrive.pdm.cache import SCENES_FOLDER, CacheError, PdmCache, PdmCacheWriter
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.from_scene import pdm_scene
from recogdrive.pdm.scene import PdmScene


class PdmSceneSource(Protocol):
    """Gives the record to score trajectories of a scene in."""

    def __call__(self, scene: Scene) -> PdmScene:
        """The record of `scene`; raises SceneError where there is none."""
        ...

    def require(self) -> None:
        """Makes sure, before anything else is done, that records can be had at all; raises what says why not."""
        ...


@gin.register
class TownPdmScenes:
    """Makes the record from the scene itself, whose recorded driver is the normaliser; see `pdm_scene`."""

    def __call__(self, scene: Scene) -> PdmScene:
        """The record of `scene`; raises SceneError where its future, detections or route do not suffice."""
        return pdm_scene(scene)

    def require(self) -> None:
        """Nothing: what is needed is in the scenes."""


@gin.register
class CachedPdmScenes:
    """Looks the record up by the scene's token.

    The container is opened when it is needed, so that an experiment can be described where there is none.

    Args:
      path: Folder of a container, see `PdmCache`, or of the run that wrote it.

    Raises:
      ValueError: No folder is named.
    """

    def __init__(self, path: str | None) -> None:
        if not path:
            raise ValueError("No container is named: set PDM_CACHE to the folder of one.")
        self._path = Path(path)

    @functools.cached_property
    def cache(self) -> PdmCache:
        """The container.

        Raises:
          CacheError: There is none that can be read.
        """
        folder = self._path / SCENES_FOLDER
        if not folder.is_dir():
            folder = self._path
        if not folder.is_dir():
            raise CacheError(
                f"There is no container at {folder}: write one with an experiment such as mini_cache_metrics, or set "
                "PDM_CACHE to the folder of one."
            )
        return PdmCache(folder)

    def __call__(self, scene: Scene) -> PdmScene:
        """The record of `scene`; raises SceneError for a token the container does not hold."""
        return self.by_token(scene.token)

    def by_token(self, token: str) -> PdmScene:
        """The record of the scene with this token, for which no log is read; raises SceneError where there is none."""
        return self.cache.by_token(token)

    def require(self) -> None:
        """Opens the container.

        Raises:
          CacheError: There is none that can be read.
        """
        logging.info("scenes to score in: %r", self.cache)


def write_scenes(writer: PdmCacheWriter, scenes: Iterable[Scene], source: PdmSceneSource) -> None:
    """Adds the record of every scene; one that has none is recorded as failed, with the reason."""
    for scene in scenes:
        try:
            record = source(scene)
        except SceneError as error:
            writer.record_failure(scene.token, str(error))
        else:
            writer.add(record)
