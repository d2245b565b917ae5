"""The synthetic town as a source of scenes."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import gin
import numpy as np
import shapely
from jaxtyping import Float
from numpy.random import Generator

from recogdrive.data.synthetic import expert
from recogdrive.data.synthetic.drives import EARLIER_FRAMES, FRAMES, LAYOUTS, Drive, draw_drive
from recogdrive.data.synthetic.lights import Lights
from recogdrive.data.synthetic.paths import GRID_M
from recogdrive.data.types import (
    FRAME_INTERVAL_S,
    HISTORY_FRAMES,
    Box,
    Command,
    Detections,
    EgoStatus,
    MapElement,
    MapPatch,
    Scene,
)
from recogdrive.geometry import from_frame, points_to_frame, rotate, to_frame, wrap_angle
from recogdrive.suggestions import did_you_mean

MAP_NAME = "synthetic-town"
FIRST_TIMESTAMP_US = 1_600_000_000_000_000
SCENE_SPACING_US = 20_000_000
EARLIER_US = round(FRAME_INTERVAL_S * 1e6)
"""How much earlier the first frame of a pair is."""
_NOW = HISTORY_FRAMES - 1


@gin.register
class SyntheticTown:
    """Scene source of procedural driving scenes; each is a pure function of the seed and the number of its drive.

    Scene i shows drive `first_scene` + i. With two frames a drive, scenes 2k and 2k + 1 both show drive `first_scene` +
    k, the first half a second before the second, which is the scene there is with one frame. Drives are chosen by what
    the PDM score finds from the later frame on; from the earlier one about one driver in eighty does not score fully.

    Kinds of road alternate in the order of `layouts`; a kind named twice comes twice as often. Another seed, or a
    range of scene numbers that does not overlap, gives scenes never seen before. Scenes have no cameras.

    Args:
      num_scenes: How many scenes there are; even with two frames a drive.
      seed: Seed of the whole town, at least 0.
      first_scene: Number of the first drive, at least 0.
      layouts: Kinds of road, of `straight`, `curve`, `intersection`, `merge`.
      map_radius_m: Half side of the square of map around the ego; objects further away are not detected.
      name: Split name shown to people.
      frames_per_drive: 1, or 2 for pairs of consecutive frames, as two-frame extended comfort needs them.

    Attributes:
      report: `scenes`, and how many of them there are of each kind of road.

    Raises ValueError for an unknown layout (the nearest known is named) and numbers out of range.
    """

    def __init__(
        self,
        num_scenes: int,
        seed: int = 0,
        first_scene: int = 0,
        layouts: Sequence[str] = ("straight", "curve", "intersection", "merge"),
        map_radius_m: float = 100.0,
        name: str = "synthetic",
        frames_per_drive: int = 1,
    ):
        for argument, value, least in (
            ("num_scenes", num_scenes, 1),
            ("seed", seed, 0),
            ("first_scene", first_scene, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{argument}={value!r} must be a whole number of at least {least}")
        if frames_per_drive not in (1, 2):
            raise ValueError(f"frames_per_drive={frames_per_drive!r} must be 1 or 2")
        if num_scenes % frames_per_drive:
            raise ValueError(f"num_scenes={num_scenes} must be even with frames_per_drive=2, e.g. {num_scenes + 1}")
        if isinstance(layouts, str) or not layouts:
            raise ValueError(f"layouts={layouts!r} must be a non-empty list of {', '.join(LAYOUTS)}")
        for layout in layouts:
            if layout not in LAYOUTS:
                raise ValueError(f"unknown layout {layout!r}.{did_you_mean(str(layout), LAYOUTS)}")
        if not map_radius_m > 0:
            raise ValueError(f"map_radius_m={map_radius_m!r} must be positive, e.g. 100.0")
        self.num_scenes, self.seed, self.first_scene = int(num_scenes), int(seed), int(first_scene)
        self.layouts = tuple(layouts)
        self.map_radius_m = float(map_radius_m)
        self.name = name
        self.frames_per_drive = int(frames_per_drive)
        full, rest = divmod(self.num_scenes, len(self.layouts) * self.frames_per_drive)
        kinds = Counter({kind: full * self.frames_per_drive * n for kind, n in Counter(self.layouts).items()})
        kinds.update(self.kind_of(i) for i in range(rest))
        self.report: dict[str, int] = {
            "scenes": self.num_scenes,
            **{kind: kinds[kind] for kind in dict.fromkeys(self.layouts)},
        }

    def __len__(self) -> int:
        return self.num_scenes

    @property
    def tokens(self) -> tuple[str, ...]:
        """Token of every scene."""
        return tuple(self.token_of(i) for i in range(self.num_scenes))

    def kind_of(self, index: int) -> str:
        """Kind of road of a scene."""
        return self.layouts[self._number(index) % len(self.layouts)]

    def log_of(self, index: int) -> str:
        """Log name of a scene."""
        return f"town_seed{self.seed}_{self.kind_of(index)}_{self._number(index):06d}"

    def time_of(self, index: int) -> int:
        """Clock of a scene in microseconds."""
        time_us = FIRST_TIMESTAMP_US + self._number(index) * SCENE_SPACING_US
        return time_us - EARLIER_US if self._is_earlier(index) else time_us

    def token_of(self, index: int) -> str:
        """Token of a scene: 16 hexadecimal digits that depend on what the scene depends on."""
        return _digest(f"{self._drive_text(index)} earlier" if self._is_earlier(index) else self._drive_text(index))

    def __getitem__(self, index: int) -> Scene:
        """Builds scene `index` (negative: from the end). Raises IndexError outside of the source."""
        if not -self.num_scenes <= index < self.num_scenes:
            raise IndexError(f"scene {index} of {self.name!r}, which has {self.num_scenes} scenes")
        index = int(index) % self.num_scenes
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self._number(index)]))
        drive = draw_drive(self.kind_of(index), rng)
        return self._scene(index, drive, rng)

    def _number(self, index: int) -> int:
        """Number of the drive that a scene shows."""
        return self.first_scene + index // self.frames_per_drive

    def _is_earlier(self, index: int) -> bool:
        """Whether a scene is the earlier one of a pair."""
        return index % self.frames_per_drive < self.frames_per_drive - 1

    def _drive_text(self, index: int) -> str:
        """What identifies the drive of a scene in this town and others."""
        return f"{self.seed} {self._number(index)} {self.kind_of(index)}"

    def _scene(self, index: int, drive: Drive, rng: Generator) -> Scene:
        """The records of a drive, the town put somewhere on the globe."""
        town = np.array([rng.uniform(3.0e5, 7.0e5), rng.uniform(4.0e6, 4.7e6), rng.uniform(-np.pi, np.pi)])
        frames = EARLIER_FRAMES if self._is_earlier(index) else FRAMES
        poses = drive.ego.poses[frames]
        now = poses[_NOW]
        return Scene(
            token=self.token_of(index),
            log_name=self.log_of(index),
            map_name=MAP_NAME,
            timestamp_us=self.time_of(index),
            origin=from_frame(now, town),
            ego=_ego_status(drive, frames),
            future=to_frame(poses[HISTORY_FRAMES:], now),
            detections=_detections(drive, frames, self.map_radius_m, _digest(self._drive_text(index))),
            map=_map_patch(drive, now, float(town[2]), self.map_radius_m),
            roadblock_ids=_roadblocks(drive),
            red_light_connectors=_red_now(drive.lights, frames),
            metadata={
                "layout": drive.layout.kind,
                "turn": drive.route.turn,
                "signal": drive.signal,
                "seed": str(self.seed),
                "scene": str(self._number(index)),
                "attempts": str(drive.attempts),
            },
        )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _ego_status(drive: Drive, frames: slice) -> EgoStatus:
    """The ego at the history frames, each with the command that holds there."""
    history = slice(frames.start, frames.start + HISTORY_FRAMES * frames.step, frames.step)
    ego = drive.ego
    now = ego.poses[frames][_NOW]
    command = np.zeros((HISTORY_FRAMES, len(Command)), dtype=np.float32)
    for frame, (pose, s) in enumerate(zip(ego.poses[history], ego.s_m[history], strict=True)):
        # The surroundings of the ego are enough of the route, and cheaper to project on than all of it.
        first = max(int((s - 5.0) / GRID_M), 0)
        end = min(int((s + expert.LOOKAHEAD_M + 5.0) / GRID_M), int(drive.tables.length_m[0] / GRID_M) + 1)
        command[frame, expert.driving_command(drive.tables.poses[0, first:end], pose[:2])] = 1.0
    return EgoStatus(
        poses=to_frame(ego.poses[history], now),
        velocity=ego.velocity[history].astype(np.float32),
        acceleration=ego.acceleration[history].astype(np.float32),
        command=command,
    )


def _detections(drive: Drive, frames: slice, radius_m: float, drive_token: str) -> tuple[Detections, ...]:
    """Objects within `radius_m` of the ego at each recorded frame; a track has one token in all scenes of its drive."""
    objects = drive.objects
    now = drive.ego.poses[frames][_NOW]
    poses = to_frame(objects.poses[frames], now)
    ego = to_frame(drive.ego.poses[frames], now)
    near = np.linalg.norm(poses[..., :2] - ego[:, None, :2], axis=-1) <= radius_m
    visible = near & objects.present[frames]
    heading = poses[..., 2]
    velocity = objects.speed_mps[frames][..., None] * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    boxes = np.zeros((*heading.shape, len(Box)))
    boxes[..., : Box.Z] = poses[..., :2]
    boxes[..., Box.Z] = objects.size_m[:, 2] / 2
    boxes[..., Box.LENGTH : Box.HEADING] = objects.size_m
    boxes[..., Box.HEADING] = heading
    tracks = np.array([_digest(f"{drive_token} track {k}") for k in range(len(objects.classes))], dtype=object)
    return tuple(
        Detections(boxes[frame, seen], objects.classes[seen], velocity[frame, seen], tuple(tracks[seen]))
        for frame, seen in enumerate(visible)
    )


def _map_patch(drive: Drive, now: Float[np.ndarray, "3"], town_heading: float, radius_m: float) -> MapPatch:
    """Elements that meet the square around the ego whose sides follow the global axes."""
    corners = radius_m * np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    square = shapely.Polygon(rotate(corners, -town_heading) + now[:2])
    shapely.prepare(square)
    inside = shapely.intersects(square, drive.outlines)
    return MapPatch(
        radius_m, _to_scene_frame([e for e, i in zip(drive.layout.elements, inside, strict=True) if i], now)
    )


def _to_scene_frame(elements: Sequence[MapElement], now: Float[np.ndarray, "3"]) -> tuple[MapElement, ...]:
    """Elements with all their geometry in the scene frame; moves all points at once."""
    lines = []
    for element in elements:
        lines.append(element.polygon)
        if element.centerline is not None:
            lines += [element.centerline[:, :2], element.left_boundary, element.right_boundary]
    moved = points_to_frame(np.concatenate(lines), now)
    parts = iter(np.split(moved, np.cumsum([len(line) for line in lines])[:-1]))
    placed = []
    for element in elements:
        polygon = next(parts)
        centerline = left = right = None
        if element.centerline is not None:
            heading = wrap_angle(element.centerline[:, 2:] - now[2])
            centerline = np.concatenate([next(parts), heading], axis=-1)
            left, right = next(parts), next(parts)
        placed.append(
            MapElement(
                id=element.id,
                layer=element.layer,
                polygon=polygon,
                centerline=centerline,
                left_boundary=left,
                right_boundary=right,
                speed_limit_mps=element.speed_limit_mps,
                roadblock_id=element.roadblock_id,
                predecessors=element.predecessors,
                successors=element.successors,
                has_traffic_light=element.has_traffic_light,
            )
        )
    return tuple(placed)


def _roadblocks(drive: Drive) -> tuple[str, ...]:
    """Roadblocks and roadblock connectors of the ego's route, alternating."""
    roadblock = {element.id: element.roadblock_id for element in drive.layout.elements}
    return tuple(roadblock[element] for element in drive.route.elements)


def _red_now(lights: Lights, frames: slice) -> frozenset[str]:
    """Connectors whose light is red at the current time."""
    red = lights.red[frames][_NOW]
    return frozenset(connector for connector, closed in zip(lights.connectors, red, strict=True) if closed)
