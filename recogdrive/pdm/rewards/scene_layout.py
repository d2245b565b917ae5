"""Records of scenes as entries of training batches, all of one size, so that one program serves every batch."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from recogdrive.data.types import HISTORY_FRAMES
from recogdrive.pdm.batch import SceneBatch, Sizes, pad_scenes
from recogdrive.pdm.contact import Agents, Boxes
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.extended_batch import ExtendedBatch, ExtendedSizes, pad_extended, require_extended
from recogdrive.pdm.extended_scores import SUB_SCORES
from recogdrive.pdm.lights import LightSizes
from recogdrive.pdm.map import MapArrays
from recogdrive.pdm.map_index import MapIndex, build_map_index
from recogdrive.pdm.metrics.history_comfort import History
from recogdrive.pdm.metrics.traffic_light import Lights
from recogdrive.pdm.scene import ExtendedFacts, PdmScene
from recogdrive.pdm.state import CANDIDATE_POSES, NUM_OBSERVED, STATE_SIZE
from recogdrive.pdm.validation import validate

Row = dict[str, np.ndarray]
AnySizes = TypeVar("AnySizes", Sizes, ExtendedSizes)
AnyBatch = TypeVar("AnyBatch", SceneBatch, ExtendedBatch)

_FIRST, _SECOND, _NO_ENTRY = 0, 1, -1
_SCENE_AXES = SceneBatch(
    ego_state=_FIRST,
    agents=Agents(Boxes(*[_SECOND] * len(Boxes._fields)), *[_FIRST] * (len(Agents._fields) - 1)),
    maps=MapArrays(*[_FIRST] * len(MapArrays._fields)),
    centerline=_FIRST,
    centerline_points=_FIRST,
    normaliser_poses=_FIRST,
    # The normaliser drives along in the program.
    normaliser_progress_m=_NO_ENTRY,
    normaliser_factor=_NO_ENTRY,
)
"""Which axis of each array counts the scenes."""
_EXTENDED_AXES = ExtendedBatch(
    scenes=_SCENE_AXES,
    history=History(*[_FIRST] * len(History._fields)),
    lights=Lights(*[_FIRST] * len(Lights._fields)),
    human_poses=_FIRST,
    human_breaks=_NO_ENTRY,
)
_ROUNDED_TO = Sizes(agents=8, centerline=64, cells=1024, edges=1024, words=1)
_HISTORY_ROUNDED_TO = 4
_LIGHTS_ROUNDED_TO = LightSizes(lights=4, vertices=16)
_TYPICAL = Sizes(agents=128, centerline=512, cells=24576, edges=24576, words=2)


class SceneLayout(abc.ABC, Generic[AnySizes, AnyBatch]):
    """How a record becomes entries of a batch that all begin with `prefix`.

    Attributes:
      prefix: Of the entries' names.
      default_sizes: What most scenes of NAVSIM fit into, for dry runs.
    """

    prefix: ClassVar[str]
    default_sizes: AnySizes
    _axes: ClassVar[tuple]

    @abc.abstractmethod
    def measure(self, record: PdmScene, index: MapIndex | None = None) -> AnySizes:
        """The smallest sizes that hold a record; they have `union`.

        Args:
          record: The scene.
          index: Its map index, where it was built before.

        Raises:
          SceneError: The scene cannot be scored.
        """

    @abc.abstractmethod
    def rounded(self, sizes: AnySizes) -> AnySizes:
        """Sizes rounded up a little, so that a few more scenes do not mean another program."""

    @abc.abstractmethod
    def from_json(self, value: Mapping[str, Any]) -> AnySizes:
        """Sizes from what `to_json` made of them."""

    @abc.abstractmethod
    def _padded(self, record: PdmScene, index: MapIndex, sizes: AnySizes) -> AnyBatch:
        """A batch of this valid scene alone, in float32."""

    @abc.abstractmethod
    def batch(self, entries: Mapping[str, Array]) -> AnyBatch:
        """The entries of a batch, scenes first, as what the scorer takes; for use inside a program."""

    def to_json(self, sizes: AnySizes) -> dict[str, Any]:
        """Sizes as JSON values."""
        return {
            name: self.to_json(size) if isinstance(size, tuple) else int(size) for name, size in sizes._asdict().items()
        }

    def row(self, record: PdmScene, sizes: AnySizes, index: MapIndex | None = None) -> Row:
        """Entries of one scene, without the axis of scenes; floats are float32.

        Args:
          record: The scene.
          sizes: Of every scene of the run.
          index: Its map index, where it was built before.

        Raises:
          SceneError: The scene cannot be scored, or `sizes` cannot hold it.
        """
        exact = self.measure(record, index)
        if exact.union(sizes) != sizes:
            raise SceneError(
                f"scene {record.token} needs {exact}, but the batches of this run have {sizes}: the records are other "
                f"ones than were surveyed; start a new run"
            )
        padded = self._padded(record, build_map_index(record) if index is None else index, sizes)
        return {
            name: np.array(np.squeeze(array, axis), order="C")
            for (name, axis), array in zip(self._places(), jax.tree.leaves(padded), strict=True)
            if axis != _NO_ENTRY
        }

    def blank(self, sizes: AnySizes) -> Row:
        """Entries of the same shapes and dtypes for a scene without record: a car that stands on no map."""
        return self.row(_blank_record(), sizes)

    def _places(self) -> list[tuple[str, int]]:
        """Name of every array as an entry, and which of its axes counts the scenes of a batch."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(self._axes)
        return [(self.prefix + "/".join(key.name for key in path), axis) for path, axis in leaves]

    def _filled(self, entries: Mapping[str, Array]) -> AnyBatch:
        """The batch, None for what is no entry.

        Raises:
          ValueError: An entry is missing.
        """
        missing = [name for name, axis in self._places() if axis != _NO_ENTRY and name not in entries]
        if missing:
            raise ValueError(
                f"The batch lacks {missing[0]} and {len(missing) - 1} more of {self.prefix}: read samples through "
                f"RewardedSamples with the layouts of the reward."
            )
        arrays = [
            None if axis == _NO_ENTRY else jnp.moveaxis(jnp.asarray(entries[name]), 0, axis)
            for name, axis in self._places()
        ]
        return jax.tree.unflatten(jax.tree.structure(self._axes), arrays)


