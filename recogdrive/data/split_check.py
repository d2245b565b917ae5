"""Whether splits are complete on disk: every log read once, every scene checked as `NavsimScenes` would take it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import gin
import tqdm

from recogdrive.cores import usable_cores
from recogdrive.data.inventory import LOGS_FOLDER, SENSORS_FOLDER, in_words, map_problem
from recogdrive.data.log_check import NAMED, LogFindings, ScenesWanted, check_logs
from recogdrive.data.maps import map_path
from recogdrive.data.navsim_files import find_filter, find_split, find_yaml, shown
from recogdrive.data.navsim_log import CAMERA_NAMES
from recogdrive.data.scene_filter import EXPECTED_SCENES, SceneFilter, read_log_split
from recogdrive.data.types import HISTORY_FRAMES
from recogdrive.suggestions import did_you_mean

MOST_WORKERS = 16
_PROGRESS_FROM_LOGS = 50
_WHERE_FILTERS_ARE = "NAVSIM's repository has its YAML files under navsim/planning/script/config"


@gin.register
@dataclass(frozen=True)
class SplitDefinition:
    """A split by name: which scenes of which logs it is.

    Attributes:
      name: What it is called.
      split: Folder of its logs and of its sensor data.
      scene_filter: What to take, or the path of its YAML file (from the working folder, else from the data root). Its
        `max_scenes` is not heeded: it is about what to use of a split.
      log_split: YAML file of the official split of logs, found likewise: scenes are counted by its parts too.
      expected_scenes: How many scenes it has; by default the official number of that filter, or its tokens.
      three_way_commands: See `command_one_hot`.
    """

    name: str
    split: str
    scene_filter: SceneFilter | str | None = None
    log_split: str | None = None
    expected_scenes: int | None = None
    three_way_commands: str = "refuse"


@dataclass(frozen=True)
class ImageCounts:
    """Images of one camera.

    Attributes:
      wanted: That scenes need.
      missing: Of these, not there.
      empty: Of these, there without content, as interrupted downloads leave them.
    """

    wanted: int
    missing: int
    empty: int


@dataclass(frozen=True)
class SplitReport:
    """What was found of a split.

    Attributes:
      name: Of its definition.
      folder: Of its logs.
      logs: Logs that were read.
      logs_expected: Logs that the filter names; all that are there, where it names none.
      missing_logs: Named and not there.
      damaged: Log -> why it cannot be used; its scenes count as not found.
      frames: In the logs that were read.
      scenes: Found and sound.
      scenes_expected: Of the complete split; None where that is not known.
      parts: Part of the log split -> scenes found, scenes expected (None where not known).
      gaps: Scenes whose frames are not 0.5 s apart; they count as found, as in NAVSIM.
      first_gaps: Some of them.
      images: By camera.
      first_images: Some that are missing or empty.
      cities: Maps that the scenes need.
      problems: Everything that keeps the split from being complete, in words.
    """

    name: str
    folder: str
    logs: int = 0
    logs_expected: int | None = None
    missing_logs: tuple[str, ...] = ()
    damaged: Mapping[str, str] = field(default_factory=dict)
    frames: int = 0
    scenes: int = 0
    scenes_expected: int | None = None
    parts: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    gaps: int = 0
    first_gaps: tuple[str, ...] = ()
    images: Mapping[str, ImageCounts] = field(default_factory=dict)
    first_images: tuple[str, ...] = ()
    cities: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.problems


@dataclass
class _Search:
    """A definition with what it comes to on this disk."""

    definition: SplitDefinition
    wanted: ScenesWanted | None = None
    logs: tuple[str, ...] = ()
    missing_logs: tuple[str, ...] = ()
    logs_expected: int | None = None
    parts: Mapping[str, frozenset[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    findings: list[LogFindings] = field(default_factory=list)


def check_splits(
    data_root: Path,
    maps_root: Path,
    definitions: Sequence[SplitDefinition],
    *,
    cameras: Sequence[str] = CAMERA_NAMES,
    history_images: bool = False,
    workers: int | None = None,
) -> list[SplitReport]:
    """Checks splits; what is missing or damaged is reported, and checking goes on.

    Splits of one folder share the reading of its logs, and of a log in memory there is one a process.

    Args:
      data_root: Folder with `navsim_logs` and `sensor_blobs`.
      maps_root: Folder with the map index.
      definitions: The splits.
      cameras: Cameras whose images have to be there.
      history_images: Whether images of the history frames have to be there too.
      workers: Processes; by default one a core, and at most 16.

    Raises:
      ValueError: A camera is unknown, the number of processes is not positive, or a process died.
    """
    for camera in cameras:
        if camera not in CAMERA_NAMES:
            raise ValueError(f"There is no camera {camera!r}.{did_you_mean(str(camera), CAMERA_NAMES)}")
    searches = [_search(data_root, definition, tuple(cameras), history_images) for definition in definitions]
    workers = min(len(usable_cores()), MOST_WORKERS) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers={workers} must be positive.")
    for folder in dict.fromkeys(search.definition.split for search in searches):
        here = [search for search in searches if search.definition.split == folder and search.wanted is not None]
        _read_folder(data_root / LOGS_FOLDER / folder, here, workers)
    return [_report(search, maps_root) for search in searches]


def _search(data_root: Path, definition: SplitDefinition, cameras: tuple[str, ...], history_images: bool) -> _Search:
    search = _Search(definition)
    scene_filter = there = None
    try:
        scene_filter = find_filter(definition.scene_filter, data_root)
    except (ValueError, OSError) as error:
        search.problems.append(f"scene filter: {in_words(error)} {_WHERE_FILTERS_ARE}/common/train_test_split.")
    try:
        there = {path.stem for path in find_split(data_root, definition.split).glob("*.pkl")}
    except (ValueError, OSError) as error:
        search.problems.append(in_words(error))
    if definition.log_split is not None:
        try:
            parts = read_log_split(find_yaml(definition.log_split, data_root))
            search.parts = {part: frozenset(logs) for part, logs in parts.items()}
        except (ValueError, OSError) as error:
            search.problems.append(f"log split: {in_words(error)} {_WHERE_FILTERS_ARE}/training.")
    if scene_filter is None:
        return search
    if scene_filter.num_history_frames != HISTORY_FRAMES:
        search.problems.append(
            f"scene filter: num_history_frames={scene_filter.num_history_frames}, scenes have {HISTORY_FRAMES}"
        )
        return search
    asked = set(there or ()) if scene_filter.log_names is None else set(scene_filter.log_names)
    search.logs_expected = None if there is None and scene_filter.log_names is None else len(asked)
    tokens = None if scene_filter.tokens is None else frozenset(scene_filter.tokens)
    search.wanted = ScenesWanted(
        replace(scene_filter, tokens=None, log_names=None),
        tokens,
        data_root / SENSORS_FOLDER / definition.split,
        cameras,
        history_images,
        definition.three_way_commands,
    )
    if there is not None:
        search.logs = tuple(sorted(asked & there))
        search.missing_logs = tuple(sorted(asked - there))
    return search


def _read_folder(folder: Path, searches: Sequence[_Search], workers: int) -> None:
    """Hands every log's findings to the searches that want it."""
    sets = [frozenset(search.logs) for search in searches]
    takers = {log: tuple(i for i, logs in enumerate(sets) if log in logs) for log in sorted(frozenset().union(*sets))}
    paths = [folder / f"{log}.pkl" for log in takers]
    found = check_logs(paths, list(takers.values()), [search.wanted for search in searches], workers)
    few = len(paths) < _PROGRESS_FROM_LOGS
    progress = tqdm.tqdm(found, desc=f"Reading {folder.name}", unit="log", total=len(paths), disable=few)
    for indices, findings in zip(takers.values(), progress, strict=True):
        for index, one in zip(indices, findings, strict=True):
            searches[index].findings.append(one)


