"""One NAVSIM/OpenScene log: its frames checked and typed, and scenes made from consecutive frames."""

import operator
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float

from recogdrive.data.safe_pickle import load_log_pickle
from recogdrive.data.types import HISTORY_FRAMES, AgentClass, Box, Detections, EgoStatus, MapPatch, Scene
from recogdrive.geometry import Pose, rotate, to_frame, wrap_angle, yaw_of_quaternion

CAMERA_NAMES = ("cam_f0", "cam_l0", "cam_l1", "cam_l2", "cam_r0", "cam_r1", "cam_r2", "cam_b0")
"""Front, three left, three right, back; logs write them in upper case."""
THREE_WAY_COMMANDS = ("refuse", "pad")

_REQUIRED_KEYS = ("token", "timestamp", "map_location", "roadblock_ids", "cams")
_CLASS_NUMBERS = MappingProxyType({kind.name.lower(): int(kind) for kind in AgentClass})
_LONGEST_TEXT = 1024
_SHORTEST_ROTATION = 0.5
"""Rotations are quaternions of length 1, but for rounding."""
_ANNOTATION_KEYS = ("gt_boxes", "gt_names", "gt_velocity_3d", "instance_tokens", "track_tokens")


@dataclass(frozen=True)
class LogFrame:
    """One 2 Hz frame of a log.

    Attributes:
      token: Its identity.
      timestamp_us: Its clock.
      map_name: City.
      roadblock_ids: Route.
      pose: (3,) float64 global rear-axle pose.
      velocity: (2,) float32 m/s in the frame's own ego axes; None where it was not asked for.
      acceleration: (2,) float32 m/s^2, likewise.
      command: (4,) float32 one-hot, likewise.
      red_light_connectors: Lane connectors with a red light, in the log's order.
      detections: Objects in the frame's *own* ego frame; None where the log has no annotations.
      cameras: Camera name -> image path relative to the folder of sensor data.
    """

    token: str
    timestamp_us: int
    map_name: str
    roadblock_ids: tuple[str, ...]
    pose: Float[np.ndarray, "3"]
    velocity: Float[np.ndarray, "2"] | None
    acceleration: Float[np.ndarray, "2"] | None
    command: Float[np.ndarray, "4"] | None
    red_light_connectors: tuple[str, ...]
    detections: Detections | None
    cameras: Mapping[str, str]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Loads a log pickle as frame dicts in time order.

    Raises:
      DataPickleError: The pickle is damaged or holds more than data.
      ValueError: It is no list of frames, or a frame has no token or route; names the file and what is missing.
    """
    frames = load_log_pickle(path)
    if not isinstance(frames, list):
        raise ValueError(f"{path} holds a {type(frames).__name__} instead of a list of frames; it is no NAVSIM log.")
    for position, frame in enumerate(frames):
        missing = [key for key in _REQUIRED_KEYS if key not in frame] if isinstance(frame, dict) else ["every key"]
        if missing:
            raise ValueError(f"{path}: frame {position} lacks {', '.join(missing)}; it is no frame of a NAVSIM log.")
        # Filters look at these before a frame is parsed.
        _text(frame["token"], "token", f"{path}: frame {position}")
        _texts(frame["roadblock_ids"], "roadblock_ids", f"{path}: frame {position}")
    return frames


def parse_frame(
    raw: Mapping[str, Any], where: str, with_status: bool = True, three_way_commands: str = "refuse"
) -> LogFrame:
    """Checks one frame of `read_log` and converts what scenes use.

    Args:
      raw: Frame dict.
      where: Log and position, for messages.
      with_status: Whether velocity, acceleration and command are needed, as they are at history frames only.
      three_way_commands: What to do with commands of length 3: see `command_one_hot`.

    Raises:
      ValueError: A field is missing, has another shape, is not finite or not in its vocabulary; names log, token
        and field.
    """
    where = f"{where}, token {_text(raw['token'], 'token', where)}"
    try:
        return _parse(raw, where, with_status, three_way_commands)
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{where}: a field has another type than in NAVSIM logs: {error}.") from error


def _parse(raw: Mapping[str, Any], where: str, with_status: bool, three_way_commands: str) -> LogFrame:
    translation = _numbers(raw, "ego2global_translation", (3,), where)
    quaternion = _numbers(raw, "ego2global_rotation", (4,), where)
    with np.errstate(over="ignore"):
        length = np.linalg.norm(quaternion)
    if not _SHORTEST_ROTATION < length < 1 / _SHORTEST_ROTATION:
        raise ValueError(f"{where}: ego2global_rotation={quaternion.tolist()} has length {length}, it is no rotation.")
    dynamic = command = None
    if with_status:
        dynamic = _dynamic_state(raw, where)
        command = command_one_hot(_field(raw, "driving_command", where), three_way_commands, where)
    return LogFrame(
        token=str(raw["token"]),
        timestamp_us=_timestamp(raw, where),
        map_name=_text(raw["map_location"], "map_location", where),
        roadblock_ids=_texts(raw["roadblock_ids"], "roadblock_ids", where),
        pose=np.array([translation[0], translation[1], yaw_of_quaternion(quaternion)]),
        velocity=None if dynamic is None else dynamic[:2],
        acceleration=None if dynamic is None else dynamic[2:],
        command=command,
        red_light_connectors=_red_lights(raw, where),
        detections=None if raw.get("anns") is None else _parse_annotations(raw["anns"], where),
        cameras=_parse_cameras(raw["cams"], where),
    )


def parse_windows(
    raw: Sequence[Mapping[str, Any]], log_name: str, starts: Sequence[int], length: int, three_way_commands: str
) -> dict[int, LogFrame]:
    """Parses the frames that windows of one log use, each once: position in the log -> frame.

    Args:
      raw: Frames of `read_log`.
      log_name: For messages.
      starts: First frame of each window.
      length: Frames of a window, history first.
      three_way_commands: See `command_one_hot`.

    Raises:
      ValueError: See `parse_frame`.
    """
    used = {start + offset for start in starts for offset in range(length)}
    history = {start + offset for start in starts for offset in range(HISTORY_FRAMES)}
    return {
        position: parse_frame(
            raw[position], f"Log {log_name}, frame {position}", position in history, three_way_commands
        )
        for position in sorted(used)
    }


def _dynamic_state(raw: Mapping[str, Any], where: str) -> Float[np.ndarray, "4"]:
    """Velocity and acceleration, in the float32 of NAVSIM's agent input."""
    exact = _numbers(raw, "ego_dynamic_state", (4,), where)
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise ValueError(f"{where}: ego_dynamic_state={exact.tolist()} is beyond float32.")
    return rounded


