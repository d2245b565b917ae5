"""Checks a scene before anything is scored in it, so that a bad one is named instead of scored wrongly."""

from collections.abc import Mapping

import numpy as np

from recogdrive.data.types import FUTURE_FRAMES, HISTORY_FRAMES, AgentClass
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.scene import DRIVABLE_LAYERS, LANE_LAYERS, ExtendedFacts, PdmScene, PolygonLayer
from recogdrive.pdm.state import CANDIDATE_POSES, NUM_OBSERVED, STATE_SIZE

SHAPES: dict[str, tuple[int | str, ...]] = {
    "origin": (3,),
    "ego_state": (STATE_SIZE,),
    "agent_poses": (NUM_OBSERVED, "A", 3),
    "agent_valid": (NUM_OBSERVED, "A"),
    "agent_sizes": ("A", 2),
    "agent_speeds": ("A",),
    "agent_types": ("A",),
    "vertices": ("V", 2),
    "ring_offsets": ("R1",),
    "polygon_offsets": ("P1",),
    "polygon_layers": ("P",),
    "polygon_on_route": ("P",),
    "centerline": ("C", 2),
    "normaliser_poses": (NUM_OBSERVED, 3),
    "human_poses": (CANDIDATE_POSES, 3),
}
"""Every array of a scene; letters are sizes that are equal wherever they stand (R1 is R + 1, P1 is P + 1)."""

GEOMETRY = ("agent_poses", "agent_sizes", "vertices", "centerline", "normaliser_poses", "human_poses")
"""Arrays that share one floating dtype."""

EXTENDED_SHAPES: dict[str, tuple[int | str, ...]] = {
    "agent_sightings": ("A", 2),
    "history_states": (HISTORY_FRAMES, STATE_SIZE),
    "history_times_us": (HISTORY_FRAMES,),
    "light_vertices": ("LV", 2),
    "light_offsets": ("L1",),
    "light_frames": ("L",),
    "normaliser_poses_v2": (NUM_OBSERVED, 3),
}
"""Every array of `ExtendedFacts`; A is that of the scene."""

_KINDS = {
    "agent_sightings": "i",
    "history_times_us": "i",
    "light_offsets": "i",
    "light_frames": "i",
    "agent_valid": "b",
    "polygon_on_route": "b",
    "agent_types": "i",
    "polygon_layers": "i",
    "ring_offsets": "i",
    "polygon_offsets": "i",
}
_KIND_NAMES = {"b": "bool", "i": "an integer dtype", "f": "float32 or float64"}
_FINITE = ("origin", "ego_state", "agent_poses", "agent_sizes", "agent_speeds", "vertices", "centerline")
_STEPS = ("agent_poses", "agent_valid", "normaliser_poses")
_LEAST_VERTICES = 3


def validate(scene: PdmScene) -> tuple[str, ...]:
    """Returns what is unusual about a scene that can be scored; one sentence each, empty for an ordinary scene.

    Warned of: no drivable polygon (every trajectory then counts as off the road), no lane on the route (all driving
    then counts as against the direction). A scene without agents is ordinary.

    Raises:
      SceneError: The scene cannot be scored: arrays of the wrong shape, dtype or number of steps, numbers that are not
        finite, sizes that are not positive, unknown classes or layers, offsets that do not increase or do not fit,
        rings of fewer than 3 vertices, a centre line without length, no normaliser; clocks, sightings or lights of
        the extended facts that contradict each other. Names scene, field and value.
    """
    if not isinstance(scene.token, str) or not scene.token:
        raise SceneError(f"token={scene.token!r} must be a non-empty string: it is the identity of the scene")
    if scene.normaliser_poses is None or np.size(scene.normaliser_poses) == 0:
        raise _error(scene, "normaliser_poses", "missing", "progress is measured against it: give 51 poses")
    _check_arrays(scene)
    _check_numbers(scene)
    _check_agents(scene)
    _check_polygons(scene)
    _check_centerline(scene)
    if scene.extended is not None:
        _check_extended(scene, scene.extended)
    warnings = []
    if not np.isin(scene.polygon_layers, DRIVABLE_LAYERS).any():
        warnings.append("no drivable polygon: every trajectory counts as off the drivable area")
    if not (scene.polygon_on_route & np.isin(scene.polygon_layers, LANE_LAYERS)).any():
        warnings.append("no lane of the route: every trajectory counts as driving against the direction")
    return tuple(warnings)


