"""nuPlan's maps: one city's GeoPackage as `MapElement`s, cut to a `MapPatch` around a pose."""

import dataclasses
import functools
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import shapely
from jaxtyping import Float

from recogdrive.data.geopackage import GeoPackage, Table
from recogdrive.data.types import MapElement, MapLayer, MapPatch
from recogdrive.geometry import Pose, points_to_frame, to_frame
from recogdrive.suggestions import did_you_mean

MAP_INDEX = "nuplan-maps-v1.0.json"
_MAPS_VARIABLE = "NUPLAN_MAPS_ROOT"
_CITY_ALIASES = MappingProxyType({"las_vegas": "us-nv-las-vegas-strip"})
"""Names that logs use beside the map's own. Source: NAVSIM `Scene.from_scene_dict_list`."""

_AREA_TABLES = MappingProxyType(
    {
        MapLayer.INTERSECTION: "intersections",
        MapLayer.STOP_POLYGON: "stop_polygons",
        MapLayer.CROSSWALK: "crosswalks",
        MapLayer.WALKWAY: "walkways",
        MapLayer.CARPARK_AREA: "carpark_areas",
        MapLayer.GENERIC_DRIVABLE_AREA: "generic_drivable_areas",
    }
)
"""Layers that are nothing but outlines, with their tables."""


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
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no map index: {type(error).__name__}: {error}. Download it again.") from error


class NuPlanMap:
    """Map of one city in its UTM plane, read whole at construction and unchangeable after it.

    Args:
      maps_root: Folder with `nuplan-maps-v1.0.json`.
      city: One of the cities of the index.

    Attributes:
      elements: Layer -> its elements in table order. Their geometry is *global* (UTM metres, float64), unlike that
        of the elements of a `MapPatch`.

    Raises:
      FileNotFoundError, ValueError: As `map_path`; ValueError also for a missing layer or column and for a damaged
        or unexpected geometry. All name the path.
    """

    def __init__(self, maps_root: str | Path, city: str):
        self.city = _CITY_ALIASES.get(city, city)
        self.path = map_path(maps_root, city)
        with GeoPackage(self.path) as package:
            try:
                self.elements: Mapping[MapLayer, tuple[MapElement, ...]] = MappingProxyType(_read_layers(package))
            except ValueError as error:
                message = str(error) if str(self.path) in str(error) else f"{self.path}: {error}"
                raise ValueError(f"{message} ({_MAPS_VARIABLE}={maps_root})") from error
        self._trees = {layer: shapely.STRtree(_outlines(elements)) for layer, elements in self.elements.items()}
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
        x, y = float(xy_global[0]), float(xy_global[1])
        square = shapely.box(x - radius_m, y - radius_m, x + radius_m, y + radius_m)
        found = np.sort(self._trees[layer].query(square, predicate="intersects"))
        return tuple(self.elements[layer][position] for position in found)

    def patch(self, origin: Float[np.ndarray, "3"], radius_m: float) -> MapPatch:
        """Everything in the square of half side `radius_m` around a global pose, in the frame of that pose.

        Args:
          origin: (3,) global pose: UTM metres and radians.
          radius_m: Half side of the square, which is aligned with the global axes.
        """
        origin = np.asarray(origin, dtype=np.float64)
        found = [element for layer in MapLayer for element in self.near(origin[:2], radius_m, layer)]
        return MapPatch(radius_m=float(radius_m), elements=_in_frame(found, origin))


@functools.lru_cache(maxsize=4)
def _open_cached(maps_root: str, city: str) -> NuPlanMap:
    return NuPlanMap(maps_root, city)


_OPEN_LOCK = threading.Lock()


def open_map(maps_root: str | Path, city: str) -> NuPlanMap:
    """The map of a city, read at the first call in a process and shared by all later ones and all threads."""
    with _OPEN_LOCK:
        return _open_cached(str(maps_root), _CITY_ALIASES.get(city, city))


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


def _outlines(elements: Iterable[MapElement]) -> list[shapely.Polygon]:
    return [shapely.Polygon(element.polygon, element.holes) for element in elements]


