"""NAVSIM/OpenScene logs on disk as a scene source."""

import collections
import operator
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin
import numpy as np
import tqdm
from absl import logging

from recogdrive.data.maps import map_path, open_map
from recogdrive.data.navsim_files import (
    choose_logs,
    find_data_root,
    find_filter,
    find_maps_root,
    find_split,
    find_yaml,
    shown,
)
from recogdrive.data.navsim_log import CAMERA_NAMES, THREE_WAY_COMMANDS, LogFrame, parse_windows, read_log, scene_of
from recogdrive.data.scene_filter import EXPECTED_SCENES, LOG_SPLIT_PARTS, SceneFilter
from recogdrive.data.types import FRAME_INTERVAL_S, FUTURE_FRAMES, HISTORY_FRAMES, Scene
from recogdrive.data.windows import filter_windows
from recogdrive.suggestions import did_you_mean

TIME_TOLERANCE_S = 0.1
"""Further than this from `FRAME_INTERVAL_S`, the distance of two frames is a gap: a lost frame makes it 1 s."""
_PROGRESS_FROM_LOGS = 50


@dataclass(frozen=True)
class _Window:
    """A scene's place on disk, and what is wrong with it."""

    log: int
    start: int
    timestamp_us: int
    map_name: str
    missing_images: tuple[str, ...]
    has_time_gap: bool


