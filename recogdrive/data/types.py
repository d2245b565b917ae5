"""Records that every data source yields and everything downstream reads.

One convention throughout: the *scene frame* is the ego frame of the current time (rear axle at the origin,
x forward, y left), all geometry of a scene is in it, in float64 metres and radians; times are at 2 Hz,
frame 0 oldest. `Scene.origin` leads back to global (UTM) coordinates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np
from jaxtyping import Bool, Float

FRAME_INTERVAL_S = 0.5
HISTORY_FRAMES = 4
"""Frames at t = -1.5, -1.0, -0.5 and 0 s; the last is the current one."""
FUTURE_FRAMES = 8
"""Poses of a planned trajectory, at t = 0.5 ... 4.0 s."""


class Command(IntEnum):
    """Entries of the driving command's one-hot vector, in OpenScene's order."""

    LEFT = 0
    STRAIGHT = 1
    RIGHT = 2
    UNKNOWN = 3


class Box(IntEnum):
    """Entries of `Detections.boxes` along its last axis."""

    X = 0
    Y = 1
    Z = 2
    LENGTH = 3
    WIDTH = 4
    HEIGHT = 5
    HEADING = 6


class AgentClass(IntEnum):
    """Classes of annotated objects with nuPlan's `TrackedObjectType` numbers; names are the lower-case log names."""

    VEHICLE = 0
    PEDESTRIAN = 1
    BICYCLE = 2
    TRAFFIC_CONE = 3
    BARRIER = 4
    CZONE_SIGN = 5
    GENERIC_OBJECT = 6


class MapLayer(StrEnum):
    """Layers of a map, named after what nuPlan calls them; a `MapPatch` has all but the road segments."""

    LANE = "lane"
    LANE_CONNECTOR = "lane_connector"
    ROADBLOCK = "roadblock"
    ROADBLOCK_CONNECTOR = "roadblock_connector"
    INTERSECTION = "intersection"
    STOP_POLYGON = "stop_polygon"
    CROSSWALK = "crosswalk"
    WALKWAY = "walkway"
    CARPARK_AREA = "carpark_area"
    GENERIC_DRIVABLE_AREA = "generic_drivable_area"
    ROAD_SEGMENT = "road_segment"


@dataclass(frozen=True)
class Vehicle:
    """Measures of the ego vehicle in metres. Source: nuPlan `get_pacifica_parameters`."""

    width_m: float = 2.297
    length_m: float = 5.176
    height_m: float = 1.777
    wheel_base_m: float = 3.089
    rear_axle_to_center_m: float = 1.461


PACIFICA = Vehicle()


@dataclass(frozen=True)
class EgoStatus:
    """What the ego knows of its own motion, at the `HISTORY_FRAMES` frames up to now.

    Attributes:
      poses: (4, 3) float64 rear-axle poses in the scene frame; the last is (0, 0, 0).
      velocity: (4, 2) float32 m/s, each in the ego frame *of its own time* (NAVSIM's convention).
      acceleration: (4, 2) float32 m/s^2, likewise.
      command: (4, 4) float32 one-hot, see `Command`.
    """

    poses: Float[np.ndarray, "4 3"]
    velocity: Float[np.ndarray, "4 2"]
    acceleration: Float[np.ndarray, "4 2"]
    command: Float[np.ndarray, "4 4"]


@dataclass(frozen=True)
class Detections:
    """Annotated objects of one frame.

    Attributes:
      boxes: (N, 7) float64, see `Box`; centre and heading in the scene frame (not the frame's own ego frame).
      classes: (N,) int8 of `AgentClass`.
      velocity: (N, 2) float64 ground velocity in m/s, in scene-frame axes.
      track_tokens: N strings, stable over time within a log.
    """

    boxes: Float[np.ndarray, "N 7"]
    classes: np.ndarray
    velocity: Float[np.ndarray, "N 2"]
    track_tokens: tuple[str, ...]


