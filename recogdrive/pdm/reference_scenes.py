"""Scenes of the reference data: what went into the reference scorer and what came out of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.scene import PDM_CLOSED, PdmScene
from recogdrive.pdm.state import CANDIDATE_POSES

FORMAT = 1
"""The `format` of index.json that this file reads."""
INDEX = "index.json"

_X, _Y, _HEADING, _LENGTH, _WIDTH, _VELOCITY_X, _VELOCITY_Y = range(7)
_OUTPUT = "out_"


class ReferenceScenes:
    """The scenes that a folder's `index.json` lists, in its order; every access reads the scene's file.

    Args:
      folder: Folder of the index and of one `.npz` file a scene.

    Attributes:
      tokens: File name of every scene without its ending.
      entries: What the index says of every scene (`file`, `candidate_names`, `kind`, ...).

    Raises:
      FileNotFoundError: No index, or a file it lists is missing.
      SceneError: The index has another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.is_file():
            raise FileNotFoundError(f"no {INDEX} in {self.folder}: not a folder of reference scenes")
        index = json.loads(path.read_text(encoding="utf-8"))
        if index.get("format") != FORMAT:
            raise SceneError(f"{path} has format {index.get('format')!r}, only format {FORMAT} can be read here")
        self.entries: tuple[Mapping[str, Any], ...] = tuple(index["scenes"])
        self.tokens = tuple(Path(entry["file"]).stem for entry in self.entries)
        missing = [entry["file"] for entry in self.entries if not (self.folder / entry["file"]).is_file()]
        if missing:
            raise FileNotFoundError(f"{path} lists {len(missing)} files that are not there, e.g. {missing[0]}")

    def __len__(self) -> int:
        return len(self.entries)

    def path(self, index: int) -> Path:
        """File of a scene."""
        return self.folder / self.entries[index]["file"]

    def __getitem__(self, index: int) -> PdmScene:
        """Scene `index`; raises IndexError outside of the list."""
        entry = self.entries[index]
        return reference_scene(
            self.path(index), log_name=str(entry.get("log", "")), map_name=str(entry.get("kind", ""))
        )

    def candidates(self, index: int) -> np.ndarray:
        """(K, 8, 3) float32 trajectories of a scene, in the initial rear-axle frame."""
        with np.load(self.path(index)) as arrays:
            return arrays["candidates"]

    def expected(self, index: int) -> dict[str, np.ndarray]:
        """What the reference made of the candidates of a scene, see `reference_outputs`."""
        return reference_outputs(self.path(index))


def reference_scene(path: str | Path, *, log_name: str = "", map_name: str = "") -> PdmScene:
    """Reads the inputs of one reference file.

    Geometry keeps the float32 of the file, `ego_state` and `origin` its float64; speeds are formed in float64 from the
    stored velocities. Tracks that are absent at every step are left out. The driven future is not in these files, so
    `human_poses` are NaN.

    Args:
      path: The `.npz` file; its stem is the token.
      log_name: Log it comes from.
      map_name: Where it is.

    Raises:
      SceneError: An array is missing.
    """
    path = Path(path)
    with np.load(path) as arrays:
        try:
            # A track that is never there has neither size nor effect.
            seen = arrays["agent_valid"].any(axis=0)
            state, valid = arrays["agent_state"][:, seen], arrays["agent_valid"][:, seen]
            # Sizes are constant over time; where a track is first seen they are not padding.
            first = state[valid.argmax(axis=0), np.arange(state.shape[1])]
            velocity = first[:, [_VELOCITY_X, _VELOCITY_Y]].astype(np.float64)
            num_polygons = len(arrays["poly_type"])
            return PdmScene(
                token=path.stem,
                log_name=log_name,
                map_name=map_name,
                timestamp_us=int(arrays["t0_us"]),
                origin=np.array([*arrays["origin_xy"], 0.0], dtype=np.float64),
                ego_state=arrays["ego_state"],
                agent_poses=np.ascontiguousarray(state[..., [_X, _Y, _HEADING]]),
                agent_valid=valid,
                agent_sizes=np.ascontiguousarray(first[:, [_LENGTH, _WIDTH]]),
                agent_speeds=np.hypot(velocity[:, 0], velocity[:, 1]),
                agent_types=arrays["agent_type"][seen],
                vertices=arrays["poly_vertices"],
                ring_offsets=arrays["poly_offsets"],
                polygon_offsets=np.arange(num_polygons + 1, dtype=np.int32),
                polygon_layers=arrays["poly_type"],
                polygon_on_route=arrays["poly_on_route"],
                centerline=np.ascontiguousarray(arrays["centerline"][:, :2]),
                normaliser_poses=arrays["normaliser_poses"],
                normaliser_name=PDM_CLOSED,
                human_poses=np.full((CANDIDATE_POSES, 3), np.nan, dtype=np.float32),
            )
        except KeyError as error:
            raise SceneError(f"{path} is not a reference scene: {error.args[0]}") from error


def reference_outputs(path: str | Path) -> dict[str, np.ndarray]:
    """What the reference scorer made of each candidate: its output arrays by name, without the prefix `out_`."""
    with np.load(path) as arrays:
        return {name.removeprefix(_OUTPUT): arrays[name] for name in arrays.files if name.startswith(_OUTPUT)}
