"""Tables of a GeoPackage come out in id order, projected, with NULLs kept apart."""

import sqlite3
import struct

import numpy as np
import pytest
import shapely

from recogdrive.data.geopackage import GeoPackage, decimal_id

ORIGIN = np.array([365_000.0, 143_000.0])
SQUARE = shapely.box(0, 0, 10, 20)


def opened(root):
    return GeoPackage(next(root.rglob("map.gpkg")))


@pytest.mark.parametrize("envelope", range(5))
def test_geometry_is_projected_whatever_bounding_box_precedes_it(write_city, envelope):
    root = write_city({"crosswalks": [(7, SQUARE)]}, envelope=envelope)
    with opened(root) as package:
        table = package.table("crosswalks")
    assert table.ids == ("7",)
    np.testing.assert_allclose(
        shapely.get_coordinates(table.geometry[0]), shapely.get_coordinates(SQUARE) + ORIGIN, atol=1e-6
    )


def test_rows_come_in_the_order_of_their_ids(write_city):
    with opened(write_city({"crosswalks": [(9, SQUARE), (2, SQUARE), (5, SQUARE)]})) as package:
        assert package.table("crosswalks").ids == ("2", "5", "9")


def test_the_projection_is_the_one_of_the_meta_layer(write_city):
    with opened(write_city({}, crs="epsg:32611")) as package:
        assert package.crs.to_epsg() == 32611


def test_an_empty_layer_is_an_empty_table(write_city):
    with opened(write_city({})) as package:
        table = package.table("lanes_polygons", "speed_limit_mps")
    assert table.ids == () and len(table.geometry) == 0 and table.columns == {"speed_limit_mps": ()}


def test_the_geometry_column_may_have_another_name(write_city):
    with opened(write_city({"walkways": [(1, SQUARE)]}, geometry_column="geometry")) as package:
        assert package.table("walkways").geometry[0].area == pytest.approx(200, abs=1e-4)


def test_heights_are_dropped(write_city):
    with opened(write_city({"walkways": [(1, shapely.force_3d(SQUARE, 5.0))]})) as package:
        assert not package.table("walkways").geometry[0].has_z


def test_null_references_stay_apart_from_numbers(write_city):
    line = shapely.LineString([(0, 0), (1, 0)])
    rows = [(1, line, 17, None), (2, line, None, 27.0), (3, line, "18", "")]
    with opened(write_city({"baseline_paths": rows})) as package:
        table = package.table("baseline_paths", "lane_fid", "lane_connector_fid")
    assert table.identifiers("lane_fid") == ("17", None, "18")
    assert table.identifiers("lane_connector_fid") == (None, "27", None)


@pytest.mark.parametrize(
    ("value", "expected"), [(5, "5"), (5.0, "5"), ("5", "5"), (None, None), (float("nan"), None), ("", None), (0, "0")]
)
def test_ids_are_decimal_strings_however_they_are_stored(value, expected):
    assert decimal_id(value) == expected


@pytest.mark.parametrize("value", [5.5, "a", b"5", float("inf"), "9" * 400, "9" * 5000])
def test_what_is_no_whole_number_is_no_id(value):
    with pytest.raises(ValueError):
        decimal_id(value)


def test_a_missing_layer_is_named_with_those_that_exist(write_city):
    with (
        opened(write_city({"crosswalks": None})) as package,
        pytest.raises(ValueError, match=r"no layer 'crosswalks'.*'walkways'"),
    ):
        package.table("crosswalks")


def test_a_missing_column_is_named(write_city):
    with opened(write_city({})) as package, pytest.raises(ValueError, match=r"'walkways' has no column 'width'"):
        package.table("walkways", "width")


@pytest.mark.parametrize("geometry", [None, b"GP", b"not a geometry at all", b"GP\0\x01" + b"\0" * 4 + b"\x01\xff"])
def test_a_damaged_geometry_names_its_layer_and_file(write_city, geometry):
    root = write_city({"walkways": [(4, geometry)]})
    with opened(root) as package, pytest.raises(ValueError, match="walkways") as error:
        package.table("walkways")
    assert "map.gpkg" in str(error.value)


def test_a_geometry_nested_deeper_than_the_stack_is_refused(write_city):
    # GEOS alone descends into all of it and crashes.
    body = b"\x01\x07\0\0\0\x01\0\0\0" * 100_000 + shapely.to_wkb(SQUARE)
    root = write_city({"walkways": [(4, b"GP\0\x01" + struct.pack("<i", 4326) + body)]})
    with opened(root) as package, pytest.raises(ValueError, match="walkways 4 has no readable geometry"):
        package.table("walkways")


@pytest.mark.parametrize("x", [float("nan"), float("inf"), 1e300])
def test_a_point_that_is_nowhere_is_refused_with_its_row(write_city, x):
    body = b"\x01\x02\0\0\0\x02\0\0\0" + struct.pack("<4d", 103.8, 1.3, x, 1.3)
    rows = [(3, shapely.LineString([(0, 0), (1, 1)])), (4, b"GP\0\x01" + struct.pack("<i", 4326) + body)]
    message = r"boundaries 4 has a point at .*, which is no place in WGS 84"
    with opened(write_city({"boundaries": rows})) as package, pytest.raises(ValueError, match=message):
        package.table("boundaries")


def test_values_keep_the_type_they_are_stored_with(write_city):
    # GDAL alone reads text and fractions in a column of whole numbers as 0 and as whole numbers.
    stored = (7, 7.5, "7", "it's", None, 0.1 + 0.2, -(2**63), b"\x00\xff", "", "é", float("inf"))
    rows = [(fid, SQUARE, value, None, None, None) for fid, value in enumerate(stored)]
    with opened(write_city({"lanes_polygons": rows})) as package:
        read = package.table("lanes_polygons", "lane_group_fid").columns["lane_group_fid"]
    assert read == stored and [type(value) for value in read] == [type(value) for value in stored]


