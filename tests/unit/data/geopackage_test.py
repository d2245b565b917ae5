"""Tables of a GeoPackage come out in id order, projected, with NULLs kept apart."""

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


@pytest.mark.parametrize("value", [5.5, "a"])
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
