"""Everything the PDM score needs to know of one scene, as plain arrays."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int


class PolygonLayer(IntEnum):
    """Kind of a map polygon, with the numbers of the reference data."""

    LANE = 0
    LANE_CONNECTOR = 1
    INTERSECTION = 2
    DRIVABLE_AREA = 3
    ROADBLOCK = 4
    CARPARK_AREA = 5


PDM_CLOSED = "pdm_closed"
"""`PdmScene.normaliser_name` of scenes whose normaliser is what NAVSIM's is."""
LANE_LAYERS = (PolygonLayer.LANE, PolygonLayer.LANE_CONNECTOR)
DRIVABLE_LAYERS = (
    PolygonLayer.ROADBLOCK,
    PolygonLayer.INTERSECTION,
    PolygonLayer.DRIVABLE_AREA,
    PolygonLayer.CARPARK_AREA,
)


@dataclass(frozen=True)
class ExtendedFacts:
    """What the extended score (EPDMS) needs of a scene beyond what the PDM score does.

    A tracks as in `PdmScene`, L red lights with V vertices; frames k = 0 ... 8 are the 2 Hz frames from now to 4.0 s.

    Attributes:
      agent_sightings: (A, 2) int8 first and last of the frames 0 ... 8 that show each track, (-1, -1) where none does.
        NAVSIM v2 observes 4 s instead of 5: a track seen in one of these frames alone stands there at all steps.
      history_states: (4, 11) float64 ego states at -1.5, -1.0, -0.5 and 0 s in the local frame, see `EgoState`.
      history_times_us: (4,) int64 their clocks.
      light_vertices: (V, 2) outlines of the lane connectors of the uncorrected route that are red in some frame, in the
        dtype of the scene's geometry, local frame, without repeated closing points.
      light_offsets: (L + 1,) int32; light l has vertices `light_offsets[l]:light_offsets[l + 1]`.
      light_frames: (L,) int16; bit k is set where light l is red in frame k, which counts for steps 5 k ... 5 k + 4.
      normaliser_poses_v2: (T, 3) as `PdmScene.normaliser_poses`, of the PDM-Closed of NAVSIM v2: it chooses among the
        same proposals, but by the extended score.

    Source: NAVSIM v2.2 `MetricCache`.
    """

    agent_sightings: Int[np.ndarray, "A 2"]
    history_states: Float[np.ndarray, "4 11"]
    history_times_us: Int[np.ndarray, "4"]
    light_vertices: Float[np.ndarray, "V 2"]
    light_offsets: Int[np.ndarray, "L1"]
    light_frames: Int[np.ndarray, "L"]
    normaliser_poses_v2: Float[np.ndarray, "T 3"]


@dataclass(frozen=True)
class PdmScene:
    """One scene to score trajectories in.

    All geometry is in one metric frame near the ego (the *local frame*): x, y in metres, headings counter-clockwise
    from its x axis; `origin` places it in the world. T = 51 observed steps of 0.1 s from now on, A tracks, P polygons
    with R rings of V vertices, C points of the centre line. Geometry (poses, sizes, vertices, centre line) is float32
    or float64, the same throughout a scene; scoring reads it in its own dtype.

    Attributes:
      token: Identity of the scene.
      log_name: Log it comes from.
      map_name: City or town.
      timestamp_us: Clock of the initial state.
      origin: (3,) float64 pose of the local frame in global coordinates.
      ego_state: (11,) float64 initial state in the local frame, see `EgoState`.
      agent_poses: (T, A, 3) box centre x, y and heading; zeros where absent.
      agent_valid: (T, A) bool, whether the track is there at that step.
      agent_sizes: (A, 2) length and width.
      agent_speeds: (A,) float64 speed in m/s at the first of the T steps where the track is there; what "is it stopped"
        means.
      agent_types: (A,) int8 of `AgentClass`.
      vertices: (V, 2) of all rings, without repeated closing points.
      ring_offsets: (R + 1,) int32; ring r holds vertices `ring_offsets[r]:ring_offsets[r + 1]`.
      polygon_offsets: (P + 1,) int32; polygon p holds rings `polygon_offsets[p]:polygon_offsets[p + 1]`, first its
        outline, then its holes.
      polygon_layers: (P,) int8 of `PolygonLayer`.
      polygon_on_route: (P,) bool; lanes and lane connectors of the route.
      centerline: (C, 2) of the route ahead, in driving direction; points may repeat.
      normaliser_poses: (T, 3) rear-axle poses of the trajectory whose progress counts as full, every 0.1 s from now on.
      normaliser_name: What drove it ("pdm_closed", or "expert" in the synthetic town).
      human_poses: (8, 3) driven rear-axle poses at 0.5 ... 4 s in the *initial rear-axle frame*; NaN where unknown.
      extended: For the extended score; None where unknown, as in official caches of NAVSIM v1 and in the town.
    """

    token: str
    log_name: str
    map_name: str
    timestamp_us: int
    origin: Float[np.ndarray, "3"]
    ego_state: Float[np.ndarray, "11"]
    agent_poses: Float[np.ndarray, "T A 3"]
    agent_valid: Bool[np.ndarray, "T A"]
    agent_sizes: Float[np.ndarray, "A 2"]
    agent_speeds: Float[np.ndarray, "A"]
    agent_types: Int[np.ndarray, "A"]
    vertices: Float[np.ndarray, "V 2"]
    ring_offsets: Int[np.ndarray, "R1"]
    polygon_offsets: Int[np.ndarray, "P1"]
    polygon_layers: Int[np.ndarray, "P"]
    polygon_on_route: Bool[np.ndarray, "P"]
    centerline: Float[np.ndarray, "C 2"]
    normaliser_poses: Float[np.ndarray, "T 3"]
    normaliser_name: str
    human_poses: Float[np.ndarray, "8 3"]
    extended: ExtendedFacts | None = None
