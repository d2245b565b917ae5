"""nuPlan's maps: one city's GeoPackage as `MapElement`s, cut to a `MapPatch` around a pose."""

import dataclasses
import functools
import json
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import shapely
from jaxtyping import Float

from recogdrive.data.geopackage import GeoPackage
from recogdrive.data.map_layers import read_layers
from recogdrive.data.types import MapElement, MapLayer, MapPatch
from recogdrive.geometry import points_to_frame, to_frame
from recogdrive.suggestions import did_you_mean

MAP_INDEX = "nuplan-maps-v1.0.json"
_MAPS_VARIABLE = "NUPLAN_MAPS_ROOT"
_CITY_ALIASES = MappingProxyType({"las_vegas": "us-nv-las-vegas-strip"})
"""Names that logs use beside the map's own. Source: NAVSIM `Scene.from_scene_dict_list`."""

_PATCH_LAYERS = tuple(layer for layer in MapLayer if layer is not MapLayer.ROAD_SEGMENT)
"""What a `MapPatch` holds: road segments cover the ground of roadblocks and lanes a second time."""

_DRIVABLE_LAYERS = (
    MapLayer.ROAD_SEGMENT,
    MapLayer.INTERSECTION,
    MapLayer.GENERIC_DRIVABLE_AREA,
    MapLayer.CARPARK_AREA,
)


def map_path(maps_root: str | Path, city: str) -> Path:
    """File of a city's map, by the index in `maps_root`; opens nothing but the index.

    Raises:
      FileNotFoundError: The folder, its index or the city's file is missing.
      ValueError: The index does not know the city, or is damaged.
    """
    index_path = Path(maps_root) / MAP_INDEX
    city = _CITY_ALIASES.get(city, city)
    if not index_path.is_file():
        what = "has no" if index_path.parent.is_dir() else "does not exist, so there is no"
        raise FileNotFoundError(
            f"Map folder {maps_root} {what} {MAP_INDEX}; set {_MAPS_VARIABLE} (or maps_root) to the folder with it."
        )
    index = _read_index(index_path)
    if city not in index:
        raise ValueError(
            f"{index_path} knows no city {city!r} ({_MAPS_VARIABLE}={maps_root}).{did_you_mean(city, index)}"
        )
    path = index_path.parent / city / index[city] / "map.gpkg"
    if not path.is_file():
        raise FileNotFoundError(
            f"No map of {city} at {path}; {_MAPS_VARIABLE} (or maps_root) is {maps_root}, "
            f"and {index_path.name} asks for version {index[city]}."
        )
    return path


