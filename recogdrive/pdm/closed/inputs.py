"""What a window of a log and its city's map say about one scene, in the scene's local frame.

Source: NAVSIM `NavSimScenario`, `MetricCacheProcessor`, `PDMDrivableMap.from_simulation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Float

from recogdrive.data.navsim_log import LogFrame
from recogdrive.data.types import FUTURE_FRAMES, HISTORY_FRAMES, Box, Detections, MapElement, MapLayer
from recogdrive.geometry import Pose, box_corners, rotate, to_frame, wrap_angle
from recogdrive.pdm.closed.lane_graph import BLOCK_LAYERS, Block, Lane, LaneGraph, outlines
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.observation import OBSERVED_FRAMES
from recogdrive.pdm.scene import ExtendedFacts, PolygonLayer
from recogdrive.pdm.state import HALF_LENGTH_M, HALF_WIDTH_M, NUM_OBSERVED, REAR_AXLE_TO_CENTER_M, STATE_SIZE, EgoState

MAP_RADIUS_M = 100.0
"""Half side of the square of map, around the centre of the ego's box."""
EXTENDED_FRAMES = FUTURE_FRAMES + 1
"""2 Hz frames from now to 4 s, which the extended score observes."""

_NODE_CAPACITY = 10


@dataclass(frozen=True)
class DrivableMap:
    """Polygons around the ego, in upstream's order.

    Attributes:
      elements: Map records, global.
      layers: What scoring calls them.
      polygons: Their outlines, global.
    """

    elements: tuple[MapElement, ...]
    layers: tuple[PolygonLayer, ...]
    polygons: tuple[shapely.Polygon, ...]

    def lanes_at(self, xy: Float[np.ndarray, "2"], graph: LaneGraph) -> list[Lane]:
        """Lanes and connectors that hold a point, border included, in the order in which upstream's tree answers."""
        tree = shapely.STRtree(self.polygons, node_capacity=_NODE_CAPACITY)
        found = tree.query(shapely.Point(xy), predicate="intersects")
        lane_layers = (PolygonLayer.LANE, PolygonLayer.LANE_CONNECTOR)
        return [graph.lane(self.elements[i]) for i in found if self.layers[i] in lane_layers]


@dataclass(frozen=True)
class SceneInputs:
    """One scene before anything is planned in it.

    Attributes:
      token: Its identity.
      log_name: Log it comes from.
      frames: 4 frames of history, the last one now, and what follows.
      ego: (3,) global rear-axle pose now.
      origin: (3,) global pose of the local frame: the ego's place, not rotated.
      state: (11,) initial state, local frame.
      center: (2,) centre of the ego's box, local frame.
      footprint: The ego's box, local frame.
      detections: Objects at 0, 0.5 ... 5 s, local frame, each frame ordered by class.
    """

    token: str
    log_name: str
    frames: tuple[LogFrame, ...]
    ego: Float[np.ndarray, "3"]
    origin: Float[np.ndarray, "3"]
    state: Float[np.ndarray, "11"]
    center: Float[np.ndarray, "2"]
    footprint: shapely.Polygon
    detections: tuple[Detections, ...]

    @property
    def current(self) -> LogFrame:
        """The frame of now."""
        return self.frames[HISTORY_FRAMES - 1]

    @property
    def human_poses(self) -> Float[np.ndarray, "8 3"]:
        """Driven poses at 0.5 ... 4 s in the initial rear-axle frame."""
        driven = np.stack([frame.pose for frame in self.frames[HISTORY_FRAMES : HISTORY_FRAMES + FUTURE_FRAMES]])
        return to_frame(driven, self.ego)


def scene_inputs(frames: Sequence[LogFrame], log_name: str) -> SceneInputs:
    """Collects what a window of a log says.

    Args:
      frames: 4 history frames with status, then at least 10 future frames.
      log_name: Log they come from.

    Raises:
      SceneError: There are fewer future frames, or frames without annotations.
    """
    current = frames[HISTORY_FRAMES - 1]
    observed = frames[HISTORY_FRAMES - 1 : HISTORY_FRAMES - 1 + OBSERVED_FRAMES]
    if len(observed) < OBSERVED_FRAMES:
        raise SceneError(
            f"scene {current.token}: {len(observed) - 1} future frames, but scoring looks 5 s ahead and needs "
            f"{OBSERVED_FRAMES - 1}; use a scene filter with num_future_frames={OBSERVED_FRAMES - 1}"
        )
    if any(frame.detections is None for frame in observed):
        raise SceneError(f"scene {current.token}: frames have no annotations, as in the private test: nothing to score")
    origin = np.array([*current.pose[: Pose.HEADING], 0.0])
    state = _state(current, origin)
    heading = current.pose[Pose.HEADING]
    center = REAR_AXLE_TO_CENTER_M * np.array([np.cos(heading), np.sin(heading)])
    corners = box_corners(np.array([*center, heading]), np.array(2 * HALF_LENGTH_M), np.array(2 * HALF_WIDTH_M))
    return SceneInputs(
        token=current.token,
        log_name=log_name,
        frames=tuple(frames),
        ego=current.pose,
        origin=origin,
        state=state,
        center=center,
        footprint=shapely.Polygon(corners),
        detections=tuple(_in_local_frame(frame, origin) for frame in observed),
    )


