"""NAVSIM logs and nuPlan maps as scenes to score in, PDM-Closed as normaliser.

Source: NAVSIM `MetricCacheProcessor.compute_metric_cache`.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gin
import numpy as np
import shapely

from recogdrive.data.maps import open_map
from recogdrive.data.navsim import NavsimScenes
from recogdrive.data.navsim_log import LogFrame
from recogdrive.geometry import Pose
from recogdrive.pdm.closed.centerline import centerline, route_lanes, starting_lane
from recogdrive.pdm.closed.choice import ProposalScorer
from recogdrive.pdm.closed.forecast import Forecast, forecast
from recogdrive.pdm.closed.inputs import (
    DrivableMap,
    SceneInputs,
    drivable_map,
    extended_facts,
    red_connectors,
    scene_inputs,
)
from recogdrive.pdm.closed.lane_graph import Block, Lane, LaneGraph, graph_of
from recogdrive.pdm.closed.proposals import Proposals, propose
from recogdrive.pdm.closed.route import correct_route, route_blocks
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.making import GEOMETRIES, FailedScene, MadeScene
from recogdrive.pdm.map_index import MapIndex, build_map_index
from recogdrive.pdm.observation import observe
from recogdrive.pdm.scene import LANE_LAYERS, PDM_CLOSED, PdmScene
from recogdrive.pdm.state import NUM_OBSERVED, EgoState
from recogdrive.pdm.validation import GEOMETRY, validate


@dataclass(frozen=True)
class PlannedScene:
    """A scene with everything PDM-Closed chooses from, before it has chosen.

    Attributes:
      inputs: The scene.
      route_in: The log's route, repeats left out.
      route: The corrected route.
      start: The ego's lane.
      line: (C, 3) centre line, local frame.
      surroundings: Polygons of the map.
      around: The forecast.
      red_lights: Outlines of the connectors of the corrected route that are red now, local frame.
      proposals: The 15 drives.
      record: The scene as it will be stored but in float64 and with zeros for the normaliser.
      map_vertices: (V, 2) global coordinates of its map.
      index: Of its map.
      seconds: Part of the work -> time it took.
    """

    inputs: SceneInputs
    route_in: tuple[Block, ...]
    route: tuple[Block, ...]
    start: Lane
    line: np.ndarray
    surroundings: DrivableMap
    around: Forecast
    red_lights: tuple[np.ndarray, ...]
    proposals: Proposals
    record: PdmScene
    map_vertices: np.ndarray
    index: MapIndex
    seconds: Mapping[str, float]

    @property
    def forecast_record(self) -> PdmScene:
        """The record with the forecast in place of what was observed."""
        kept = ~self.around.collided[: self.around.num_objects]
        poses = self.around.agent_poses()
        return dataclasses.replace(
            self.record,
            agent_poses=poses,
            agent_valid=np.ones(poses.shape[:2], dtype=bool),
            agent_sizes=self.around.sizes[kept],
            agent_speeds=self.around.speeds[kept],
            agent_types=self.around.classes[kept],
            extended=None,
        )


def plan_scene(
    frames: Sequence[LogFrame], log_name: str, graph: LaneGraph, ignored: frozenset[str] = frozenset()
) -> PlannedScene:
    """Everything about a scene up to PDM-Closed's choice.

    Args:
      frames: 4 history frames with status, then at least 10 future frames.
      log_name: Log they come from.
      graph: Graph of its city.
      ignored: Tracks that PDM-Closed does not look at.

    Raises:
      SceneError: The scene cannot be made: too short, without annotations, a route that is empty or not on the map ...
    """
    inputs = scene_inputs(frames, log_name)
    clock = _Clock()
    with clock("map queries"):
        surroundings = drivable_map(graph, inputs.center + inputs.origin[: Pose.HEADING])
    with clock("route"):
        route_in = route_blocks(graph, inputs.current.roadblock_ids)
        route = correct_route(graph, route_in, inputs.ego)
        lanes = route_lanes(route)
        under_ego = surroundings.lanes_at(inputs.ego[: Pose.HEADING], graph)
        shift = inputs.origin[: Pose.HEADING]
        start = starting_lane(lanes, under_ego, inputs.ego, inputs.center + shift, _moved(inputs.footprint, shift))
        line = centerline(route, start) - inputs.origin
    with clock("observation"):
        record, map_vertices = _record(inputs, surroundings, frozenset(lanes), line, route_in, graph)
    with clock("PDM-Closed: forecast and proposals"):
        red = red_connectors(inputs.current, lanes, graph)
        around = forecast(inputs.detections[0], inputs.center, inputs.footprint, red, shift, ignored)
        speed = float(inputs.state[EgoState.VELOCITY_X])
        proposals = propose(line, inputs.state[: len(Pose)], speed, start.element.speed_limit_mps, around)
    with clock("map index"):
        validate(record)
        index = build_map_index(record)
    return PlannedScene(
        inputs=inputs,
        route_in=tuple(route_in),
        route=tuple(route),
        start=start,
        line=line,
        surroundings=surroundings,
        around=around,
        red_lights=tuple(lane.element.polygon - shift for lane in red),
        proposals=proposals,
        record=record,
        map_vertices=map_vertices,
        index=index,
        seconds=clock.seconds,
    )


class _Clock:
    """Adds up the time of named parts of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def _moved(polygon: shapely.Polygon, shift: np.ndarray) -> shapely.Polygon:
    return shapely.transform(polygon, lambda xy: xy + shift)