@dataclass(frozen=True)
class MapElement:
    """One object of the map, in the scene frame.

    Attributes:
      id: Decimal string, unique within its layer only.
      layer: Which layer it belongs to.
      polygon: (P, 2) outline without the repeated closing point, or None for an element without area.
      holes: Outlines of holes in `polygon`.
      centerline: (L, 3) x, y, heading of the baseline path's vertices in driving direction (lanes and connectors).
      left_boundary: (L, 2) vertices in driving direction, where known.
      right_boundary: Likewise.
      speed_limit_mps: None where the map has none.
      roadblock_id: Roadblock (lane) or roadblock connector (connector) this element is part of.
      predecessors: Ids one can come from: of connectors for a lane, of lanes for a connector; the same way for
        roadblocks and roadblock connectors.
      successors: Ids one can go to, likewise.
      has_traffic_light: Whether a light governs this connector.
      stop_lines: Ids of the stop polygons at which that light stops traffic, where the source names them.
    """

    id: str
    layer: MapLayer
    polygon: Float[np.ndarray, "P 2"] | None
    holes: tuple[Float[np.ndarray, "H 2"], ...] = ()
    centerline: Float[np.ndarray, "L 3"] | None = None
    left_boundary: Float[np.ndarray, "L 2"] | None = None
    right_boundary: Float[np.ndarray, "L 2"] | None = None
    speed_limit_mps: float | None = None
    roadblock_id: str | None = None
    predecessors: tuple[str, ...] = ()
    successors: tuple[str, ...] = ()
    has_traffic_light: bool = False
    stop_lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class MapPatch:
    """Every map element that meets the axis-aligned square (global axes) of half side `radius_m` around the ego.

    Road segments are left out.
    """

    radius_m: float
    elements: tuple[MapElement, ...]

    def layer(self, *layers: MapLayer) -> tuple[MapElement, ...]:
        """Elements of the given layers, in map order."""
        return tuple(e for e in self.elements if e.layer in layers)


@dataclass(frozen=True)
class Scene:
    """One moment of driving with what led to it and what followed.

    Attributes:
      token: 16 hexadecimal digits; identity of the current frame and hence of the scene.
      log_name: Log (or synthetic town) it comes from.
      map_name: City, or the town's name.
      timestamp_us: Clock of the current frame.
      origin: (3,) float64 global rear-axle pose of the current frame; the scene frame's place in the world.
      ego: Status at the history frames.
      future: (F, 3) float64 driven rear-axle poses at 0.5, 1.0 ... s in the scene frame; F >= 8. None where unknown.
      detections: Objects of every frame, history then future (4 + F entries; 4 where the future is unknown).
      map: Surroundings of the ego at the current time.
      roadblock_ids: Route in driving order.
      red_light_connectors: Ids of lane connectors whose light is red now.
      cameras: Camera name (`cam_f0` ...) -> image path, for the current frame.
      metadata: Anything a source wants to hand on (kind of road, seed, ...); strings only.
    """

    token: str
    log_name: str
    map_name: str
    timestamp_us: int
    origin: Float[np.ndarray, "3"]
    ego: EgoStatus
    future: Float[np.ndarray, "F 3"] | None
    detections: tuple[Detections, ...]
    map: MapPatch
    roadblock_ids: tuple[str, ...] = ()
    red_light_connectors: frozenset[str] = frozenset()
    cameras: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def current_detections(self) -> Detections:
        """Objects around the ego at the current time."""
        return self.detections[HISTORY_FRAMES - 1]


@dataclass(frozen=True)
class Context:
    """What a planner attends to: a set of vectors, whatever made them.

    Attributes:
      tokens: (T, V) float32 or bfloat16; T and V are constants of the context source.
      mask: (T,) bool, True where a token is real and not padding.
    """

    tokens: Float[np.ndarray, "T V"]
    mask: Bool[np.ndarray, "T"]


@dataclass(frozen=True)
class PromptRow:
    """What a sample holds in place of `Context`: a row of a VLM batch.

    Attributes:
      row: Key -> array without batch axis.
    """

    row: Mapping[str, np.ndarray]

    def entries(self) -> dict[str, np.ndarray]:
        """Entries of the sample."""
        return dict(self.row)
