"""The classes in official metric caches, and one cache file as a record of what it says.

Source: specification of the data, section 6.2; NAVSIM `MetricCache.dump`.
"""

import lzma
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from recogdrive.data.safe_pickle import CorruptPickleError, Record, RecordForm, load_record_pickle

MAX_CACHE_BYTES = 2**26
"""Of the file and of the pickle in it. The pickles of navsim_mini have up to 0.9 MB."""
_MAX_INSTRUCTIONS = 2**22
_MAX_DICTIONARY = 2**27
"""Memory that a stream may ask its decompressor for; the largest preset needs half of it."""

_ACTOR = "nuplan.common.actor_state."
_SIMULATION = "nuplan.planning.simulation."
_CACHING = "navsim.planning.metric_caching.metric_cache"
_PDM = "navsim.planning.simulation.planner.pdm_planner."

METRIC_CACHE = f"{_CACHING}.MetricCache"
MAP_PARAMETERS = f"{_CACHING}.MapParameters"
TRAJECTORY = f"{_SIMULATION}trajectory.interpolated_trajectory.InterpolatedTrajectory"
EGO_STATE = f"{_ACTOR}ego_state.EgoState"
CAR_FOOTPRINT = f"{_ACTOR}car_footprint.CarFootprint"
DYNAMIC_STATE = f"{_ACTOR}dynamic_car_state.DynamicCarState"
POSE = f"{_ACTOR}state_representation.StateSE2"
VECTOR = f"{_ACTOR}state_representation.StateVector2D"
TIME_POINT = f"{_ACTOR}state_representation.TimePoint"
AGENT = f"{_ACTOR}agent.Agent"
STATIC_OBJECT = f"{_ACTOR}static_object.StaticObject"
ORIENTED_BOX = f"{_ACTOR}oriented_box.OrientedBox"
OBJECT_TYPE = f"{_ACTOR}tracked_objects_types.TrackedObjectType"
OBSERVATION = f"{_PDM}observation.pdm_observation.PDMObservation"
OCCUPANCY_MAP = f"{_PDM}observation.pdm_occupancy_map.PDMOccupancyMap"
DRIVABLE_MAP = f"{_PDM}observation.pdm_occupancy_map.PDMDrivableMap"
PATH = f"{_PDM}utils.pdm_path.PDMPath"
MAP_LAYER = "nuplan.common.maps.maps_datatypes.SemanticMapLayer"
POLYGON = "shapely.io.from_wkb"
OLD_POLYGON = "shapely.geometry.polygon.Polygon"

_FORMS = {
    RecordForm.STATE: (
        METRIC_CACHE,
        MAP_PARAMETERS,
        EGO_STATE,
        CAR_FOOTPRINT,
        DYNAMIC_STATE,
        OBSERVATION,
        AGENT,
        STATIC_OBJECT,
        ORIENTED_BOX,
        f"{_ACTOR}scene_object.SceneObjectMetadata",
        # NAVSIM v2 adds these.
        "navsim.common.dataclasses.Trajectory",
        f"{_SIMULATION}trajectory.trajectory_sampling.TrajectorySampling",
        f"{_SIMULATION}observation.observation_type.DetectionsTracks",
        f"{_ACTOR}tracked_objects.TrackedObjects",
    ),
    RecordForm.SLOTS: (POSE, VECTOR, TIME_POINT),
    RecordForm.CALL: (
        TRAJECTORY,
        f"{_ACTOR}vehicle_parameters.VehicleParameters",
        OCCUPANCY_MAP,
        DRIVABLE_MAP,
        PATH,
        OBJECT_TYPE,
        MAP_LAYER,
        POLYGON,
        "navsim.common.enums.SceneFrameType",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
    ),
    RecordForm.CONTENT: (OLD_POLYGON,),
}

RECORDS: Mapping[tuple[str, str], RecordForm] = MappingProxyType(
    {tuple(name.rsplit(".", 1)): form for form, names in _FORMS.items() for name in names}
)
"""(module, class) -> how its objects are written."""


class UnfitRecordError(ValueError):
    """Something in a cache that is not what NAVSIM writes there; says where and what, not in which file."""