class PdmLayout(SceneLayout[Sizes, SceneBatch]):
    """Entries that the PDM score is computed from."""

    prefix = "pdm/"
    default_sizes = _TYPICAL
    _axes = _SCENE_AXES

    def measure(self, record: PdmScene, index: MapIndex | None = None) -> Sizes:
        """See `SceneLayout`."""
        validate(record)
        return Sizes.exact([record], [build_map_index(record) if index is None else index])

    def rounded(self, sizes: Sizes) -> Sizes:
        """See `SceneLayout`."""
        return _rounded(sizes, _ROUNDED_TO)

    def from_json(self, value: Mapping[str, Any]) -> Sizes:
        """See `SceneLayout`."""
        return Sizes(**value)

    def batch(self, entries: Mapping[str, Array]) -> SceneBatch:
        """See `SceneLayout`."""
        return _with_unknown_normaliser(self._filled(entries))

    def _padded(self, record: PdmScene, index: MapIndex, sizes: Sizes) -> SceneBatch:
        return pad_scenes([record], dtype=np.float32, indices=[index], sizes=sizes)


class ExtendedLayout(SceneLayout[ExtendedSizes, ExtendedBatch]):
    """Entries that the extended score (EPDMS) is computed from."""

    prefix = "epdm/"
    default_sizes = ExtendedSizes(scenes=_TYPICAL, history=16, lights=LightSizes(lights=16, vertices=128))
    _axes = _EXTENDED_AXES

    def measure(self, record: PdmScene, index: MapIndex | None = None) -> ExtendedSizes:
        """See `SceneLayout`."""
        validate(record)
        require_extended(record)
        return ExtendedSizes.exact([record], [build_map_index(record) if index is None else index])

    def rounded(self, sizes: ExtendedSizes) -> ExtendedSizes:
        """See `SceneLayout`."""
        return ExtendedSizes(
            scenes=_rounded(sizes.scenes, _ROUNDED_TO),
            history=_up(sizes.history, _HISTORY_ROUNDED_TO),
            lights=_rounded(sizes.lights, _LIGHTS_ROUNDED_TO),
        )

    def from_json(self, value: Mapping[str, Any]) -> ExtendedSizes:
        """See `SceneLayout`."""
        return ExtendedSizes(Sizes(**value["scenes"]), int(value["history"]), LightSizes(**value["lights"]))

    def batch(self, entries: Mapping[str, Array]) -> ExtendedBatch:
        """See `SceneLayout`."""
        filled = self._filled(entries)
        scenes = _with_unknown_normaliser(filled.scenes)
        return filled._replace(scenes=scenes, human_breaks=jnp.zeros((scenes.num_scenes, len(SUB_SCORES)), bool))

    def _padded(self, record: PdmScene, index: MapIndex, sizes: ExtendedSizes) -> ExtendedBatch:
        return pad_extended([record], dtype=np.float32, indices=[index], sizes=sizes)