def _read_layers(package: GeoPackage) -> dict[MapLayer, tuple[MapElement, ...]]:
    """All layers of the file, linked with each other."""
    centerlines = _read_centerlines(package)
    boundary_table = package.table("boundaries")
    boundaries = dict(zip(boundary_table.ids, map(shapely.get_coordinates, boundary_table.geometry), strict=True))
    connectors = package.table(
        "lane_connectors",
        "exit_lane_fid",
        "entry_lane_fid",
        "lane_group_connector_fid",
        "speed_limit_mps",
        "traffic_light_stop_line_fids",
    )
    block_connectors = package.table("lane_group_connectors", "from_lane_group_fid", "to_lane_group_fid")
    links = _Links(connectors, "exit_lane_fid", "entry_lane_fid")
    block_links = _Links(block_connectors, "from_lane_group_fid", "to_lane_group_fid")
    roadblocks = package.table("lane_groups_polygons")
    layers = {
        MapLayer.LANE: _read_lanes(package, centerlines, boundaries, links),
        MapLayer.LANE_CONNECTOR: _read_connectors(package, connectors, centerlines, boundaries, links),
        MapLayer.ROADBLOCK: [
            dataclasses.replace(area, predecessors=block_links.into[area.id], successors=block_links.out_of[area.id])
            for area in _areas(MapLayer.ROADBLOCK, roadblocks)
        ],
        MapLayer.ROADBLOCK_CONNECTOR: [
            dataclasses.replace(area, predecessors=block_links.origin[area.id], successors=block_links.target[area.id])
            for area in _areas(MapLayer.ROADBLOCK_CONNECTOR, block_connectors)
        ],
    }
    layers |= {layer: _areas(layer, package.table(table)) for layer, table in _AREA_TABLES.items()}
    return {layer: tuple(layers[layer]) for layer in MapLayer}


class _Links:
    """Which connectors lead out of and into each lane (or block), and what each connector joins; table order."""

    def __init__(self, connectors: Table, from_column: str, to_column: str):
        self.out_of: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
        self.into: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
        self.origin: dict[str, tuple[str, ...]] = {}
        self.target: dict[str, tuple[str, ...]] = {}
        pairs = zip(connectors.identifiers(from_column), connectors.identifiers(to_column), strict=True)
        for connector, (start, end) in zip(connectors.ids, pairs, strict=True):
            self.origin[connector] = () if start is None else (start,)
            self.target[connector] = () if end is None else (end,)
            if start is not None:
                self.out_of[start] += (connector,)
            if end is not None:
                self.into[end] += (connector,)


def _read_centerlines(package: GeoPackage) -> dict[tuple[MapLayer, str], np.ndarray]:
    """Baseline paths as (L, 3) poses, by what they belong to: ids are unique within a layer only."""
    paths = package.table("baseline_paths", "lane_fid", "lane_connector_fid")
    owners = zip(paths.identifiers("lane_fid"), paths.identifiers("lane_connector_fid"), strict=True)
    centerlines = {}
    for line, (lane, connector) in zip(paths.geometry, owners, strict=True):
        owner = (MapLayer.LANE, lane) if lane is not None else (MapLayer.LANE_CONNECTOR, connector)
        centerlines[owner] = _discrete_path(shapely.get_coordinates(line))
    return centerlines


def _discrete_path(xy: Float[np.ndarray, "L 2"]) -> Float[np.ndarray, "L 3"]:
    """Vertices with the heading of the segment that starts at each; the last repeats its predecessor's.

    Source: nuplan-devkit `extract_discrete_baseline`.
    """
    steps = np.diff(xy, axis=0)
    headings = np.arctan2(steps[:, 1], steps[:, 0])
    return np.concatenate([xy, np.append(headings, headings[-1:])[:, None]], axis=-1)


def _aligned(boundary: Float[np.ndarray, "B 2"] | None, centerline: Float[np.ndarray, "L 3"]) -> np.ndarray | None:
    """A boundary in the centreline's direction: the one whose ends are nearer to the centreline's ends."""
    if boundary is None:
        return None
    start, end = centerline[0, : Pose.HEADING], centerline[-1, : Pose.HEADING]
    kept = np.hypot(*(boundary[0] - start)) + np.hypot(*(boundary[-1] - end))
    turned = np.hypot(*(boundary[-1] - start)) + np.hypot(*(boundary[0] - end))
    return boundary if kept <= turned else boundary[::-1]