@gin.register
class NavsimScenes:
    """Scenes of a split of NAVSIM logs, in the order of NAVSIM's loader over logs sorted by name.

    Construction reads every log once and checks every number that a scene will use.

    Args:
      data_root: Folder with `navsim_logs` and `sensor_blobs`; by default the variable OPENSCENE_DATA_ROOT.
      split: Folder under `navsim_logs`: mini, trainval, test or private_test_e2e.
      scene_filter: What to take, or the path of its YAML file (from the working folder, else from `data_root`).
      maps_root: Folder with the map index; by default the variable NUPLAN_MAPS_ROOT, else `data_root`/maps.
      map_radius_m: Half side of the square of map around the ego.
      name: What to call the split in reports; by default the filter's name, else `split`.
      log_names: Only these of the filter's logs.
      log_split: YAML file of the official split of logs (found like the filter's): only the filter's logs in
        `log_split_part` are taken.
      log_split_part: train_logs, val_logs or test_logs.
      sensor_root: Folder of camera images; by default `data_root`/sensor_blobs/`split`.
      require_cameras: Cameras (`cam_f0` ...) whose image of the current frame has to exist.
      on_missing_camera: "error", or "skip" to leave such scenes out, counted and named.
      on_missing_log: "error", or "skip" to go on without logs that the filter names and the disk lacks.
      on_time_gap: What to do with scenes whose frames are not 0.5 s apart: "keep", as NAVSIM does, with a warning;
        "skip"; "error".
      three_way_commands: "pad" to accept commands of length 3, without "unknown", as old logs have them; "refuse".
      logs_in_memory: Parsed logs a process keeps, each some megabytes; any other is read again when it is needed.

    Attributes:
      name, split: As above.
      tokens: Scene tokens, in order.
      maps_root: Folder with the map index.
      report: Counts of what was found and of what was left out. `missing_camera` and `time_gaps` count scenes.
      missing_images: Images that `require_cameras` asks for and that are missing or empty.
      scene_filter: The filter in use.

    Raises:
      FileNotFoundError: The data root, split, filter, a log, a map or (unless skipped) an image is missing.
      ValueError: The split is empty, the filter matches nothing, a log is damaged or holds a number that is not
        finite, or an argument is out of range.
    """

    def __init__(
        self,
        data_root: str | None = None,
        split: str = "mini",
        scene_filter: SceneFilter | str | None = None,
        maps_root: str | None = None,
        map_radius_m: float = 100.0,
        name: str | None = None,
        log_names: Sequence[str] | None = None,
        log_split: str | None = None,
        log_split_part: str = "train_logs",
        sensor_root: str | None = None,
        require_cameras: Sequence[str] = (),
        on_missing_camera: str = "error",
        on_missing_log: str = "error",
        on_time_gap: str = "keep",
        three_way_commands: str = "refuse",
        logs_in_memory: int = 64,
    ) -> None:
        _check_choice("on_missing_camera", on_missing_camera, ("error", "skip"))
        _check_choice("on_missing_log", on_missing_log, ("error", "skip"))
        _check_choice("on_time_gap", on_time_gap, ("keep", "skip", "error"))
        _check_choice("three_way_commands", three_way_commands, THREE_WAY_COMMANDS)
        _check_choice("log_split_part", log_split_part, LOG_SPLIT_PARTS)
        for field, value in (("require_cameras", require_cameras), ("log_names", log_names)):
            if isinstance(value, str):
                raise ValueError(f"{field}={value!r} must be a list of names.")
        for camera in require_cameras:
            _check_choice("require_cameras", camera, CAMERA_NAMES)
        if not map_radius_m > 0 or logs_in_memory < 1:
            raise ValueError(f"map_radius_m={map_radius_m} and logs_in_memory={logs_in_memory} must be positive.")
        if log_names is not None and log_split is not None:
            raise ValueError("NavsimScenes takes log_names or log_split, not both.")
        root = find_data_root(data_root)
        self._log_dir = find_split(root, split)
        self._sensor_root = Path(sensor_root).expanduser() if sensor_root else root / "sensor_blobs" / split
        self.maps_root = find_maps_root(maps_root, root)
        self._map_radius_m = float(map_radius_m)
        self.split = split
        self._require_cameras = tuple(require_cameras)
        self._three_way_commands = three_way_commands
        self._logs_in_memory = logs_in_memory
        self._reset_memory()
        self.scene_filter = find_filter(scene_filter, root)
        _check_lengths(self.scene_filter)
        self.name = name or self.scene_filter.name or split
        self._logs, missing_logs = choose_logs(
            self._log_dir,
            self.scene_filter,
            log_names,
            None if log_split is None else find_yaml(log_split, root),
            log_split_part,
            on_missing_log,
        )
        self.report = {"logs": len(self._logs), "missing_logs": missing_logs, "scenes": 0}
        windows = self._index()
        self.missing_images = tuple(path for window in windows.values() for path in window.missing_images)
        windows = self._without_missing_images(windows, on_missing_camera)
        windows = self._without_time_gaps(windows, on_time_gap)
        self.report["scenes"] = len(windows)
        self.tokens = tuple(windows)
        self._log_of = np.array([window.log for window in windows.values()], dtype=np.int32)
        self._start_of = np.array([window.start for window in windows.values()], dtype=np.int32)
        self._time_of = np.array([window.timestamp_us for window in windows.values()], dtype=np.int64)
        for city in sorted({window.map_name for window in windows.values()}):
            map_path(self.maps_root, city)
        # A part of a filter has an expected number of scenes of its own, or none that is known.
        part = f"/{log_split_part}" if log_split else "" if log_names is None else "/log_names"
        self._warn_of_unexpected_count(f"{self.scene_filter.name}{part}", whole=not part)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Scene:
        """The scene at a position; reads its log and its city's map if this process does not hold them."""
        frames = self.frames(index)
        current = frames[HISTORY_FRAMES - 1]
        surroundings = open_map(self.maps_root, current.map_name).patch(current.pose, self._map_radius_m)
        metadata = {"split": self.split, "frame_index": str(int(self._start_of[index]) + HISTORY_FRAMES - 1)}
        return scene_of(frames, self.log_of(index), surroundings, self._sensor_root, metadata)

    def frames(self, index: int) -> tuple[LogFrame, ...]:
        """Frames of the scene at a position, history first, as the log has them."""
        index = range(len(self))[operator.index(index)]
        parsed, start = self._frames_of(int(self._log_of[index])), int(self._start_of[index])
        return tuple(parsed[start + offset] for offset in range(self.scene_filter.num_frames))

    def log_of(self, index: int) -> str:
        """Name of the log that a scene comes from."""
        return self._logs[self._log_of[operator.index(index)]]

    def time_of(self, index: int) -> int:
        """Clock of a scene's current frame in microseconds."""
        return int(self._time_of[operator.index(index)])

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the logs in memory: a worker process reads its own."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_parsed", "_lock")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset_memory()

    def _reset_memory(self) -> None:
        self._parsed: collections.OrderedDict[int, dict[int, LogFrame]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def _frames_of(self, log: int) -> dict[int, LogFrame]:
        """Frames of a log, by position; from memory, or read."""
        with self._lock:
            if log not in self._parsed:
                raw = read_log(self._log_dir / f"{self._logs[log]}.pkl")
                self._remember(log, raw, self._start_of[self._log_of == log].tolist())
            self._parsed.move_to_end(log)
            return self._parsed[log]

    def _remember(self, log: int, raw: list[dict[str, Any]], starts: list[int]) -> dict[int, LogFrame]:
        """Parses the frames of the windows that start there; forgets the log that was unused for longest."""
        length = self.scene_filter.num_frames
        self._parsed[log] = parse_windows(raw, self._logs[log], starts, length, self._three_way_commands)
        while len(self._parsed) > self._logs_in_memory:
            self._parsed.popitem(last=False)
        return self._parsed[log]

    def _index(self) -> dict[str, _Window]:
        """Token -> window. Source: NAVSIM `filter_scenes`, with logs sorted by name."""
        wanted = self.scene_filter
        listed = None if wanted.tokens is None else frozenset(wanted.tokens)
        windows: dict[str, _Window] = {}
        counts: collections.Counter[str] = collections.Counter(
            frames=0, dropped_short=0, dropped_no_route=0, dropped_not_listed=0, repeated_tokens=0
        )
        few = len(self._logs) <= _PROGRESS_FROM_LOGS
        for log, log_name in enumerate(tqdm.tqdm(self._logs, desc=f"Indexing {self.name}", unit="log", disable=few)):
            if wanted.max_scenes is not None and len(windows) >= wanted.max_scenes:
                break
            raw = read_log(self._log_dir / f"{log_name}.pkl")
            starts = filter_windows(raw, wanted, listed, windows.keys(), counts)
            frames = self._remember(log, raw, list(starts.values()))
            # A repeated token keeps its place in the order but takes the later window, as in NAVSIM's dict.
            counts["repeated_tokens"] += len(starts.keys() & windows.keys())
            windows |= {token: self._window(log, start, frames) for token, start in starts.items()}
        self.report |= counts
        if listed is not None:
            self.report["tokens_not_found"] = len(listed - windows.keys())
        if not windows:
            found = ", ".join(f"{what.replace('_', ' ')} {count}" for what, count in self.report.items())
            raise ValueError(
                f"Scene filter {wanted.name!r} matches nothing in {self._log_dir} ({found}). Check its "
                f"tokens, and that logs have windows of {wanted.num_frames} frames (has_route={wanted.has_route})."
            )
        return windows

    def _window(self, log: int, start: int, frames: Mapping[int, LogFrame]) -> _Window:
        used = [frames[start + offset] for offset in range(self.scene_filter.num_frames)]
        current = used[HISTORY_FRAMES - 1]
        if self.scene_filter.num_future_frames and any(frame.detections is None for frame in used):
            raise ValueError(
                f"Log {self._logs[log]}, token {current.token}: frames have no annotations (anns), as in the private "
                "test; such logs need a scene filter with num_future_frames=0."
            )
        steps_s = np.diff([frame.timestamp_us for frame in used]) / 1e6
        return _Window(
            log=log,
            start=start,
            timestamp_us=int(current.timestamp_us),
            map_name=current.map_name,
            missing_images=self._missing_images(log, current),
            has_time_gap=bool(np.any(np.abs(steps_s - FRAME_INTERVAL_S) > TIME_TOLERANCE_S)),
        )

    def _missing_images(self, log: int, frame: LogFrame) -> tuple[str, ...]:
        """Required images that are not there, or empty as interrupted downloads leave them."""
        missing = []
        for camera in self._require_cameras:
            if camera not in frame.cameras:
                missing.append(f"{camera} of token {frame.token}, which log {self._logs[log]} does not list")
                continue
            path = self._sensor_root / frame.cameras[camera]
            if not path.is_file() or path.stat().st_size == 0:
                missing.append(str(path))
        return tuple(missing)

    def _without_missing_images(self, windows: dict[str, _Window], on_missing: str) -> dict[str, _Window]:
        lacking = [token for token, window in windows.items() if window.missing_images]
        self.report["missing_camera"] = len(lacking)
        if not lacking:
            return windows
        message = (
            f"{len(lacking)} of {len(windows)} scenes of {self.name} lack an image ({len(self.missing_images)} missing "
            f"or empty): {shown(self.missing_images)}."
        )
        if on_missing == "error" or len(lacking) == len(windows):
            raise FileNotFoundError(
                f"{message} Complete the download, drop the camera from require_cameras={list(self._require_cameras)}, "
                'or leave such scenes out with on_missing_camera="skip" (not if it is all of them).'
            )
        logging.warning("%s They are left out.", message)
        return {token: window for token, window in windows.items() if not window.missing_images}

    def _without_time_gaps(self, windows: dict[str, _Window], on_gap: str) -> dict[str, _Window]:
        gaps = [token for token, window in windows.items() if window.has_time_gap]
        self.report["time_gaps"] = len(gaps)
        if not gaps:
            return windows
        message = (
            f"{len(gaps)} of {len(windows)} scenes of {self.name} have frames that are not {FRAME_INTERVAL_S} s apart: "
            f"{shown(gaps)}."
        )
        if on_gap == "error" or (on_gap == "skip" and len(gaps) == len(windows)):
            raise ValueError(f'{message} on_time_gap="skip" leaves such scenes out, "keep" takes them as they are.')
        logging.warning("%s They are %s.", message, "left out" if on_gap == "skip" else "kept, as NAVSIM does")
        return windows if on_gap == "keep" else {t: window for t, window in windows.items() if not window.has_time_gap}

    def _warn_of_unexpected_count(self, official_name: str, whole: bool) -> None:
        """Says loudly when a split is not what its name or its token list promises: downloads end early."""
        expected = EXPECTED_SCENES.get(official_name)
        if expected is None and whole and self.scene_filter.tokens is not None:
            expected = len(set(self.scene_filter.tokens))
        if expected is None or self.scene_filter.max_scenes is not None:
            return
        self.report["expected_scenes"] = expected
        if len(self) != expected:
            logging.warning(
                "%s has %d scenes, but %d are expected of %s. Figures on it are not comparable; check the download.",
                self.name,
                len(self),
                expected,
                official_name or "its token list",
            )


def _check_choice(field: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{field}={value!r} is not one of {list(known)}.{did_you_mean(str(value), known)}")


def _check_lengths(scene_filter: SceneFilter) -> None:
    if scene_filter.num_history_frames != HISTORY_FRAMES:
        raise ValueError(
            f"Scenes have {HISTORY_FRAMES} history frames; the filter {scene_filter.name!r} asks for "
            f"num_history_frames={scene_filter.num_history_frames}."
        )
    if 0 < scene_filter.num_future_frames < FUTURE_FRAMES:
        raise ValueError(
            f"The filter {scene_filter.name!r} has num_future_frames={scene_filter.num_future_frames}; scenes have at "
            f"least {FUTURE_FRAMES} (the planned horizon), or 0 where the future is unknown."
        )
