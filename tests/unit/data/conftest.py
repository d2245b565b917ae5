"""Writes small map folders and logs in the form of nuPlan and NAVSIM."""

import json
import math
import pickle
import sqlite3
import struct

import numpy as np
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
    "road_segments": (),
}
SCHEMA = f"""
PRAGMA application_id = {0x47504B47};
PRAGMA user_version = 10300;
CREATE TABLE gpkg_spatial_ref_sys (
  srs_name TEXT NOT NULL, srs_id INTEGER PRIMARY KEY, organization TEXT NOT NULL,
  organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT
);
CREATE TABLE gpkg_contents (
  table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE, description TEXT,
  last_change DATETIME NOT NULL DEFAULT '2026-01-01T00:00:00.000Z',
  min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER
);
CREATE TABLE gpkg_geometry_columns (
  table_name TEXT NOT NULL UNIQUE, column_name TEXT NOT NULL, geometry_type_name TEXT NOT NULL,
  srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL, PRIMARY KEY (table_name, column_name)
);
INSERT INTO gpkg_spatial_ref_sys VALUES
  ('none', -1, 'NONE', -1, 'undefined', NULL), ('none', 0, 'NONE', 0, 'undefined', NULL),
  ('WGS 84', 4326, 'EPSG', 4326, '{pyproj.CRS(4326).to_wkt("WKT1_GDAL")}', NULL);
CREATE TABLE meta (fid INTEGER PRIMARY KEY, "key" TEXT, "value" TEXT);
INSERT INTO gpkg_contents (table_name, data_type, srs_id) VALUES ('meta', 'attributes', 0);
"""
"""Tables that every GeoPackage has, and nuPlan's `meta`."""


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
def no_variables(monkeypatch):
    """Data roots of the environment are unset."""
    monkeypatch.delenv("OPENSCENE_DATA_ROOT", raising=False)
    monkeypatch.delenv("NUPLAN_MAPS_ROOT", raising=False)


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
        connection.executescript(SCHEMA)
        if crs is not None:
            connection.execute("INSERT INTO meta VALUES (1, 'projectedCoordSystem', ?)", (crs,))
        for name, columns in COLUMNS.items():
            rows = layers.get(name, ())
            if rows is None:
                continue
            names = ", ".join(["fid INTEGER PRIMARY KEY", f"{geometry_column} GEOMETRY", *columns])
            connection.execute(f"CREATE TABLE {name} ({names})")
            connection.execute(
                "INSERT INTO gpkg_contents (table_name, data_type, srs_id) VALUES (?, 'features', 4326)", (name,)
            )
            connection.execute(
                "INSERT INTO gpkg_geometry_columns VALUES (?, ?, 'GEOMETRY', 4326, 0, 0)", (name, geometry_column)
            )
            for fid, geometry, *values in rows:
                marks = ", ".join("?" * (2 + len(columns)))
                connection.execute(f"INSERT INTO {name} VALUES ({marks})", (fid, blob(geometry, envelope), *values))
        connection.commit()
        connection.close()
        return root

    return write


@pytest.fixture
def write_road(write_city):
    """Function: layers to change -> maps folder of a road from lane 1 over connector 1 to lane 2, 90 m long, 4 m wide.

    Lane 1 is of block 1, connector 1 of block 5, lane 2 of block 2: ids repeat across layers on purpose.
    """

    def line(y_m, start_m, end_m):
        return shapely.LineString([(start_m, y_m), ((start_m + end_m) / 2, y_m), (end_m, y_m)])

    car_park = shapely.Polygon(shapely.box(0, 10, 30, 40).exterior, [shapely.box(10, 20, 20, 30).exterior])
    layers = {
        "boundaries": [(80, line(2, 0, 40)), (81, line(-2, 0, 40).reverse()), (82, line(2, 40, 50))],
        "baseline_paths": [
            (90, line(0, 0, 40), 1, None),
            (91, line(0, 50, 90), 2, None),
            (92, line(0, 40, 50), None, 1),
        ],
        "lanes_polygons": [
            (1, shapely.box(0, -2, 40, 2), 1, 80, 81, None),
            (2, shapely.box(50, -2, 90, 2), 2, None, None, 8.5),
        ],
        "lane_connectors": [(1, line(0, 40, 50), 1, 2, 5, 4.5, "12,13")],
        "gen_lane_connectors_scaled_width_polygons": [(33, shapely.box(40, -2, 50, 2), 1, 82, None)],
        "lane_groups_polygons": [(1, shapely.box(0, -2, 40, 2)), (2, shapely.box(50, -2, 90, 2))],
        "lane_group_connectors": [(5, shapely.box(40, -2, 50, 2), 1, 2)],
        "carpark_areas": [(4, car_park)],
    }
    return lambda **changes: write_city({**layers, **changes})


CAMERAS = ("CAM_F0", "CAM_L0", "CAM_L1", "CAM_L2", "CAM_R0", "CAM_R1", "CAM_R2", "CAM_B0")


def frame(log_name, index, **changes):
    """Frame `index` of a log that drives at 10 m/s along a global heading of 90 degrees, past one parked car.

    The car stands 30 m ahead of and 2 m to the left of where the log starts, and faces the ego's way.
    """
    made = {
        "token": f"{log_name[-4:]}{index:012x}",
        "timestamp": 1_000_000 + 500_000 * index,
        "log_name": log_name,
        "map_location": CITY,
        "roadblock_ids": ["1", "5"],
        "ego2global_translation": np.array([ORIGIN[0], ORIGIN[1] + 5.0 * index, 3.0]),
        "ego2global_rotation": np.array([math.sqrt(0.5), 0, 0, math.sqrt(0.5)]),
        "ego_dynamic_state": [10.0, 0.0, 0.5, -0.25],
        "traffic_lights": [(7, True), (8, False)],
        "driving_command": np.array([0, 1, 0, 0]),
        "cams": {name: {"data_path": f"{log_name}/{name}/{index:016x}.jpg"} for name in CAMERAS},
        "anns": {
            "gt_boxes": np.array([[30.0 - 5.0 * index, 2.0, 0.9, 4.5, 1.9, 1.6, 0.0]]),
            "gt_names": np.array(["vehicle"]),
            "gt_velocity_3d": np.array([[1.0, 0.0, 0.0]]),
            "instance_tokens": [f"i{index}"],
            "track_tokens": ["parked"],
        },
    }
    return {**made, **changes}


@pytest.fixture
def make_frames():
    """Function: log name, number of frames, changes by frame index -> frames of a log."""

    def make(log_name="log-a000", count=14, changes=None):
        return [frame(log_name, index, **(changes or {}).get(index, {})) for index in range(count)]

    return make


@pytest.fixture
def write_data(tmp_path, write_city):
    """Function: log name -> frames (or bytes of the file) to a data root with a map of the city."""

    def write(logs, split="mini"):
        write_city({})
        folder = tmp_path / "navsim_logs" / split
        folder.mkdir(parents=True, exist_ok=True)
        for name, frames in logs.items():
            content = frames if isinstance(frames, bytes) else pickle.dumps(frames, protocol=4)
            (folder / f"{name}.pkl").write_bytes(content)
        return tmp_path

    return write