def command_one_hot(value: Any, three_way_commands: str, where: str) -> Float[np.ndarray, "4"]:
    """A driving command as a one-hot vector in `Command`'s order.

    Args:
      value: Vector of length 4 (left, straight, right, unknown), or 3 as old logs have it, without the last.
      three_way_commands: "pad" appends a zero for unknown to a vector of length 3; "refuse" raises.
      where: Log, position and token, for messages.

    Raises:
      ValueError: The vector is not one-hot, has another length, or has length 3 and was not to be padded.
    """
    try:
        command = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{where}: driving_command={reprlib.repr(value)} is no vector of length 4.") from error
    if command.ndim != 1 or command.size not in (3, 4) or command.dtype.kind not in "biuf":
        raise ValueError(f"{where}: driving_command={reprlib.repr(value)} is no vector of length 4.")
    if np.count_nonzero(command == 1) != 1 or np.count_nonzero(command) != 1:
        raise ValueError(f"{where}: driving_command={command.tolist()} is not one-hot.")
    if command.size == 3:
        if three_way_commands != "pad":
            raise ValueError(
                f"{where}: driving_command={command.tolist()} has 3 entries; current logs have 4 (left, straight, "
                "right, unknown). If these are old logs in the order left, straight, right, set "
                'three_way_commands="pad".'
            )
        command = np.append(command, 0)
    return command.astype(np.float32)


def scene_of(
    frames: Sequence[LogFrame], log_name: str, surroundings: MapPatch, sensor_root: Path, metadata: Mapping[str, str]
) -> Scene:
    """Expresses consecutive frames in the ego frame of the fourth, the current one.

    Headings of boxes are wrapped, their z stays relative to the ego's height at their own time.

    Args:
      frames: 4 history frames with status, then any number of future frames.
      log_name: Log they come from.
      surroundings: Map around the current frame, in its frame.
      sensor_root: Folder that camera paths are relative to.
      metadata: Handed on.

    Source: NAVSIM `Scene.from_scene_dict_list`, `Scene.get_future_trajectory`, `Scene.get_agent_input`.
    """
    current = frames[HISTORY_FRAMES - 1]
    poses = to_frame(np.stack([frame.pose for frame in frames]), current.pose)
    history = frames[:HISTORY_FRAMES]
    return Scene(
        token=current.token,
        log_name=log_name,
        map_name=current.map_name,
        timestamp_us=current.timestamp_us,
        origin=current.pose,
        ego=EgoStatus(
            poses=poses[:HISTORY_FRAMES],
            velocity=np.stack([frame.velocity for frame in history]),
            acceleration=np.stack([frame.acceleration for frame in history]),
            command=np.stack([frame.command for frame in history]),
        ),
        future=poses[HISTORY_FRAMES:] if len(frames) > HISTORY_FRAMES else None,
        detections=tuple(_in_scene(frame.detections, pose) for frame, pose in zip(frames, poses, strict=True)),
        map=surroundings,
        roadblock_ids=current.roadblock_ids,
        red_light_connectors=frozenset(current.red_light_connectors),
        cameras={name: str(sensor_root / path) for name, path in current.cameras.items()},
        metadata=metadata,
    )