def _read_lanes(
    package: GeoPackage, centerlines: Mapping[tuple[MapLayer, str], np.ndarray], boundaries: Mapping, links: _Links
) -> list[MapElement]:
    table = package.table(
        "lanes_polygons", "lane_group_fid", "left_boundary_fid", "right_boundary_fid", "speed_limit_mps"
    )
    groups = table.identifiers("lane_group_fid")
    lefts, rights = table.identifiers("left_boundary_fid"), table.identifiers("right_boundary_fid")
    lanes = []
    for row, area in enumerate(_areas(MapLayer.LANE, table)):
        centerline = _centerline_of(area, centerlines)
        lanes.append(
            dataclasses.replace(
                area,
                centerline=centerline,
                left_boundary=_aligned(boundaries.get(lefts[row]), centerline),
                right_boundary=_aligned(boundaries.get(rights[row]), centerline),
                speed_limit_mps=_speed_limit(table.columns["speed_limit_mps"][row]),
                roadblock_id=groups[row],
                predecessors=links.into[area.id],
                successors=links.out_of[area.id],
            )
        )
    return lanes


def _read_connectors(
    package: GeoPackage,
    connectors: Table,
    centerlines: Mapping[tuple[MapLayer, str], np.ndarray],
    boundaries: Mapping,
    links: _Links,
) -> list[MapElement]:
    """Connectors in their own table's order; outline and boundaries come from a second table with other ids."""
    outlines = package.table(
        "gen_lane_connectors_scaled_width_polygons", "lane_connector_fid", "left_boundary_fid", "right_boundary_fid"
    )
    owners = outlines.identifiers("lane_connector_fid")
    rows = {owner: row for row, owner in enumerate(owners)}
    lefts, rights = outlines.identifiers("left_boundary_fid"), outlines.identifiers("right_boundary_fid")
    blocks = connectors.identifiers("lane_group_connector_fid")
    for connector in connectors.ids:
        if connector not in rows:
            raise ValueError(f"Lane connector {connector} has no outline; download the map again.")
    order = [rows[connector] for connector in connectors.ids]
    areas = _areas(MapLayer.LANE_CONNECTOR, Table(connectors.ids, outlines.geometry[order], {}))
    made = []
    for row, (area, outline) in enumerate(zip(areas, order, strict=True)):
        centerline = _centerline_of(area, centerlines)
        made.append(
            dataclasses.replace(
                area,
                centerline=centerline,
                left_boundary=_aligned(boundaries.get(lefts[outline]), centerline),
                right_boundary=_aligned(boundaries.get(rights[outline]), centerline),
                speed_limit_mps=_speed_limit(connectors.columns["speed_limit_mps"][row]),
                roadblock_id=blocks[row],
                predecessors=links.origin[area.id],
                successors=links.target[area.id],
                has_traffic_light=bool(connectors.columns["traffic_light_stop_line_fids"][row]),
            )
        )
    return made


def _centerline_of(area: MapElement, centerlines: Mapping[tuple[MapLayer, str], np.ndarray]) -> np.ndarray:
    centerline = centerlines.get((area.layer, area.id))
    if centerline is None or len(centerline) < 2:
        raise ValueError(f"{area.layer.value} {area.id} has no baseline path of two points; download the map again.")
    return centerline


def _speed_limit(value: float | None) -> float | None:
    return None if value is None or np.isnan(float(value)) else float(value)


def _areas(layer: MapLayer, table: Table) -> list[MapElement]:
    """Outlines and holes of a table of polygons, without the closing points."""
    elements = []
    for element_id, geometry in zip(table.ids, table.geometry, strict=True):
        polygon = geometry.geoms[0] if geometry.geom_type == "MultiPolygon" and len(geometry.geoms) == 1 else geometry
        if polygon.geom_type != "Polygon" or polygon.is_empty:
            raise ValueError(f"{layer.value} {element_id} is a {geometry.geom_type} instead of one polygon.")
        outline = shapely.get_coordinates(polygon.exterior)[:-1]
        holes = tuple(shapely.get_coordinates(ring)[:-1] for ring in polygon.interiors)
        elements.append(MapElement(id=element_id, layer=layer, polygon=outline, holes=holes))
    return elements