def _record(
    inputs: SceneInputs,
    surroundings: DrivableMap,
    route_lanes: frozenset[Lane],
    line: np.ndarray,
    route_in: Sequence[Block],
    graph: LaneGraph,
) -> tuple[PdmScene, np.ndarray]:
    """The record in float64 without a normaliser, and the global coordinates of its map."""
    observation = observe(inputs.detections)
    # Upstream lists every step's objects by class, and tracks in the order in which these lists first name them.
    first_seen = observation.agent_valid.argmax(axis=0)
    observation = observation.take(np.lexsort((observation.agent_types, first_seen)))
    rings = [ring for element in surroundings.elements for ring in (element.polygon, *element.holes)]
    vertices = np.concatenate([np.zeros((0, 2)), *rings])
    on_route = [
        layer in LANE_LAYERS and graph.lane(element) in route_lanes
        for layer, element in zip(surroundings.layers, surroundings.elements, strict=True)
    ]
    record = PdmScene(
        token=inputs.token,
        log_name=inputs.log_name,
        map_name=graph.city,
        timestamp_us=inputs.current.timestamp_us,
        origin=inputs.origin,
        ego_state=inputs.state,
        agent_poses=observation.agent_poses,
        agent_valid=observation.agent_valid,
        agent_sizes=observation.agent_sizes,
        agent_speeds=observation.agent_speeds,
        agent_types=observation.agent_types,
        vertices=vertices - inputs.origin[: Pose.HEADING],
        ring_offsets=np.cumsum([0, *map(len, rings)], dtype=np.int32),
        polygon_offsets=np.cumsum([0, *(1 + len(e.holes) for e in surroundings.elements)], dtype=np.int32),
        polygon_layers=np.array(surroundings.layers, dtype=np.int8),
        polygon_on_route=np.array(on_route, dtype=bool),
        centerline=np.ascontiguousarray(line[:, : Pose.HEADING]),
        normaliser_poses=np.zeros((NUM_OBSERVED, len(Pose))),
        normaliser_name=PDM_CLOSED,
        human_poses=inputs.human_poses,
        extended=extended_facts(inputs, observation.track_tokens, route_in, graph, np.dtype(np.float64)),
    )
    return record, vertices