def test_a_reference_that_is_no_number_is_named_with_its_column(write_city):
    with opened(write_city({"lanes_polygons": [(1, SQUARE, "x", None, None, None)]})) as package:
        table = package.table("lanes_polygons", "lane_group_fid")
    with pytest.raises(ValueError, match="'lane_group_fid': 'x' is no id"):
        table.identifiers("lane_group_fid")


def edited(root, *statements):
    path = next(root.rglob("map.gpkg"))
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return path


ENDLESS = "(WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n)"


@pytest.mark.parametrize("table", ["walkways", "gpkg_contents", "gpkg_geometry_columns"])
def test_a_view_in_the_place_of_a_table_is_refused_before_it_runs(write_city, table):
    # This view never ends, and GDAL runs it as soon as it opens the file.
    path = edited(
        write_city({"walkways": [(1, SQUARE)]}),
        f"ALTER TABLE {table} RENAME TO kept",
        f"CREATE VIEW {table} AS SELECT * FROM kept WHERE {ENDLESS} > 0",
    )
    with pytest.raises(ValueError, match="views or virtual tables"):
        GeoPackage(path)


def test_a_column_that_is_computed_is_refused(write_city):
    path = edited(write_city({"walkways": [(1, SQUARE)]}), "ALTER TABLE walkways ADD COLUMN width AS (zeroblob(9))")
    with GeoPackage(path) as package, pytest.raises(ValueError, match="'width' .* is computed, not stored"):
        package.table("walkways", "width")


def test_rows_that_share_an_id_are_refused(write_city):
    path = edited(
        write_city({"walkways": [(1, SQUARE)]}),
        "ALTER TABLE walkways RENAME TO kept",
        "CREATE TABLE walkways (fid INTEGER, geom GEOMETRY)",
        "INSERT INTO walkways SELECT * FROM kept UNION ALL SELECT * FROM kept",
    )
    with GeoPackage(path) as package, pytest.raises(ValueError, match="without an id of their own"):
        package.table("walkways")


def test_pages_that_are_damaged_are_refused_instead_of_passed_over(write_city):
    path = next(write_city({"walkways": [(fid, SQUARE) for fid in range(100)]}).rglob("map.gpkg"))
    with sqlite3.connect(path) as connection:
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        (root_page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'walkways'").fetchone()
    content = bytearray(path.read_bytes())
    # The number of cells of the table's root page, at bytes 3 and 4 of its header.
    count = (root_page - 1) * page_size + 3
    content[count : count + 2] = struct.pack(">H", struct.unpack(">H", content[count : count + 2])[0] - 1)
    path.write_bytes(content)
    with GeoPackage(path) as package, pytest.raises(ValueError, match="layer 'walkways' is damaged"):
        package.table("walkways")


@pytest.mark.parametrize("crs", ["epsg:4326", "+init=epsg:32648", "http://localhost/epsg:32648", "epsg:999999", ""])
def test_a_projection_that_is_no_plane_of_the_epsg_register_is_refused(write_city, crs):
    with pytest.raises(ValueError, match="projectedCoordSystem"):
        opened(write_city({}, crs=crs))


@pytest.mark.parametrize("srs", [-1, 0])
def test_a_layer_without_a_coordinate_system_is_refused(write_city, srs):
    root = write_city({"walkways": [(1, SQUARE)]})
    path = edited(root, f"UPDATE gpkg_geometry_columns SET srs_id = {srs}", f"UPDATE gpkg_contents SET srs_id = {srs}")
    with (
        GeoPackage(path) as package,
        pytest.raises(ValueError, match=r"coordinates of layer 'walkways' .*EPSG register"),
    ):
        package.table("walkways")


@pytest.mark.parametrize("folder", ["a!b", "x.zip!", "a b#?%20", "zip:a"])
def test_a_path_is_taken_literally(write_city, tmp_path, folder):
    path = tmp_path / folder / "map.gpkg"
    path.parent.mkdir()
    path.write_bytes(next(write_city({"walkways": [(1, SQUARE)]}).rglob("map.gpkg")).read_bytes())
    with GeoPackage(path) as package:
        assert package.table("walkways").ids == ("1",)


def test_gdals_remarks_do_not_reach_the_user(write_city, capfd, recwarn):
    path = edited(write_city({"walkways": [(1, b"GP")]}), "PRAGMA application_id = 5")
    with GeoPackage(path) as package, pytest.raises(ValueError, match="no readable geometry"):
        package.table("walkways")
    assert capfd.readouterr() == ("", "") and not recwarn.list


@pytest.mark.parametrize("crs", [None, "epsg:nowhere"])
def test_a_file_without_a_usable_projection_is_refused(write_city, crs):
    root = write_city({}, crs=crs)
    with pytest.raises(ValueError, match="projectedCoordSystem"):
        opened(root)


def test_a_file_that_is_no_database_is_refused_with_its_path(tmp_path):
    path = tmp_path / "map.gpkg"
    path.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ValueError, match=r"map\.gpkg is no nuPlan map"):
        GeoPackage(path)


def test_reading_leaves_no_files_behind(write_city):
    root = write_city({"walkways": [(1, SQUARE)]})
    with opened(root) as package:
        package.table("walkways")
        assert [p.name for p in package.path.parent.iterdir()] == ["map.gpkg"]
