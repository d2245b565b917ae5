"""The layers of a nuPlan GeoPackage as `MapElement`s, linked with each other."""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import shapely
from jaxtyping import Float

from recogdrive.data.geopackage import GeoPackage, Table, decimal_id
from recogdrive.data.types import MapElement, MapLayer
from recogdrive.geometry import Pose

_AREA_TABLES = MappingProxyType(
    {
        MapLayer.INTERSECTION: "intersections",
        MapLayer.STOP_POLYGON: "stop_polygons",
        MapLayer.CROSSWALK: "crosswalks",
        MapLayer.WALKWAY: "walkways",
        MapLayer.CARPARK_AREA: "carpark_areas",
        MapLayer.GENERIC_DRIVABLE_AREA: "generic_drivable_areas",
        MapLayer.ROAD_SEGMENT: "road_segments",
    }
)
"""Layers that are nothing but outlines, with their tables."""

_Line = Float[np.ndarray, "L 2"]


@dataclass(frozen=True)
class ReadLayer:
    """One layer of the file.

    Attributes:
      elements: In table order; geometry in global (UTM) metres, float64.
      outlines: Object array of their polygons with holes, likewise.
    """

    elements: tuple[MapElement, ...]
    outlines: np.ndarray


def read_layers(package: GeoPackage) -> dict[MapLayer, ReadLayer]:
    """All layers of a file, in the order of `MapLayer`.

    Raises:
      ValueError: As `GeoPackage.table`; also for an outline that is not one polygon of three corners or more, a
        boundary or baseline path that is not one line, a lane without a baseline path, a connector without an outline,
        and a reference, stop line or speed limit that is no number.
    """
    centerlines = _read_centerlines(package)
    boundaries = _read_boundaries(package)
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
        MapLayer.ROADBLOCK: _areas(
            MapLayer.ROADBLOCK,
            roadblocks,
            predecessors=[block_links.into(block) for block in roadblocks.ids],
            successors=[block_links.out_of(block) for block in roadblocks.ids],
        ),
        MapLayer.ROADBLOCK_CONNECTOR: _areas(
            MapLayer.ROADBLOCK_CONNECTOR,
            block_connectors,
            predecessors=block_links.origins,
            successors=block_links.targets,
        ),
    }
    layers |= {layer: _areas(layer, package.table(table)) for layer, table in _AREA_TABLES.items()}
    return {layer: layers[layer] for layer in MapLayer}


class _Links:
    """Which connectors lead out of and into each lane (or block), and what each connector joins; table order."""

    def __init__(self, connectors: Table, from_column: str, to_column: str):
        starts, ends = connectors.identifiers(from_column), connectors.identifiers(to_column)
        self.origins: list[tuple[str, ...]] = [() if start is None else (start,) for start in starts]
        self.targets: list[tuple[str, ...]] = [() if end is None else (end,) for end in ends]
        self._out_of: defaultdict[str | None, list[str]] = defaultdict(list)
        self._into: defaultdict[str | None, list[str]] = defaultdict(list)
        for connector, start, end in zip(connectors.ids, starts, ends, strict=True):
            self._out_of[start].append(connector)
            self._into[end].append(connector)

    def out_of(self, element_id: str) -> tuple[str, ...]:
        return tuple(self._out_of.get(element_id, ()))

    def into(self, element_id: str) -> tuple[str, ...]:
        return tuple(self._into.get(element_id, ()))


def _read_centerlines(package: GeoPackage) -> dict[tuple[MapLayer, str | None], Float[np.ndarray, "L 3"]]:
    """Baseline paths as poses, by what they belong to: ids are unique within a layer only."""
    paths = package.table("baseline_paths", "lane_fid", "lane_connector_fid")
    owners = [
        (MapLayer.LANE, lane) if lane is not None else (MapLayer.LANE_CONNECTOR, connector)
        for lane, connector in zip(paths.identifiers("lane_fid"), paths.identifiers("lane_connector_fid"), strict=True)
    ]
    return dict(zip(owners, _discrete_paths(_lines("baseline_paths", paths)), strict=True))


def _read_boundaries(package: GeoPackage) -> dict[str | None, _Line]:
    table = package.table("boundaries")
    return dict(zip(table.ids, _lines("boundaries", table), strict=True))