def _read_index(path: Path) -> dict[str, str]:
    """City -> version."""
    try:
        return {city: str(entry["version"]) for city, entry in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no map index: {type(error).__name__}: {error}. Download it again.") from error


class NuPlanMap:
    """Map of one city in its UTM plane, read whole at construction and unchangeable after it.

    Args:
      maps_root: Folder with `nuplan-maps-v1.0.json`.
      city: One of the cities of the index.

    Attributes:
      elements: Layer -> its elements in table order. Their geometry is *global* (UTM metres, float64), unlike that
        of the elements of a `MapPatch`.

    The queries raise ValueError for a point that is not finite.

    Raises:
      FileNotFoundError, ValueError: As `map_path`; ValueError also for a missing layer or column and for a damaged
        or unexpected geometry. All name the path.
    """

    def __init__(self, maps_root: str | Path, city: str):
        self.city = _CITY_ALIASES.get(city, city)
        self.path = map_path(maps_root, city)
        with GeoPackage(self.path) as package:
            try:
                layers = read_layers(package)
            except ValueError as error:
                message = str(error) if str(self.path) in str(error) else f"{self.path}: {error}"
                raise ValueError(f"{message} ({_MAPS_VARIABLE}={maps_root})") from error
        self.elements: Mapping[MapLayer, tuple[MapElement, ...]] = MappingProxyType(
            {layer: read.elements for layer, read in layers.items()}
        )
        self._trees = {layer: shapely.STRtree(read.outlines) for layer, read in layers.items()}
        self._positions = {
            layer: {element.id: position for position, element in enumerate(elements)}
            for layer, elements in self.elements.items()
        }

    def element(self, layer: MapLayer, element_id: str) -> MapElement:
        """The element of a layer with that id, in global coordinates.

        Raises:
          KeyError: There is none.
        """
        try:
            return self.elements[layer][self._positions[layer][element_id]]
        except KeyError:
            raise KeyError(f"{self.path} has no {layer.value} with id {element_id!r}.") from None

    def near(self, xy_global: Float[np.ndarray, "2"], radius_m: float, layer: MapLayer) -> tuple[MapElement, ...]:
        """Elements of a layer that meet the axis-aligned square of half side `radius_m`, in table order.

        Source: nuplan-devkit `get_proximal_map_objects`.
        """
        x, y = _finite(xy_global)
        return self._meeting(shapely.box(x - radius_m, y - radius_m, x + radius_m, y + radius_m), layer)

    def containing(self, xy_global: Float[np.ndarray, "2"], layer: MapLayer) -> tuple[MapElement, ...]:
        """Elements of a layer that a point lies in, or on the border of, in table order."""
        return self._meeting(shapely.Point(_finite(xy_global)), layer)

    def nearest(self, xy_global: Float[np.ndarray, "2"], layer: MapLayer) -> MapElement | None:
        """The element of a layer whose polygon is nearest to a point, the first in table order of equally near ones.

        Returns:
          None if the layer is empty.

        Source: nuplan-devkit `get_distance_to_nearest_map_object`.
        """
        found = self._trees[layer].query_nearest(shapely.Point(_finite(xy_global)))
        return self.elements[layer][found.min()] if len(found) else None

    def drivable_area(self, xy_global: Float[np.ndarray, "2"], radius_m: float) -> tuple[MapElement, ...]:
        """Road segments, intersections, generic drivable areas and car parks that meet the square of `near`.

        Their union is what nuPlan calls the drivable area, in rasters and pictures. The PDM score does not use it: its
        drivable polygons are roadblocks, lanes, lane connectors, intersections and car parks.

        Source: nuplan-devkit `SemanticMapLayer.DRIVABLE_AREA`.
        """
        return tuple(element for layer in _DRIVABLE_LAYERS for element in self.near(xy_global, radius_m, layer))

    def patch(self, origin: Float[np.ndarray, "3"], radius_m: float) -> MapPatch:
        """Everything in the square of half side `radius_m` around a global pose, in the frame of that pose.

        Road segments are left out.

        Args:
          origin: (3,) global pose: UTM metres and radians.
          radius_m: Half side of the square, which is aligned with the global axes.
        """
        origin = np.asarray(origin, dtype=np.float64)
        found = [element for layer in _PATCH_LAYERS for element in self.near(origin[:2], radius_m, layer)]
        return MapPatch(radius_m=float(radius_m), elements=_in_frame(found, origin))

    def _meeting(self, shape: shapely.Geometry, layer: MapLayer) -> tuple[MapElement, ...]:
        found = np.sort(self._trees[layer].query(shape, predicate="intersects"))
        return tuple(self.elements[layer][position] for position in found)


@functools.lru_cache(maxsize=4)
def _open_cached(maps_root: str, city: str) -> NuPlanMap:
    return NuPlanMap(maps_root, city)


_OPEN_LOCK = threading.Lock()


def open_map(maps_root: str | Path, city: str) -> NuPlanMap:
    """The map of a city, read at the first call in a process and shared by all later ones and all threads."""
    with _OPEN_LOCK:
        return _open_cached(str(maps_root), _CITY_ALIASES.get(city, city))


def _finite(xy_global: Float[np.ndarray, "2"]) -> tuple[float, float]:
    x, y = float(xy_global[0]), float(xy_global[1])
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError(f"({x}, {y}) is no place on the map; pass UTM metres.")
    return x, y


def _in_frame(elements: list[MapElement], origin: Float[np.ndarray, "3"]) -> tuple[MapElement, ...]:
    """Elements with their geometry moved to a frame; all points in one go, as single calls would cost milliseconds."""
    points: list[np.ndarray] = []
    poses: list[np.ndarray] = []
    for element in elements:
        points += [p for p in (element.polygon, element.left_boundary, element.right_boundary) if p is not None]
        points += element.holes
        if element.centerline is not None:
            poses.append(element.centerline)
    moved_points = iter(_moved(points, points_to_frame, origin))
    moved_poses = iter(_moved(poses, to_frame, origin))
    result = []
    for element in elements:
        polygon, left, right = (
            None if p is None else next(moved_points)
            for p in (element.polygon, element.left_boundary, element.right_boundary)
        )
        result.append(
            dataclasses.replace(
                element,
                polygon=polygon,
                left_boundary=left,
                right_boundary=right,
                holes=tuple(next(moved_points) for _ in element.holes),
                centerline=None if element.centerline is None else next(moved_poses),
            )
        )
    return tuple(result)


def _moved(arrays: list[np.ndarray], to: Callable[..., np.ndarray], origin: np.ndarray) -> list[np.ndarray]:
    """Moves arrays of points or poses; the results are parts of one array."""
    if not arrays:
        return []
    moved = to(np.concatenate(arrays), origin)
    ends = np.cumsum([len(array) for array in arrays])
    return [moved[end - len(array) : end] for array, end in zip(arrays, ends, strict=True)]