@gin.register
class NavsimMetricScenes:
    """Makes scenes to score in of a split of NAVSIM logs; a `SceneMaker`.

    Args:
      open_scenes: Opens the split (`@NavsimScenes`, without parentheses); its filter must ask for 10 future frames.
      geometry: "float32", whose error at 100 m is 4 micrometres, or "float64".
      accumulate_collided_tracks: Upstream's planner never forgets the tracks that touched the ego at the start of a
        scene, so that its caches depend on the order in which scenes of a log came. False forgets them with every
        scene; True keeps them within one call of `make`, scene after scene.
      scenes_at_once: Scenes whose proposals are scored in one call.

    Raises:
      ValueError: An argument is out of range.
    """

    def __init__(
        self,
        open_scenes: Callable[[], NavsimScenes],
        *,
        geometry: str = "float32",
        accumulate_collided_tracks: bool = False,
        scenes_at_once: int = 16,
    ) -> None:
        if geometry not in GEOMETRIES:
            raise ValueError(f"NavsimMetricScenes.geometry={geometry!r} must be one of {', '.join(GEOMETRIES)}.")
        if scenes_at_once < 1:
            raise ValueError(f"NavsimMetricScenes.scenes_at_once={scenes_at_once} must be positive.")
        self._open_scenes = open_scenes
        self._geometry = geometry
        self._accumulate = accumulate_collided_tracks
        self._scenes_at_once = 1 if accumulate_collided_tracks else scenes_at_once
        self._scenes: NavsimScenes | None = None
        self._scorer: ProposalScorer | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the compiled scorer; the opened split travels along, without its logs."""
        return self.__dict__ | {"_scorer": None, "_open_scenes": None if self._scenes else self._open_scenes}

    @property
    def scenes(self) -> NavsimScenes:
        """The split; opened at the first use, which reads every log once."""
        if self._scenes is None:
            self._scenes = self._open_scenes()
        return self._scenes

    @property
    def name(self) -> str:
        """Of the split."""
        return self.scenes.name

    @property
    def tokens(self) -> Sequence[str]:
        """Of all scenes."""
        return self.scenes.tokens

    def describe(self) -> Mapping[str, object]:
        """Split, filter and choices; not where the data lies."""
        return {
            "source": "navsim_logs",
            "name": self.name,
            "normaliser": PDM_CLOSED,
            "geometry": self._geometry,
            "accumulate_collided_tracks": self._accumulate,
        }

    @property
    def expected_scenes(self) -> int | None:
        """Scenes that the complete official split holds; None where that is not known."""
        return self.scenes.report.get("expected_scenes")

    def make(self, positions: Sequence[int]) -> Iterator[MadeScene | FailedScene]:
        """Records of the scenes at these positions, in order."""
        if self._scorer is None:
            self._scorer = ProposalScorer(self._scenes_at_once)
        ignored: frozenset[str] = frozenset()
        for start in range(0, len(positions), self._scenes_at_once):
            results = [self._plan(position, ignored) for position in positions[start : start + self._scenes_at_once]]
            planned = [result for result in results if isinstance(result, PlannedScene)]
            made = iter(self._choose(planned)) if planned else iter(())
            yield from (result if isinstance(result, FailedScene) else next(made) for result in results)
            if self._accumulate:
                ignored = ignored.union(*(scene.around.collided_tokens for scene in planned))

    def _plan(self, position: int, ignored: frozenset[str]) -> PlannedScene | FailedScene:
        token = self.tokens[position]
        try:
            start = time.perf_counter()
            frames = self.scenes.frames(position)
            graph = graph_of(open_map(self.scenes.maps_root, frames[0].map_name))
            reading = time.perf_counter() - start
            planned = plan_scene(frames, self.scenes.log_of(position), graph, ignored)
        except (SceneError, ValueError, OSError, shapely.errors.ShapelyError) as error:
            return FailedScene(token, str(error))
        return dataclasses.replace(planned, seconds={"log and map": reading} | dict(planned.seconds))

    def _choose(self, planned: Sequence[PlannedScene]) -> Iterator[MadeScene]:
        """Lets PDM-Closed choose in all scenes at once and completes their records."""
        start = time.perf_counter()
        scores = self._scorer.score(
            [scene.forecast_record for scene in planned],
            [scene.index for scene in planned],
            [scene.red_lights for scene in planned],
            np.stack([scene.proposals.poses for scene in planned]),
        )
        scoring = (time.perf_counter() - start) / len(planned)
        for scene, winner, winner_v2 in zip(planned, scores.winner, scores.extended_winner, strict=True):
            start = time.perf_counter()
            poses = scene.proposals.finish(scene.around, int(winner))
            poses_v2 = poses if winner_v2 == winner else scene.proposals.finish(scene.around, int(winner_v2))
            facts = dataclasses.replace(scene.record.extended, normaliser_poses_v2=poses_v2)
            record = dataclasses.replace(scene.record, normaliser_poses=poses, extended=facts)
            record = in_geometry(record, np.dtype(self._geometry))
            finishing = time.perf_counter() - start
            seconds = dict(scene.seconds) | {
                "PDM-Closed: simulation and scoring": scoring,
                "PDM-Closed: last second": finishing,
            }
            yield MadeScene(record, scene.map_vertices, seconds)


def in_geometry(scene: PdmScene, dtype: np.dtype) -> PdmScene:
    """A float64 record with its geometry in another dtype."""
    if dtype == np.float64:
        return scene
    extended = scene.extended
    if extended is not None:
        extended = dataclasses.replace(
            extended,
            light_vertices=extended.light_vertices.astype(dtype),
            normaliser_poses_v2=extended.normaliser_poses_v2.astype(dtype),
        )
    geometry = {name: getattr(scene, name).astype(dtype) for name in GEOMETRY}
    return dataclasses.replace(scene, **geometry, extended=extended)