def _report(search: _Search, maps_root: Path) -> SplitReport:
    definition, findings = search.definition, search.findings
    damaged = {found.log: found.damage for found in findings if found.damage}
    tokens = {token for found in findings for token in found.tokens}
    gaps = [token for found in findings for token in found.gaps]
    wanted, missing, empty = (_total(findings, kind) for kind in ("images", "missing", "empty"))
    images = {camera: ImageCounts(wanted[camera], missing[camera], empty[camera]) for camera in wanted}
    report = SplitReport(
        name=definition.name,
        folder=definition.split,
        logs=len(findings),
        logs_expected=search.logs_expected,
        missing_logs=search.missing_logs,
        damaged=damaged,
        frames=sum(found.frames for found in findings),
        scenes=len(tokens),
        scenes_expected=_expected_scenes(search),
        parts=_parts(search),
        gaps=len(gaps),
        first_gaps=tuple(gaps[:NAMED]),
        images=images,
        first_images=tuple([path for found in findings for path in found.named][:NAMED]),
        cities=tuple(sorted({city for found in findings for city in found.cities})),
    )
    return replace(report, problems=(*search.problems, *_problems(report, search, maps_root)))


def _total(findings: Sequence[LogFindings], kind: str) -> Counter[str]:
    return sum((Counter(getattr(found, kind)) for found in findings), Counter())


