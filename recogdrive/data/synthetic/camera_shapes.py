"""What the synthetic front camera draws: coloured polygons in the scene frame, in the order of drawing."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from recogdrive.data.types import AgentClass, Box, MapElement, MapLayer, Scene
from recogdrive.geometry import box_corners, rotate

Color = tuple[int, int, int]
Face = tuple[Float[np.ndarray, "P 3"], Color]
"""Corners in metres (x forward, y left, z above the ground) and colour of a polygon."""

ASPHALT = (88, 90, 96)
GROUND_COLORS = (
    (MapLayer.WALKWAY, (186, 176, 158)),
    (MapLayer.GENERIC_DRIVABLE_AREA, (112, 112, 114)),
    (MapLayer.CARPARK_AREA, (124, 116, 110)),
    (MapLayer.INTERSECTION, ASPHALT),
    (MapLayer.LANE, ASPHALT),
    (MapLayer.LANE_CONNECTOR, ASPHALT),
)
WHITE, YELLOW = (232, 232, 228), (236, 190, 60)
RED, GREEN = (255, 32, 32), (32, 230, 96)
LAMP_OFF, SIGNAL_HOUSING = (52, 46, 44), (24, 24, 26)
SHADOW = (58, 60, 64)
WINDOW, HEADLIGHT, TAIL = (36, 42, 54), (255, 248, 205), (120, 20, 40)
AGENT_COLORS = {
    AgentClass.VEHICLE: (52, 104, 196),
    AgentClass.PEDESTRIAN: (222, 74, 190),
    AgentClass.BICYCLE: (240, 136, 30),
    AgentClass.TRAFFIC_CONE: (255, 96, 0),
    AgentClass.BARRIER: (214, 206, 190),
    AgentClass.CZONE_SIGN: (250, 150, 20),
    AgentClass.GENERIC_OBJECT: (134, 92, 58),
}

SIGHT_M = 90.0
"""What is farther ahead or aside is not drawn."""
MARKING_M = 0.16
DASH_M, DASH_PERIOD_M = 3.0, 9.0
SAME_PLACE_M = 0.4
"""Lane boundaries whose ends are closer than this are one."""
STRIPE_M = 0.6
"""Of a zebra crossing; the gaps are as wide."""
SIGNAL_BAR_M = 1.0
"""Depth of the coloured bar on the ground where a light stops traffic."""
SIGNAL_BEYOND_M = 18.0
"""Signals hang so far behind the stop line, so that whoever waits there sees them."""
SIGNAL_HEIGHT_M, LAMP_M = 4.6, 0.6
"""Middle of the housing above the ground; greatest radius of a lamp."""
SIGNAL_PASSED_M = 1.0
"""A light whose stop line lies so far behind the eye is passed."""
FACING_RAD = np.deg2rad(60)


def ground(scene: Scene) -> Iterator[Face]:
    """Surfaces, then the markings on them."""
    elements = [e for e in scene.map.elements if e.polygon is not None and _in_sight(e.polygon)]
    for layer, color in GROUND_COLORS:
        for element in elements:
            if element.layer == layer:
                yield _flat(element.polygon), color
    yield from _lane_markings([e for e in elements if e.layer == MapLayer.LANE])
    for element in elements:
        if element.layer == MapLayer.CROSSWALK:
            yield from _zebra(element.polygon)
    for element in elements:
        if element.layer == MapLayer.STOP_POLYGON:
            yield _flat(element.polygon), WHITE
    for place, (left, right), red in _signals(scene):
        along, across = _axes(place[2])
        near, far = place[:2] + 0.2 * along, place[:2] + (0.2 + SIGNAL_BAR_M) * along
        corners = [near + left * across, near + right * across, far + right * across, far + left * across]
        yield _flat(np.stack(corners)), RED if red else GREEN


def standing(scene: Scene, eye: Float[np.ndarray, "3"]) -> Iterator[Face]:
    """Road users, things and signals, the farthest first; of each the sides that face the eye."""
    things: list[tuple[float, int, list[Face]]] = []
    now = scene.current_detections
    for box, agent_class in zip(np.asarray(now.boxes, dtype=np.float64), now.classes, strict=True):
        if box[Box.X] > -box[Box.LENGTH] and _in_sight(box[None, [Box.X, Box.Y]]):
            distance = float(np.hypot(box[Box.X] - eye[0], box[Box.Y] - eye[1]))
            things.append((distance, len(things), list(_agent(box, AgentClass(int(agent_class)), eye))))
    for place, (left, right), red in _signals(scene):
        along, across = _axes(place[2])
        middle = place[:2] + SIGNAL_BEYOND_M * along + (left + right) / 2 * across
        distance = float(np.hypot(*(middle - eye[:2])))
        things.append((distance, len(things), list(_signal(middle, across, left - right, red))))
    for _, _, faces in sorted(things, key=lambda thing: (-thing[0], thing[1])):
        yield from faces


def _in_sight(xy: np.ndarray) -> bool:
    """Whether any of the bounding box of points is before the ego and near."""
    low, high = xy.min(axis=0), xy.max(axis=0)
    return bool(high[0] > 0.0 and low[0] < SIGHT_M and low[1] < SIGHT_M and high[1] > -SIGHT_M)


def _axes(heading: float) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """Unit vectors along a heading and to its left."""
    cos, sin = np.cos(heading), np.sin(heading)
    return np.array([cos, sin]), np.array([-sin, cos])


def _flat(xy: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "P 3"]:
    """Points on the ground."""
    return np.column_stack([xy, np.zeros(len(xy))])


def _lane_markings(lanes: list[MapElement]) -> Iterator[Face]:
    """Dashes between lanes of one direction, a white line at the right edge, a yellow one at the left."""
    blocks: dict[str | None, list[MapElement]] = {}
    for lane in lanes:
        if lane.left_boundary is not None and lane.right_boundary is not None:
            blocks.setdefault(lane.roadblock_id, []).append(lane)
    for block in blocks.values():
        rights = np.array([lane.right_boundary[0] for lane in block])
        lefts = np.array([lane.left_boundary[0] for lane in block])
        for k, lane in enumerate(block):
            if np.hypot(*(rights - lefts[k]).T).min() < SAME_PLACE_M:
                yield from ((dash, WHITE) for dash in _dashes(lane.left_boundary))
            else:
                yield _ribbon(lane.left_boundary), YELLOW
            if np.hypot(*(lefts - rights[k]).T).min() >= SAME_PLACE_M:
                yield _ribbon(lane.right_boundary), WHITE


def _normals(line: Float[np.ndarray, "L 2"]) -> Float[np.ndarray, "L 2"]:
    """Unit vectors to the left of a line at its vertices."""
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.hypot(*along.T), 1e-9)[:, None]
    return np.stack([-along[:, 1], along[:, 0]], axis=-1)


def _ribbon(line: Float[np.ndarray, "L 2"]) -> Float[np.ndarray, "P 3"]:
    """A strip of paint along a line."""
    aside = MARKING_M / 2 * _normals(line)
    return _flat(np.concatenate([line + aside, (line - aside)[::-1]]))


def _dashes(line: Float[np.ndarray, "L 2"]) -> Iterator[Float[np.ndarray, "4 3"]]:
    """Pieces of paint along a line, where they are in sight."""
    at = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    starts = np.arange(DASH_PERIOD_M / 2, at[-1], DASH_PERIOD_M)
    ends = np.minimum(starts + DASH_M, at[-1])
    begin = np.stack([np.interp(starts, at, line[:, k]) for k in (0, 1)], axis=-1)
    finish = np.stack([np.interp(ends, at, line[:, k]) for k in (0, 1)], axis=-1)
    along = finish - begin
    along /= np.maximum(np.hypot(*along.T), 1e-9)[:, None]
    aside = MARKING_M / 2 * np.stack([-along[:, 1], along[:, 0]], axis=-1)
    corners = np.stack([begin + aside, finish + aside, finish - aside, begin - aside], axis=1)
    nearest, farthest = corners[..., 0].min(axis=1), corners[..., 0].max(axis=1)
    for dash in corners[(farthest > 0.0) & (nearest < SIGHT_M)]:
        yield _flat(dash)


def _zebra(polygon: Float[np.ndarray, "P 2"]) -> Iterator[Face]:
    """White bars along the road, side by side over the length of a crossing."""
    edges = np.roll(polygon, -1, axis=0) - polygon
    longest = edges[np.argmax(np.hypot(*edges.T))]
    angle = float(np.arctan2(longest[1], longest[0]))
    upright = rotate(polygon, -angle)
    low, high = upright.min(axis=0), upright.max(axis=0)
    for start in np.arange(low[0] + STRIPE_M / 2, high[0] - STRIPE_M / 2, 2 * STRIPE_M):
        bar = [(start, low[1]), (start + STRIPE_M, low[1]), (start + STRIPE_M, high[1]), (start, high[1])]
        yield _flat(rotate(np.array(bar), angle)), WHITE


def _signals(scene: Scene) -> Iterator[tuple[Float[np.ndarray, "3"], tuple[float, float], bool]]:
    """Lights that the ego faces: pose of the stop line's middle, the part of it (to the left, m), whether red.

    Connectors that leave one lane share its stop line from left to right, so that an arrow for the left turn does
    not hide the light for straight on.
    """
    by_lane: dict[tuple[str, ...], list[MapElement]] = {}
    for element in scene.map.layer(MapLayer.LANE_CONNECTOR):
        if element.has_traffic_light and element.centerline is not None:
            x, y, heading = element.centerline[0]
            if SIGNAL_PASSED_M < x < SIGHT_M and abs(y) < x + 10.0 and abs(heading) < FACING_RAD:
                by_lane.setdefault(element.predecessors or (element.id,), []).append(element)
    for connectors in by_lane.values():
        start = connectors[0].centerline[0]
        # Where each leads to, seen from the stop line: the farther left, the farther left its light.
        ends = [rotate(c.centerline[-1, :2] - start[:2], -start[2])[1] for c in connectors]
        half = _half_width(connectors[0])
        edges = np.linspace(half, -half, len(connectors) + 1)
        for part, k in enumerate(np.argsort(ends, kind="stable")[::-1]):
            red = connectors[k].id in scene.red_light_connectors
            yield start, (float(edges[part]), float(edges[part + 1])), red


def _half_width(connector: MapElement) -> float:
    """Half the width of a connector at its start in metres."""
    if connector.left_boundary is None or connector.right_boundary is None:
        return 1.75
    return float(np.hypot(*(connector.left_boundary[0] - connector.right_boundary[0]))) / 2


def _signal(
    middle: Float[np.ndarray, "2"], across: Float[np.ndarray, "2"], width_m: float, red: bool
) -> Iterator[Face]:
    """A signal in a plane along `across`: housing, the lit lamp (red above, green below) and the dark one.

    Signals of one lane hang side by side, so the more there are the smaller they are.
    """
    radius = min(LAMP_M, 0.44 * width_m)

    def upright(above: float, half: tuple[float, float], corners: np.ndarray) -> np.ndarray:
        offsets = [0.0, above] + np.asarray(half) * corners
        return np.column_stack([middle + offsets[:, :1] * across, SIGNAL_HEIGHT_M + offsets[:, 1]])

    square = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    angle = np.arange(12) * np.pi / 6
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    yield upright(0.0, (1.1 * radius, 2.3 * radius), square), SIGNAL_HOUSING
    for is_on, above, color in ((red, 1.1, RED), (not red, -1.1, GREEN)):
        yield upright(above * radius, (radius, radius), circle), color if is_on else LAMP_OFF


def _agent(box: Float[np.ndarray, "7"], agent_class: AgentClass, eye: Float[np.ndarray, "3"]) -> Iterator[Face]:
    """Shadow, sides that face the eye and roof of a box that stands on the ground; windows and lights of vehicles."""
    pose = box[[Box.X, Box.Y, Box.HEADING]]
    length, width, height = box[[Box.LENGTH, Box.WIDTH, Box.HEIGHT]]
    yield _flat(box_corners(pose, length + 0.3, width + 0.3)), SHADOW
    corners = box_corners(pose, length, width)
    color = AGENT_COLORS[agent_class]
    to_eye = rotate(eye[:2] - pose[:2], -pose[2])
    # Sides between corners front-left, rear-left, rear-right, front-right: left, rear, right, front.
    facing = (to_eye[1] > width / 2, to_eye[0] < -length / 2, to_eye[1] < -width / 2, to_eye[0] > length / 2)
    for side, (visible, light) in enumerate(zip(facing, (0.78, 0.92, 0.62, 0.92), strict=True)):
        if visible:
            start, end = corners[side], corners[(side + 1) % 4]
            yield _wall(start, end, 0.0, height), _shade(color, light)
            if agent_class == AgentClass.VEHICLE:
                yield from _vehicle_details(start, end, height, side)
    if eye[2] > height:
        yield np.column_stack([corners, np.full(4, height)]), _shade(color, 1.15)


def _vehicle_details(start: np.ndarray, end: np.ndarray, height: float, side: int) -> Iterator[Face]:
    """Windows on a side of a vehicle, and its lights where the side is the rear (1) or the front (3)."""
    along = end - start
    yield _wall(start + 0.1 * along, end - 0.1 * along, 0.55 * height, 0.88 * height), WINDOW
    if side in (1, 3):
        lamp = HEADLIGHT if side == 3 else TAIL
        for first, last in ((0.05, 0.25), (0.75, 0.95)):
            yield _wall(start + first * along, start + last * along, 0.32 * height, 0.46 * height), lamp


def _wall(start: np.ndarray, end: np.ndarray, low: float, high: float) -> Float[np.ndarray, "4 3"]:
    """An upright rectangle over the line between two points."""
    return np.array([[*start, low], [*end, low], [*end, high], [*start, high]])


def _shade(color: Color, light: float) -> Color:
    """A colour under more or less light."""
    return tuple(min(255, round(channel * light)) for channel in color)