def _state(frame: LogFrame, origin: np.ndarray) -> Float[np.ndarray, "11"]:
    """Ego state of a frame; NAVSIM knows neither steering nor yaw rates and takes them as zero."""
    state = np.zeros(STATE_SIZE)
    state[[EgoState.X, EgoState.Y, EgoState.HEADING]] = frame.pose - origin
    state[[EgoState.VELOCITY_X, EgoState.VELOCITY_Y]] = frame.velocity
    state[[EgoState.ACCELERATION_X, EgoState.ACCELERATION_Y]] = frame.acceleration
    return state


def _in_local_frame(frame: LogFrame, origin: np.ndarray) -> Detections:
    """Objects of a frame, moved from its own ego frame and ordered by class, as upstream's containers are."""
    found = frame.detections
    order = np.argsort(found.classes, kind="stable")
    heading = frame.pose[Pose.HEADING]
    boxes = found.boxes[order].astype(np.float64)
    boxes[:, : Box.Z] = rotate(boxes[:, : Box.Z], heading) + (frame.pose - origin)[: Pose.HEADING]
    boxes[:, Box.HEADING] = wrap_angle(boxes[:, Box.HEADING] + heading)
    return Detections(
        boxes=boxes,
        classes=found.classes[order],
        velocity=rotate(found.velocity[order].astype(np.float64), heading),
        track_tokens=tuple(found.track_tokens[i] for i in order),
    )


def drivable_map(graph: LaneGraph, center: Float[np.ndarray, "2"]) -> DrivableMap:
    """Polygons of the square around a global point: roadblocks, their lanes, connectors, intersections, car parks.

    Lanes and connectors belong to it through their block. Roadblock connectors and other drivable areas do not.
    """
    city = graph.map
    roadblocks, connectors = (city.near(center, MAP_RADIUS_M, layer) for layer in BLOCK_LAYERS)
    groups = [
        (PolygonLayer.ROADBLOCK, roadblocks),
        (PolygonLayer.LANE, _interiors(graph, roadblocks)),
        (PolygonLayer.LANE_CONNECTOR, _interiors(graph, connectors)),
        (PolygonLayer.INTERSECTION, city.near(center, MAP_RADIUS_M, MapLayer.INTERSECTION)),
        (PolygonLayer.CARPARK_AREA, city.near(center, MAP_RADIUS_M, MapLayer.CARPARK_AREA)),
    ]
    elements = tuple(element for _, group in groups for element in group)
    return DrivableMap(
        elements=elements,
        layers=tuple(layer for layer, group in groups for _ in group),
        polygons=tuple(outlines(elements)),
    )


def _interiors(graph: LaneGraph, blocks: Sequence[MapElement]) -> list[MapElement]:
    return [lane.element for element in blocks for lane in graph.block_of(element).lanes]


def red_connectors(frame: LogFrame, lanes: Sequence[Lane], graph: LaneGraph) -> list[Lane]:
    """Connectors among `lanes` whose light is red in a frame, in the log's order."""
    known = frozenset(lanes)
    red = (graph.connector(connector) for connector in frame.red_light_connectors)
    return [lane for lane in red if lane is not None and lane in known]


def extended_facts(
    inputs: SceneInputs, agent_tokens: Sequence[str], route: Sequence[Block], graph: LaneGraph, dtype: np.dtype
) -> ExtendedFacts:
    """What the extended score needs, with zeros for its normaliser.

    Args:
      inputs: The scene.
      agent_tokens: Tracks in the order of the record's agents.
      route: The log's route before correction.
      graph: The city.
      dtype: Of the record's geometry.
    """
    sightings = np.full((len(agent_tokens), 2), -1, dtype=np.int8)
    column = {token: number for number, token in enumerate(agent_tokens)}
    for number, frame in enumerate(inputs.detections[:EXTENDED_FRAMES]):
        rows = [column[token] for token in frame.track_tokens]
        sightings[rows, 0] = np.where(sightings[rows, 0] < 0, number, sightings[rows, 0])
        sightings[rows, 1] = number
    lanes = [lane for block in route for lane in block.lanes]
    lights: dict[Lane, int] = {}
    for number, frame in enumerate(inputs.frames[HISTORY_FRAMES - 1 :][:EXTENDED_FRAMES]):
        for lane in red_connectors(frame, lanes, graph):
            lights[lane] = lights.get(lane, 0) | 1 << number
    rings = [lane.element.polygon - inputs.origin[:2] for lane in lights]
    history = inputs.frames[:HISTORY_FRAMES]
    return ExtendedFacts(
        agent_sightings=sightings,
        history_states=np.stack([_state(frame, inputs.origin) for frame in history]),
        history_times_us=np.array([frame.timestamp_us for frame in history], dtype=np.int64),
        light_vertices=np.concatenate([np.zeros((0, 2)), *rings]).astype(dtype),
        light_offsets=np.cumsum([0, *map(len, rings)], dtype=np.int32),
        light_frames=np.array(list(lights.values()), dtype=np.int16),
        normaliser_poses_v2=np.zeros((NUM_OBSERVED, len(Pose)), dtype),
    )