def _in_scene(detections: Detections | None, ego: Float[np.ndarray, "3"]) -> Detections:
    """Objects of one ego frame in the frame that `ego` is given in; none where they are not annotated."""
    if detections is None:
        nothing = np.zeros(0, dtype=np.int8)
        return Detections(boxes=np.zeros((0, len(Box))), classes=nothing, velocity=np.zeros((0, 2)), track_tokens=())
    boxes = detections.boxes.copy()
    boxes[:, : Box.Z] = rotate(boxes[:, : Box.Z], ego[Pose.HEADING]) + ego[: Pose.HEADING]
    boxes[:, Box.HEADING] = wrap_angle(boxes[:, Box.HEADING] + ego[Pose.HEADING])
    return Detections(
        boxes=boxes,
        classes=detections.classes,
        velocity=rotate(detections.velocity, ego[Pose.HEADING]),
        track_tokens=detections.track_tokens,
    )


def _field(raw: Mapping[str, Any], field: str, where: str) -> Any:
    if field not in raw:
        raise ValueError(f"{where}: {field} is missing.")
    return raw[field]


def _text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise ValueError(f"{where}: {field}={reprlib.repr(value)} is no name.")
    return str(value)


def _texts(value: Any, field: str, where: str) -> tuple[str, ...]:
    """Names; logs may write numbers without quotes."""
    if not isinstance(value, list | tuple | np.ndarray) or getattr(value, "ndim", 1) != 1:
        raise ValueError(f"{where}: {field}={reprlib.repr(value)} is no list of names.")
    return tuple(str(item) if _is_integer(item) else _text(item, field, where) for item in value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _timestamp(raw: Mapping[str, Any], where: str) -> int:
    timestamp = operator.index(raw["timestamp"])
    if not 0 <= timestamp < 2**63:
        raise ValueError(f"{where}: timestamp={timestamp} is no time in microseconds.")
    return timestamp


def _numbers(raw: Mapping[str, Any], field: str, shape: tuple[int | None, ...], where: str) -> np.ndarray:
    """A field as finite float64; None in `shape` stands for any length, and an empty field fits any of those."""
    try:
        array = np.asarray(_field(raw, field, where))
    except ValueError as error:
        raise ValueError(f"{where}: {field} holds something other than numbers: {error}") from error
    # Strings, complex numbers and integers beyond 64 bits would convert too, or nearly.
    if array.size and array.dtype.kind not in "iuf":
        raise ValueError(f"{where}: {field} holds something other than numbers: {reprlib.repr(array.flat[0])}")
    array = array.astype(np.float64) if array.size else np.zeros(array.shape)
    if array.size == 0 and shape[0] is None:
        array = array.reshape(0, *shape[1:])
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{where}: {field} has shape {array.shape} instead of {shape}.")
    if not np.isfinite(array).all():
        first = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ValueError(f"{where}: {field}{first} is {array[tuple(first)]}, not a finite number.")
    return array


def _parse_annotations(anns: Any, where: str) -> Detections:
    """Objects in the frame's own ego frame."""
    if not isinstance(anns, dict):
        raise ValueError(f"{where}: anns is a {type(anns).__name__} instead of a dict.")
    lengths = {key: len(_field(anns, key, f"{where}: anns")) for key in _ANNOTATION_KEYS}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{where}: anns has fields of different lengths: {lengths}.")
    names = _texts(anns["gt_names"], "gt_names", f"{where}: anns")
    unknown = sorted(set(names) - set(_CLASS_NUMBERS))
    if unknown:
        raise ValueError(f"{where}: anns.gt_names holds {reprlib.repr(unknown)}; known are {list(_CLASS_NUMBERS)}.")
    boxes = _numbers(anns, "gt_boxes", (None, len(Box)), f"{where}: anns")
    velocity = _numbers(anns, "gt_velocity_3d", (None, 3), f"{where}: anns")
    return Detections(
        boxes=boxes,
        classes=np.array([_CLASS_NUMBERS[name] for name in names], dtype=np.int8),
        velocity=velocity[:, :2],
        track_tokens=_texts(anns["track_tokens"], "track_tokens", f"{where}: anns"),
    )


def _red_lights(raw: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Lane connectors with a red light, each once, in the log's order."""
    lights = raw.get("traffic_lights")
    red: dict[str, None] = {}
    try:
        for connector, is_red in () if lights is None else lights:
            if not isinstance(is_red, bool | np.bool_):
                raise TypeError(f"{reprlib.repr(is_red)} is neither True nor False")
            if is_red:
                red[str(operator.index(connector))] = None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: traffic_lights is no list of (connector id, is red): {error}.") from error
    return tuple(red)


def _parse_cameras(cams: Any, where: str) -> dict[str, str]:
    cameras = {}
    for name, camera in cams.items():
        path = camera.get("data_path")
        if path is None:
            continue
        field = f"cams.{_text(name, 'cams', where)}.data_path"
        path = PurePosixPath(_text(path, field, where))
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{where}: {field}={str(path)!r} leads out of the folder of sensor data.")
        cameras[name.lower()] = str(path)
    return cameras