def _error(scene: PdmScene, field: str, found: str, remedy: str) -> SceneError:
    return SceneError(f"scene {scene.token}: {field} is {found}; {remedy}")


def _check_arrays(scene: PdmScene) -> None:
    """Kinds, shapes and dtypes of all arrays."""
    sizes: dict[str, tuple[int, str]] = {}
    _check_shapes(scene, scene, SHAPES, sizes)
    for field in ("origin", "ego_state"):
        if getattr(scene, field).dtype != np.float64:
            raise _error(scene, field, f"of dtype {getattr(scene, field).dtype}", "give float64")
    for field in GEOMETRY[1:]:
        first, dtype = scene.agent_poses.dtype, getattr(scene, field).dtype
        if dtype != first:
            raise _error(scene, field, f"of dtype {dtype}", f"agent_poses is {first}: give all geometry in one dtype")
    if scene.extended is not None:
        _check_shapes(scene, scene.extended, EXTENDED_SHAPES, sizes)
        for field in ("light_vertices", "normaliser_poses_v2"):
            dtype = getattr(scene.extended, field).dtype
            if dtype != scene.agent_poses.dtype:
                raise _error(scene, field, f"of dtype {dtype}", f"give {scene.agent_poses.dtype}")


def _check_shapes(
    scene: PdmScene,
    owner: PdmScene | ExtendedFacts,
    shapes: Mapping[str, tuple[int | str, ...]],
    sizes: dict[str, tuple[int, str]],
) -> None:
    """Kinds and shapes of the arrays of `owner`; sizes named by letters are entered into `sizes`."""
    for field, shape in shapes.items():
        array = getattr(owner, field)
        kind = _KINDS.get(field, "f")
        if not isinstance(array, np.ndarray):
            raise _error(scene, field, f"a {type(array).__name__}", "give a NumPy array")
        if array.dtype.kind != kind or (kind == "f" and array.dtype.itemsize not in (4, 8)):
            raise _error(scene, field, f"of dtype {array.dtype}", f"give {_KIND_NAMES[kind]}")
        if field in _STEPS and array.ndim == len(shape) and len(array) != NUM_OBSERVED:
            raise _error(scene, field, f"{len(array)} steps long", f"give {NUM_OBSERVED}, every 0.1 s from 0 to 5.0 s")
        expected = tuple(size if isinstance(size, int) else sizes.get(size, (None, ""))[0] for size in shape)
        if array.ndim != len(shape) or any(e not in (None, s) for e, s in zip(expected, array.shape, strict=True)):
            names = f"({', '.join(map(str, shape))})"
            known = ", ".join(f"{n}={s} in {first}" for n, (s, first) in sizes.items() if n in shape)
            raise _error(scene, field, f"of shape {array.shape}", f"give {names}{f' with {known}' if known else ''}")
        for name, size in zip(shape, array.shape, strict=True):
            if isinstance(name, str):
                sizes.setdefault(name, (size, field))


def _check_numbers(scene: PdmScene) -> None:
    """No NaN or infinity but the NaN of unknown human poses."""
    for field in (*_FINITE, "normaliser_poses"):
        array = getattr(scene, field)
        if not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise _error(scene, f"{field}{list(where)}", str(array[where]), "give finite numbers")
    if np.isinf(scene.human_poses).any():
        raise _error(scene, "human_poses", "infinite in places", "give finite poses, or NaN where they are unknown")


def _check_agents(scene: PdmScene) -> None:
    """Sizes, speeds and classes of the tracks."""
    if not (scene.agent_sizes > 0).all():
        track = int(np.argwhere(~(scene.agent_sizes > 0))[0, 0])
        found = f"{scene.agent_sizes[track].tolist()} m for track {track}"
        raise _error(scene, "agent_sizes", found, "give positive lengths and widths")
    if not (scene.agent_speeds >= 0).all():
        track = int(np.argmax(scene.agent_speeds < 0))
        found = f"{scene.agent_speeds[track]} m/s for track {track}"
        raise _error(scene, "agent_speeds", found, "give the magnitude of the velocity")
    _check_codes(scene, "agent_types", AgentClass)


