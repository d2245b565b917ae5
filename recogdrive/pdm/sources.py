"""Where scenes to score in come from: made from the scene at hand, or read from a container."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import gin

from recogdrive.data.types import Scene
from recogdrive.pdm.cache import PdmCache, PdmCacheWriter
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.from_scene import pdm_scene
from recogdrive.pdm.scene import PdmScene


class PdmSceneSource(Protocol):
    """Gives the record to score trajectories of a scene in."""

    def __call__(self, scene: Scene) -> PdmScene:
        """The record of `scene`; raises SceneError where there is none."""
        ...


@gin.register
class TownPdmScenes:
    """Makes the record from the scene itself, whose recorded driver is the normaliser; see `pdm_scene`."""

    def __call__(self, scene: Scene) -> PdmScene:
        """The record of `scene`; raises SceneError where its future, detections or route do not suffice."""
        return pdm_scene(scene)


@gin.register
class CachedPdmScenes:
    """Looks the record up by the scene's token.

    Args:
      path: Folder of a container, see `PdmCache`.

    Raises:
      ValueError: No folder is named.
      CacheError: There is no container that can be read.
    """

    def __init__(self, path: str | None) -> None:
        if not path:
            raise ValueError("No container is named: set PDM_CACHE to the folder of one.")
        self.cache = PdmCache(Path(path))

    def __call__(self, scene: Scene) -> PdmScene:
        """The record of `scene`; raises SceneError for a token the container does not hold."""
        return self.cache.by_token(scene.token)


def write_scenes(writer: PdmCacheWriter, scenes: Iterable[Scene], source: PdmSceneSource) -> None:
    """Adds the record of every scene; one that has none is recorded as failed, with the reason."""
    for scene in scenes:
        try:
            record = source(scene)
        except SceneError as error:
            writer.record_failure(scene.token, str(error))
        else:
            writer.add(record)