def _expected_scenes(search: _Search) -> int | None:
    if search.definition.expected_scenes is not None:
        return search.definition.expected_scenes
    if search.wanted is None:
        return EXPECTED_SCENES.get(search.definition.name)
    listed = None if search.wanted.tokens is None else len(search.wanted.tokens)
    return EXPECTED_SCENES.get(search.wanted.scene_filter.name, listed)


def _parts(search: _Search) -> dict[str, tuple[int, int | None]]:
    """Scenes of the log split's parts that have logs of this split or ought to have scenes."""
    name = "" if search.wanted is None else search.wanted.scene_filter.name
    parts = {}
    for part, logs in search.parts.items():
        expected = EXPECTED_SCENES.get(f"{name}/{part}")
        if expected is not None or logs.intersection(search.logs):
            tokens = {token for found in search.findings if found.log in logs for token in found.tokens}
            parts[part] = (len(tokens), expected)
    return parts


def _problems(report: SplitReport, search: _Search, maps_root: Path) -> Iterator[str]:
    """What keeps a split whose logs were read from being complete."""
    if report.missing_logs:
        missing = len(report.missing_logs)
        yield f"{missing:,} of {report.logs_expected:,} logs are missing: {shown(report.missing_logs)}"
    if report.damaged:
        yield f"{len(report.damaged):,} of {report.logs:,} logs are damaged, see below"
    listed = None if search.wanted is None or search.wanted.tokens is None else len(search.wanted.tokens)
    if listed is not None and report.scenes_expected is not None and listed != report.scenes_expected:
        yield f"the scene filter lists {listed:,} tokens instead of {report.scenes_expected:,}"
    if not search.findings:
        return
    if report.scenes != (report.scenes_expected or report.scenes):
        yield f"{report.scenes:,} scenes instead of {report.scenes_expected:,}"
    elif report.scenes == 0:
        yield "no log has a scene that the filter takes"
    for part, (scenes, expected) in report.parts.items():
        if scenes != (expected or scenes):
            yield f"{part}: {scenes:,} scenes instead of {expected:,}"
    lacking = sum(count.missing + count.empty for count in report.images.values())
    if lacking:
        wanted = sum(count.wanted for count in report.images.values())
        yield f"{lacking:,} of {wanted:,} images are missing or empty: {shown(report.first_images)}"
    for city in report.cities:
        try:
            problem = map_problem(map_path(maps_root, city))
        except (ValueError, OSError) as error:
            problem = in_words(error)
        if problem:
            yield f"map of {city}: {problem}"