def _check_codes(scene: PdmScene, field: str, codes: type[AgentClass] | type[PolygonLayer]) -> None:
    """Whether an array holds numbers of an enumeration only. Both enumerations count up from 0."""
    numbers = getattr(scene, field)
    unknown = (numbers < 0) | (numbers >= len(codes))
    if unknown.any():
        index = int(unknown.argmax())
        known = ", ".join(f"{code.value} {code.name}" for code in codes)
        raise _error(scene, f"{field}[{index}]", f"{numbers[index]}, unknown", f"give one of {known}")


def _check_polygons(scene: PdmScene) -> None:
    """Rings, polygons and layers of the map."""
    num_polygons = len(scene.polygon_layers)
    if len(scene.polygon_offsets) != num_polygons + 1:
        found = f"{len(scene.polygon_offsets)} entries long"
        raise _error(scene, "polygon_offsets", found, f"give {num_polygons + 1}, one more than polygon_layers has")
    _check_offsets(scene, "ring_offsets", len(scene.vertices), "vertices", _LEAST_VERTICES)
    _check_offsets(scene, "polygon_offsets", len(scene.ring_offsets) - 1, "rings", 1)
    _check_codes(scene, "polygon_layers", PolygonLayer)


def _check_offsets(
    scene: PdmScene, field: str, total: int, what: str, least: int, owner: ExtendedFacts | None = None
) -> None:
    """Offsets from 0 to `total` of which each interval holds at least `least` things."""
    offsets = getattr(scene if owner is None else owner, field)
    if len(offsets) == 0 or offsets[0] != 0:
        raise _error(scene, field, f"starting with {offsets[:1].tolist()}", "give offsets that start with 0")
    counts = np.diff(offsets)
    if (counts <= 0).any():
        index = int((counts <= 0).argmax())
        found = f"not increasing: {offsets[index]} is followed by {offsets[index + 1]} at {index + 1}"
        raise _error(scene, field, found, f"give each interval at least {least} {what}, or leave it out")
    if (counts < least).any():
        index = int((counts < least).argmax())
        raise _error(
            scene, field, f"giving ring {index} {counts[index]} {what}", f"a ring has at least {least}; leave it out"
        )
    if offsets[-1] != total:
        raise _error(scene, field, f"ending with {offsets[-1]}", f"there are {total} {what}: end with {total}")


def _check_centerline(scene: PdmScene) -> None:
    points = scene.centerline
    if len(points) < 2:
        raise _error(scene, "centerline", f"{len(points)} point(s) long", "progress needs a line of 2 points at least")
    if (points == points[0]).all():
        found = f"{len(points)} times the point {points[0].tolist()}"
        raise _error(scene, "centerline", found, "progress needs a line that has a length")


def _check_extended(scene: PdmScene, facts: ExtendedFacts) -> None:
    """History, sightings and lights."""
    for field in ("history_states", "light_vertices", "normaliser_poses_v2"):
        array = getattr(facts, field)
        if not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise _error(scene, f"{field}{list(where)}", str(array[where]), "give finite numbers")
    if not (np.diff(facts.history_times_us) > 0).all():
        raise _error(scene, "history_times_us", str(facts.history_times_us.tolist()), "give increasing clocks")
    first, last = facts.agent_sightings.astype(int).T
    fit = ((first == -1) & (last == -1)) | ((first >= 0) & (first <= last) & (last <= FUTURE_FRAMES))
    if not fit.all():
        track = int(np.argmin(fit))
        found = f"{facts.agent_sightings[track].tolist()} for track {track}"
        raise _error(scene, "agent_sightings", found, f"give frames from 0 to {FUTURE_FRAMES} in order, or -1 twice")
    _check_offsets(scene, "light_offsets", len(facts.light_vertices), "vertices", _LEAST_VERTICES, facts)
    if not ((facts.light_frames > 0) & (facts.light_frames < 2 ** (FUTURE_FRAMES + 1))).all():
        found = str(facts.light_frames.tolist())
        raise _error(scene, "light_frames", found, "set the bit of at least one of the frames 0 to 8, no other")