def rows_of(record: PdmScene, layouts: Sequence[SceneLayout], sizes: Mapping[str, Any]) -> Row:
    """Entries of a scene in several layouts, for which its map is indexed once.

    Args:
      record: The scene.
      layouts: Of the reward.
      sizes: By the layouts' prefixes.

    Raises:
      SceneError: See `SceneLayout.row`.
    """
    validate(record)
    index = build_map_index(record)
    entries: Row = {}
    for layout in layouts:
        entries |= layout.row(record, sizes[layout.prefix], index)
    return entries


def _with_unknown_normaliser(scenes: SceneBatch) -> SceneBatch:
    unknown = jnp.full(scenes.num_scenes, jnp.nan, scenes.ego_state.dtype)
    return scenes._replace(normaliser_progress_m=unknown, normaliser_factor=unknown)


def _rounded(sizes: Any, steps: Any) -> Any:
    return type(sizes)(*map(_up, sizes, steps))


def _up(size: int, step: int) -> int:
    """The next multiple."""
    return -(-size // step) * step


def _blank_record() -> PdmScene:
    """A valid scene in which nothing is."""
    standing = np.zeros((NUM_OBSERVED, 3), np.float32)
    nobody, nothing, offsets = np.zeros(0, np.int8), np.zeros((0, 2), np.float32), np.zeros(1, np.int32)
    return PdmScene(
        token="blank",
        log_name="",
        map_name="",
        timestamp_us=0,
        origin=np.zeros(3),
        ego_state=np.zeros(STATE_SIZE),
        agent_poses=np.zeros((NUM_OBSERVED, 0, 3), np.float32),
        agent_valid=np.zeros((NUM_OBSERVED, 0), bool),
        agent_sizes=nothing,
        agent_speeds=np.zeros(0),
        agent_types=nobody,
        vertices=nothing,
        ring_offsets=offsets,
        polygon_offsets=offsets,
        polygon_layers=nobody,
        polygon_on_route=np.zeros(0, bool),
        centerline=np.array([[0, 0], [1, 0]], np.float32),
        normaliser_poses=standing,
        normaliser_name="none",
        human_poses=np.zeros((CANDIDATE_POSES, 3), np.float32),
        extended=ExtendedFacts(
            agent_sightings=np.zeros((0, 2), np.int8),
            history_states=np.zeros((HISTORY_FRAMES, STATE_SIZE)),
            # Without a sample: whatever the sizes, it fits.
            history_times_us=np.arange(HISTORY_FRAMES),
            light_vertices=nothing,
            light_offsets=offsets,
            light_frames=np.zeros(0, np.int16),
            normaliser_poses_v2=standing,
        ),
    )
