"""Context sources: what the planner attends to, made from a scene."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import gin
import numpy as np
from jaxtyping import Float

from recogdrive.data.types import HISTORY_FRAMES, AgentClass, Box, Context, MapElement, MapLayer, Scene


class ContextSource(Protocol):
    """Turns a scene into context tokens of constant shape; what fills them is the component's own business."""

    num_tokens: int
    width: int

    def __call__(self, scene: Scene) -> Context:
        """Makes the tokens of one scene."""
        ...


@gin.register
@dataclass(frozen=True)
class ContextShape:
    """Shape of context tokens that are made elsewhere: enough to describe an experiment, not to run it.

    Attributes:
      num_tokens: T.
      width: V.
    """

    num_tokens: int
    width: int

    def __call__(self, scene: Scene) -> Context:
        """Refuses.

        Raises:
          ValueError: Always; names the scene.
        """
        raise ValueError(
            f"Scene {scene.token} has no context: ContextShape gives its shape, ({self.num_tokens}, {self.width}). "
            "Bind CONTEXT to a context source."
        )


@gin.register
@dataclass(frozen=True)
class NoContext:
    """Context without tokens, for models that read the ego status alone."""

    num_tokens = 0
    width = 0

    def __call__(self, scene: Scene) -> Context:
        """An empty table, whatever the scene."""
        del scene
        return Context(np.zeros((0, 0), dtype=np.float32), np.zeros(0, dtype=bool))


class TokenKind(IntEnum):
    """What a token of `SceneTokens` stands for; one-hot within the token."""

    LANE = 0
    LANE_CONNECTOR = 1
    CROSSWALK = 2
    STOP_POLYGON = 3
    VEHICLE = 4
    PEDESTRIAN = 5
    BICYCLE = 6
    STATIC = 7


_KIND_OF_LAYER = {
    MapLayer.LANE: TokenKind.LANE,
    MapLayer.LANE_CONNECTOR: TokenKind.LANE_CONNECTOR,
    MapLayer.CROSSWALK: TokenKind.CROSSWALK,
    MapLayer.STOP_POLYGON: TokenKind.STOP_POLYGON,
}
_KIND_OF_CLASS = {
    AgentClass.VEHICLE: TokenKind.VEHICLE,
    AgentClass.PEDESTRIAN: TokenKind.PEDESTRIAN,
    AgentClass.BICYCLE: TokenKind.BICYCLE,
}

_POINTS = 6
"""Points a token carries: along a piece of lane, or an agent's four past and two extrapolated positions."""
_EXTRAPOLATION_S = (2.0, 4.0)
_POSITION_SCALE_M = 32.0
_SPEED_SCALE_MPS = 10.0
_SIZE_SCALE_M = 5.0
_WAVELENGTHS_M = (8.0, 16.0, 32.0, 64.0, 128.0)
"""Of the sines and cosines of a token's place: the planner reads tokens through one linear layer, which alone cannot
tell near from far."""

_FOURIER = 4 * len(_WAVELENGTHS_M)
_POINTS_AT = slice(0, 2 * _POINTS)
_DIRECTION_AT = slice(_POINTS_AT.stop, _POINTS_AT.stop + 2)
_FLAGS_AT = slice(_DIRECTION_AT.stop, _DIRECTION_AT.stop + 5)
_MOTION_AT = slice(_FLAGS_AT.stop, _FLAGS_AT.stop + 5)
_KIND_AT = slice(_MOTION_AT.stop, _MOTION_AT.stop + len(TokenKind))
_PLACE_AT = slice(_KIND_AT.stop, _KIND_AT.stop + _FOURIER)
TOKEN_WIDTH = _PLACE_AT.stop
_NO_FLAGS = (0.0,) * 5
_NO_MOTION = (0.0,) * 5