def open_cache(path: Path, max_bytes: int = MAX_CACHE_BYTES) -> Any:
    """What a `metric_cache.pkl` holds, objects as records of `RECORDS`.

    Args:
      path: An LZMA stream of a pickle.
      max_bytes: Largest file, and largest pickle in it.

    Raises:
      ForbiddenPickleError: It names a class or function that is not listed; nothing of it has run.
      CorruptPickleError: It is damaged, ends early or is larger than `max_bytes`.
      OSError: It cannot be read.
    """
    with path.open("rb") as file:
        compressed = file.read(max_bytes + 1)
    if len(compressed) > max_bytes:
        raise CorruptPickleError(f"{path} is larger than {max_bytes} bytes; it is no metric cache.")
    data = _decompressed(compressed, str(path), max_bytes)
    return load_record_pickle(
        data, RECORDS, what="a metric cache", max_bytes=max_bytes, name=str(path), max_instructions=_MAX_INSTRUCTIONS
    )


def _decompressed(compressed: bytes, name: str, max_bytes: int) -> bytes:
    """The content of an LZMA stream of limited size, whatever size and memory the stream asks for."""
    decompressor = lzma.LZMADecompressor(memlimit=_MAX_DICTIONARY)
    try:
        data = decompressor.decompress(compressed, max_length=max_bytes + 1)
    except (lzma.LZMAError, EOFError, MemoryError) as error:
        raise CorruptPickleError(
            f"{name} ({len(compressed)} bytes) is no LZMA stream of a metric cache: {error}. Download it again."
        ) from error
    if len(data) > max_bytes:
        raise CorruptPickleError(f"{name} holds more than {max_bytes} bytes; it is no metric cache.")
    if not decompressor.eof:
        raise CorruptPickleError(f"{name} ({len(compressed)} bytes) ends early. Download it again.")
    if decompressor.unused_data:
        count = len(decompressor.unused_data)
        raise CorruptPickleError(f"{name} goes on for {count} bytes after its LZMA stream. Download it again.")
    return data


def fields_of(value: Any, class_name: str, where: str) -> Mapping[str, Any]:
    """Attributes of an object; raises UnfitRecordError if it is of another class."""
    return _record(value, class_name, where).fields


def args_of(value: Any, class_name: str, where: str, least: int = 1) -> tuple[Any, ...]:
    """Arguments that an object was made with; raises UnfitRecordError if it is of another class or has fewer."""
    args = _record(value, class_name, where).args
    if len(args) < least:
        raise UnfitRecordError(f"{where} is a {short(class_name)} of {len(args)} arguments instead of {least}")
    return args


def field(fields: Mapping[str, Any], name: str, where: str) -> Any:
    """One attribute; raises UnfitRecordError if it is not there."""
    if name not in fields:
        raise UnfitRecordError(f"{where} lacks {name}")
    return fields[name]


def number(value: Any, where: str) -> float:
    """A finite number; raises UnfitRecordError for anything else."""
    if type(value) not in (int, float) and not isinstance(value, np.floating | np.integer):
        raise UnfitRecordError(f"{where} is a {title(value)} instead of a number")
    converted = float(value)
    if not math.isfinite(converted):
        raise UnfitRecordError(f"{where} is {converted}")
    return converted


def integer(value: Any, where: str) -> int:
    """An integer of 64 bits; raises UnfitRecordError for anything else."""
    if type(value) is not int and not isinstance(value, np.integer):
        raise UnfitRecordError(f"{where} is a {title(value)} instead of an integer")
    if not -(2**63) <= int(value) < 2**63:
        raise UnfitRecordError(f"{where} is {int(value)}")
    return int(value)


def items(value: Any, where: str) -> list[Any] | tuple[Any, ...]:
    """A list; raises UnfitRecordError for anything else."""
    if not isinstance(value, list | tuple):
        raise UnfitRecordError(f"{where} is a {title(value)} instead of a list")
    return value


def strings(value: Any, where: str) -> list[str] | tuple[str, ...]:
    """A list of strings; raises UnfitRecordError for anything else."""
    found = items(value, where)
    if not {str}.issuperset(map(type, found)):
        raise UnfitRecordError(f"{where} holds something other than strings")
    return found


def title(value: Any) -> str:
    """What to call a value's type in messages."""
    return short(value.class_name) if isinstance(value, Record) else type(value).__name__


def short(class_name: str) -> str:
    """A class without its module."""
    return class_name.rsplit(".", 1)[-1]


def _record(value: Any, class_name: str, where: str) -> Record:
    if not isinstance(value, Record) or value.class_name != class_name:
        raise UnfitRecordError(f"{where} is a {title(value)} instead of a {short(class_name)}")
    return value