def _lines(name: str, table: Table) -> list[_Line]:
    """Vertices of a table of lines; the arrays are parts of one."""
    lines = _single_parts(name, table, shapely.GeometryType.LINESTRING, shapely.GeometryType.MULTILINESTRING)
    return _split(shapely.get_coordinates(lines), np.cumsum(shapely.get_num_points(lines)))


def _split(array: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """Parts of an array that lie one behind the other, by the rows at which each ends."""
    stops = ends.tolist()
    return [array[start:stop] for start, stop in zip([0, *stops[:-1]], stops, strict=False)]


def _discrete_paths(lines: Sequence[_Line]) -> list[Float[np.ndarray, "L 3"]]:
    """Vertices with the heading of the segment that starts at each; the last repeats its predecessor's.

    Source: nuplan-devkit `extract_discrete_baseline`.
    """
    if not lines:
        return []
    ends = np.cumsum([len(line) for line in lines])
    xy = np.concatenate(lines)
    steps = np.diff(xy, axis=0, append=xy[-1:])
    headings = np.arctan2(steps[:, 1], steps[:, 0])
    # The last step of a line leads to the next line.
    headings[ends - 1] = headings[ends - 2]
    return _split(np.concatenate([xy, headings[:, None]], axis=-1), ends)


def _aligned(boundaries: Sequence[_Line | None], centerlines: Sequence[Float[np.ndarray, "L 3"]]) -> list[_Line | None]:
    """Boundaries in the centrelines' direction: the one whose ends are nearer to the centreline's ends."""
    known = [row for row, boundary in enumerate(boundaries) if boundary is not None]
    if not known:
        return list(boundaries)
    path_ends = np.array([centerlines[row][[0, -1], : Pose.HEADING] for row in known])
    line_ends = np.array([boundaries[row][[0, -1]] for row in known])
    kept, turned = (
        np.hypot(*(ends - path_ends)[:, 0].T) + np.hypot(*(ends - path_ends)[:, 1].T)
        for ends in (line_ends, line_ends[:, ::-1])
    )
    result = list(boundaries)
    for row in np.array(known)[kept > turned]:
        result[row] = boundaries[row][::-1]
    return result


def _read_lanes(
    package: GeoPackage, centerlines: Mapping[Any, np.ndarray], boundaries: Mapping[Any, _Line], links: _Links
) -> ReadLayer:
    table = package.table(
        "lanes_polygons", "lane_group_fid", "left_boundary_fid", "right_boundary_fid", "speed_limit_mps"
    )
    paths = _owned_paths(MapLayer.LANE, table.ids, centerlines)
    lefts, rights = (
        _aligned([boundaries.get(fid) for fid in table.identifiers(column)], paths)
        for column in ("left_boundary_fid", "right_boundary_fid")
    )
    return _areas(
        MapLayer.LANE,
        table,
        centerline=paths,
        left_boundary=lefts,
        right_boundary=rights,
        speed_limit_mps=_speed_limits(MapLayer.LANE, table),
        roadblock_id=table.identifiers("lane_group_fid"),
        predecessors=[links.into(lane) for lane in table.ids],
        successors=[links.out_of(lane) for lane in table.ids],
    )


def _read_connectors(
    package: GeoPackage,
    connectors: Table,
    centerlines: Mapping[Any, np.ndarray],
    boundaries: Mapping[Any, _Line],
    links: _Links,
) -> ReadLayer:
    """Connectors in their own table's order; outline and boundaries come from a second table with other ids."""
    outlines = package.table(
        "gen_lane_connectors_scaled_width_polygons", "lane_connector_fid", "left_boundary_fid", "right_boundary_fid"
    )
    rows = {owner: row for row, owner in enumerate(outlines.identifiers("lane_connector_fid"))}
    for connector in connectors.ids:
        if connector not in rows:
            raise ValueError(f"Lane connector {connector} has no outline; download the map again.")
    order = [rows[connector] for connector in connectors.ids]
    paths = _owned_paths(MapLayer.LANE_CONNECTOR, connectors.ids, centerlines)
    sides = (outlines.identifiers(column) for column in ("left_boundary_fid", "right_boundary_fid"))
    lefts, rights = (_aligned([boundaries.get(side[row]) for row in order], paths) for side in sides)
    stop_lines = [
        _stop_lines(connector, value)
        for connector, value in zip(connectors.ids, connectors.columns["traffic_light_stop_line_fids"], strict=True)
    ]
    return _areas(
        MapLayer.LANE_CONNECTOR,
        Table(connectors.ids, outlines.geometry[order], {}),
        centerline=paths,
        left_boundary=lefts,
        right_boundary=rights,
        speed_limit_mps=_speed_limits(MapLayer.LANE_CONNECTOR, connectors),
        roadblock_id=connectors.identifiers("lane_group_connector_fid"),
        predecessors=links.origins,
        successors=links.targets,
        has_traffic_light=[bool(lines) for lines in stop_lines],
        stop_lines=stop_lines,
    )


def _owned_paths(
    layer: MapLayer, ids: Sequence[str], centerlines: Mapping[Any, np.ndarray]
) -> list[Float[np.ndarray, "L 3"]]:
    for element_id in ids:
        if (layer, element_id) not in centerlines:
            raise ValueError(f"{layer.value} {element_id} has no baseline path; download the map again.")
    return [centerlines[layer, element_id] for element_id in ids]


def _stop_lines(connector: str, value: Any) -> tuple[str, ...]:
    """Ids of a comma list; none for NULL and the empty list.

    Source: nuplan-devkit `NuPlanLaneConnector.stop_lines`.
    """
    parts = value.split(",") if isinstance(value, str) else [value]
    try:
        ids = [decimal_id(part.strip() if isinstance(part, str) else part) for part in parts]
    except ValueError as error:
        raise ValueError(f"lane_connector {connector}, traffic_light_stop_line_fids: {error}") from error
    return tuple(stop_line for stop_line in ids if stop_line is not None)


def _speed_limits(layer: MapLayer, table: Table) -> list[float | None]:
    """Metres per second; None for NULL and NaN."""
    limits = []
    for element_id, value in zip(table.ids, table.columns["speed_limit_mps"], strict=True):
        try:
            limit = math.nan if value is None else float(value)
        except ValueError:
            limit = math.inf
        if math.isinf(limit):
            raise ValueError(f"{layer.value} {element_id} has the speed limit {value!r:.60}, which is no number.")
        limits.append(None if math.isnan(limit) else limit)
    return limits


def _areas(layer: MapLayer, table: Table, **attributes: Sequence[Any]) -> ReadLayer:
    """A table of polygons: outlines and holes without the closing points.

    Args:
      layer: Layer of the elements.
      table: Ids and geometry.
      **attributes: Further attributes of `MapElement`, each as long as the table.
    """
    if not table.ids:
        return ReadLayer((), np.empty(0, dtype=object))
    polygons = _single_parts(layer.value, table, shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
    _, xy, (ring_ends, polygon_ends) = shapely.to_ragged_array(polygons)
    # Each ring without its last point, which repeats the first one.
    rings = [ring[:-1] for ring in _split(xy, ring_ends[1:])]
    bounds = polygon_ends.tolist()
    short = np.flatnonzero(np.diff(ring_ends) < 4)
    if len(short):
        row = int(np.searchsorted(polygon_ends, short[0], side="right")) - 1
        raise ValueError(f"{layer.value} {table.ids[row]} has a ring of fewer than three corners.")
    names = ("id", "polygon", "holes", *attributes)
    outlines = [rings[first] for first in bounds[:-1]]
    holes = [tuple(rings[first + 1 : end]) for first, end in itertools.pairwise(bounds)]
    rows = zip(table.ids, outlines, holes, *attributes.values(), strict=True)
    return ReadLayer(tuple(MapElement(layer=layer, **dict(zip(names, row, strict=True))) for row in rows), polygons)


def _single_parts(name: str, table: Table, kind: shapely.GeometryType, collection: shapely.GeometryType) -> np.ndarray:
    """The geometry of a table, with collections of one part taken for the part.

    Raises:
      ValueError: A geometry is of another kind, of several parts or empty.
    """
    kinds = shapely.get_type_id(table.geometry)
    alone = (kinds == collection) & (shapely.get_num_geometries(table.geometry) == 1)
    parts = table.geometry.copy()
    parts[alone] = shapely.get_geometry(parts[alone], 0)
    wrong = (shapely.get_type_id(parts) != kind) | shapely.is_empty(parts)
    if wrong.any():
        row = int(np.argmax(wrong))
        found = "an empty geometry" if shapely.is_empty(parts[row]) else f"a {parts[row].geom_type}"
        raise ValueError(f"{name} {table.ids[row]} is {found} instead of one {kind.name.lower()}.")
    return parts
