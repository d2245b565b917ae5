"""Writes small map folders in nuPlan's form."""

import json
import sqlite3
import struct

import pyproj
import pytest
import shapely

CITY, VERSION, EPSG = "sg-one-north", "9.17.1964", 32648
ORIGIN = (365_000.0, 143_000.0)
"""UTM metres that the small coordinates of test maps are relative to."""

COLUMNS = {
    "lanes_polygons": ("lane_group_fid", "left_boundary_fid", "right_boundary_fid", "speed_limit_mps"),
    "lane_connectors": (
        "exit_lane_fid",
        "entry_lane_fid",
        "lane_group_connector_fid",
        "speed_limit_mps",
        "traffic_light_stop_line_fids",
    ),
    "gen_lane_connectors_scaled_width_polygons": ("lane_connector_fid", "left_boundary_fid", "right_boundary_fid"),
    "lane_groups_polygons": (),
    "lane_group_connectors": ("from_lane_group_fid", "to_lane_group_fid"),
    "baseline_paths": ("lane_fid", "lane_connector_fid"),
    "boundaries": (),
    "intersections": (),
    "stop_polygons": (),
    "crosswalks": (),
    "walkways": (),
    "carpark_areas": (),
    "generic_drivable_areas": (),
}


def blob(geometry, envelope=1):
    """A geometry given in metres from `ORIGIN` as GeoPackage bytes in longitude and latitude."""
    if geometry is None or isinstance(geometry, bytes):
        return geometry
    to_degrees = pyproj.Transformer.from_crs(EPSG, 4326, always_xy=True)
    moved = shapely.transform(
        geometry, lambda xy: list(zip(*to_degrees.transform(xy[:, 0] + ORIGIN[0], xy[:, 1] + ORIGIN[1]), strict=True))
    )
    box = struct.pack("<8d", *range(8))[: {0: 0, 1: 32, 2: 48, 3: 48, 4: 64}[envelope]]
    return b"GP\0" + bytes([1 | envelope << 1]) + struct.pack("<i", 4326) + box + shapely.to_wkb(moved)


@pytest.fixture
def write_city(tmp_path):
    """Function: layer -> rows of (fid, geometry, *columns) to a maps folder; layers set to None are left out."""

    def write(layers, crs=f"epsg:{EPSG}", geometry_column="geom", envelope=1):
        root = tmp_path / "maps"
        path = root / CITY / VERSION / "map.gpkg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        (root / "nuplan-maps-v1.0.json").write_text(json.dumps({CITY: {"version": VERSION, "layers": {}}}))
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE gpkg_geometry_columns (table_name, column_name, srs_id)")
        connection.execute('CREATE TABLE meta (fid INTEGER PRIMARY KEY, "key" TEXT, "value" TEXT)')
        if crs is not None:
            connection.execute("INSERT INTO meta VALUES (1, 'projectedCoordSystem', ?)", (crs,))
        for name, columns in COLUMNS.items():
            rows = layers.get(name, ())
            if rows is None:
                continue
            names = ", ".join(["fid INTEGER PRIMARY KEY", geometry_column, *columns])
            connection.execute(f"CREATE TABLE {name} ({names})")
            connection.execute("INSERT INTO gpkg_geometry_columns VALUES (?, ?, 4326)", (name, geometry_column))
            for fid, geometry, *values in rows:
                marks = ", ".join("?" * (2 + len(columns)))
                connection.execute(f"INSERT INTO {name} VALUES ({marks})", (fid, blob(geometry, envelope), *values))
        connection.commit()
        connection.close()
        return root

    return write