@gin.register
class SceneTokens:
    """Map and agents around the ego as a set of vectors.

    A lane or connector is cut into pieces of about `piece_length_m`; a piece, an area (crosswalk, stop polygon) or an
    agent is one token. Of each group the nearest to the ego are kept, nearest first, up to its limit; the rest of the
    table is padding with mask False. Every token holds, in this order: six points (scene frame, /32 m), direction
    (cosine, sine), flags (speed limit /10 m/s, has a limit, on the route, red light, governed by a light), motion
    (velocity x and y and speed /10 m/s, length and width /5 m), one-hot `TokenKind`, and sines and cosines of its
    place at five wavelengths.

    Args:
      num_map_tokens: Limit for pieces of lanes and areas.
      num_agent_tokens: Limit for agents.
      radius_m: Nothing whose nearest point is farther from the ego is kept.
      piece_length_m: Length of a piece of lane.

    Raises:
      ValueError: A limit or length is not positive.
    """

    width = TOKEN_WIDTH

    def __init__(
        self,
        num_map_tokens: int = 96,
        num_agent_tokens: int = 32,
        radius_m: float = 80.0,
        piece_length_m: float = 15.0,
    ) -> None:
        for name, value in [
            ("num_map_tokens", num_map_tokens),
            ("num_agent_tokens", num_agent_tokens),
            ("radius_m", radius_m),
            ("piece_length_m", piece_length_m),
        ]:
            if not value > 0:
                raise ValueError(f"SceneTokens.{name}={value} must be positive.")
        self.num_map_tokens = num_map_tokens
        self.num_agent_tokens = num_agent_tokens
        self.radius_m = radius_m
        self.piece_length_m = piece_length_m
        self.num_tokens = num_map_tokens + num_agent_tokens

    def __call__(self, scene: Scene) -> Context:
        """Makes the tokens of one scene: map first, then agents, each nearest first."""
        tokens = np.zeros((self.num_tokens, self.width), dtype=np.float32)
        mask = np.zeros(self.num_tokens, dtype=bool)
        groups = [
            (0, self.num_map_tokens, self._map_things(scene)),
            (self.num_map_tokens, self.num_agent_tokens, self._agent_things(scene)),
        ]
        for start, limit, things in groups:
            if not things:
                continue
            distance = np.array([thing.distance_m for thing in things])
            nearest = [i for i in np.argsort(distance, kind="stable")[:limit] if distance[i] <= self.radius_m]
            if nearest:
                tokens[start : start + len(nearest)] = _lay_out([things[i] for i in nearest])
                mask[start : start + len(nearest)] = True
        return Context(tokens=tokens, mask=mask)

    def _map_things(self, scene: Scene) -> list["_Thing"]:
        """Pieces of lanes, and areas."""
        route = frozenset(scene.roadblock_ids)
        things = []
        for element in scene.map.layer(*_KIND_OF_LAYER):
            kind = _KIND_OF_LAYER[element.layer]
            if element.centerline is not None:
                flags = _lane_flags(element, route, scene.red_light_connectors)
                for points in _pieces(element.centerline[:, :2], self.piece_length_m):
                    things.append(_Thing(kind, points, points[-1] - points[0], points.mean(axis=0), flags, _NO_MOTION))
            elif element.polygon is not None:
                points = _resample(np.concatenate([element.polygon, element.polygon[:1]]), _POINTS + 1)[:-1]
                direction = points[_POINTS // 2] - points[0]
                things.append(_Thing(kind, points, direction, points.mean(axis=0), _NO_FLAGS, _NO_MOTION))
        return things

    def _agent_things(self, scene: Scene) -> list["_Thing"]:
        """Every object of the current frame."""
        now = scene.current_detections
        rows = [dict(zip(d.track_tokens, d.boxes, strict=True)) for d in scene.detections[:HISTORY_FRAMES]]
        things = []
        for box, agent_class, velocity, track in zip(
            now.boxes, now.classes, now.velocity, now.track_tokens, strict=True
        ):
            position = box[[Box.X, Box.Y]]
            # A track that was not there yet stands at the first place it was seen.
            past = [frame[track][[Box.X, Box.Y]] if track in frame else None for frame in rows]
            first = next(p for p in past if p is not None)
            ahead = [position + velocity * t for t in _EXTRAPOLATION_S]
            motion = (*velocity / _SPEED_SCALE_MPS, np.hypot(*velocity) / _SPEED_SCALE_MPS)
            size = (box[Box.LENGTH] / _SIZE_SCALE_M, box[Box.WIDTH] / _SIZE_SCALE_M)
            things.append(
                _Thing(
                    kind=_KIND_OF_CLASS.get(AgentClass(int(agent_class)), TokenKind.STATIC),
                    points=np.array([first if p is None else p for p in past] + ahead),
                    direction=np.array([np.cos(box[Box.HEADING]), np.sin(box[Box.HEADING])]),
                    place=position,
                    flags=_NO_FLAGS,
                    motion=(*motion, *size),
                    distance_m=float(np.hypot(*position)),
                )
            )
        return things


@dataclass
class _Thing:
    """What becomes one token; the direction need not have unit length."""

    kind: TokenKind
    points: Float[np.ndarray, "6 2"]
    direction: Float[np.ndarray, "2"]
    place: Float[np.ndarray, "2"]
    flags: tuple[float, ...]
    motion: tuple[float, ...]
    distance_m: float = np.nan

    def __post_init__(self) -> None:
        if np.isnan(self.distance_m):
            self.distance_m = float(np.sqrt((self.points**2).sum(axis=1).min()))


def _lay_out(things: list[_Thing]) -> Float[np.ndarray, "n V"]:
    """Writes things into tokens, one a row."""
    tokens = np.zeros((len(things), TOKEN_WIDTH))
    rows = np.arange(len(things))
    tokens[:, _POINTS_AT] = np.array([t.points for t in things]).reshape(len(things), -1) / _POSITION_SCALE_M
    direction = np.array([t.direction for t in things])
    norm = np.linalg.norm(direction, axis=1, keepdims=True)
    tokens[:, _DIRECTION_AT] = np.divide(direction, norm, out=np.zeros_like(direction), where=norm > 0)
    tokens[:, _FLAGS_AT] = [t.flags for t in things]
    tokens[:, _MOTION_AT] = [t.motion for t in things]
    tokens[rows, _KIND_AT.start + np.array([t.kind for t in things])] = 1.0
    phase = np.array([t.place for t in things])[:, None, :] * (2 * np.pi / np.array(_WAVELENGTHS_M))[:, None]
    phase = phase.reshape(len(things), -1)  # (n, wavelength * coordinate)
    tokens[:, _PLACE_AT] = np.concatenate([np.sin(phase), np.cos(phase)], axis=1)
    return tokens


def _lane_flags(element: MapElement, route: frozenset[str], red: frozenset[str]) -> tuple[float, ...]:
    """Speed limit, has a limit, on the route, red light, governed by a light."""
    limit = element.speed_limit_mps
    is_red = element.layer is MapLayer.LANE_CONNECTOR and element.id in red
    flags = (limit is not None, element.roadblock_id in route, is_red, element.has_traffic_light or is_red)
    return (0.0 if limit is None else limit / _SPEED_SCALE_MPS, *map(float, flags))


def _pieces(line: Float[np.ndarray, "L 2"], length_m: float) -> Iterator[Float[np.ndarray, "6 2"]]:
    """Cuts a polyline into equal pieces of at most `length_m` and resamples each to six points."""
    total = float(_arc_length(line)[-1])
    if total == 0.0:
        return
    count = max(1, int(np.ceil(total / length_m - 1e-9)))
    fine = _resample(line, count * (_POINTS - 1) + 1)
    for i in range(count):
        yield fine[i * (_POINTS - 1) : (i + 1) * (_POINTS - 1) + 1]


def _resample(line: Float[np.ndarray, "L 2"], count: int) -> Float[np.ndarray, "count 2"]:
    """Places `count` points evenly along a polyline, its ends included."""
    along = _arc_length(line)
    at = np.arange(count) * (along[-1] / (count - 1))
    at[-1] = along[-1]
    points = np.empty((count, 2))
    points[:, 0], points[:, 1] = np.interp(at, along, line[:, 0]), np.interp(at, along, line[:, 1])
    return points


def _arc_length(line: Float[np.ndarray, "L 2"]) -> Float[np.ndarray, "L"]:
    """Distance along a polyline to each of its vertices."""
    step = line[1:] - line[:-1]
    along = np.zeros(len(line))
    np.cumsum(np.sqrt((step * step).sum(axis=1)), out=along[1:])
    return along
