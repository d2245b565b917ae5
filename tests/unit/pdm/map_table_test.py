"""Tests of pdm/map_table.py."""

import numpy as np
import pytest

from recogdrive.pdm.map_table import PolygonPool, Polygons


def polygons(*shapes, layers=None):
    """Polygons from lists of rings."""
    rings = [np.array(ring, dtype=float) for shape in shapes for ring in shape]
    return Polygons(
        np.concatenate([np.zeros((0, 2)), *rings]),
        np.cumsum([0, *map(len, rings)], dtype=np.int32),
        np.cumsum([0, *map(len, shapes)], dtype=np.int32),
        np.zeros(len(shapes), np.int8) if layers is None else np.array(layers, np.int8),
    )


TRIANGLE = [[[0, 0], [1, 0], [0, 1]]]
SQUARE = [[[0, 0], [4, 0], [4, 4], [0, 4]]]
FRAME = [*SQUARE, [[1, 1], [1, 3], [3, 3]]]


def assert_equal(first, second):
    for one, other in zip(first, second, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


def test_equal_polygons_share_a_number():
    pool = PolygonPool(np.dtype(np.float64))
    assert pool.add(polygons(TRIANGLE, SQUARE, TRIANGLE)).tolist() == [0, 1, 0]
    assert pool.add(polygons(FRAME, SQUARE)).tolist() == [2, 1]
    assert_equal(pool.table(), polygons(TRIANGLE, SQUARE, FRAME))


def test_layer_rings_and_every_bit_tell_polygons_apart():
    pool = PolygonPool(np.dtype(np.float64))
    nearly = [[[0, 0], [np.nextafter(1, 2), 0], [0, 1]]]
    whole_ring = [[*SQUARE[0], *FRAME[1]]]
    assert pool.add(polygons(TRIANGLE, nearly, layers=[0, 0])).tolist() == [0, 1]
    assert pool.add(polygons(TRIANGLE, layers=[3])).tolist() == [2]
    assert pool.add(polygons(FRAME, whole_ring)).tolist() == [3, 4]


def test_polygons_are_taken_in_any_order_holes_included():
    table = polygons(TRIANGLE, FRAME, SQUARE, layers=[1, 2, 3])
    assert_equal(table.take(np.array([2, 1, 1])), polygons(SQUARE, FRAME, FRAME, layers=[3, 2, 2]))
    assert_equal(table.take(np.array([], dtype=int)), polygons())


@pytest.mark.parametrize("number", [-1, 3])
def test_a_polygon_that_is_not_there_is_refused(number):
    with pytest.raises(IndexError, match="of a table of 3"):
        polygons(TRIANGLE, FRAME, SQUARE).take(np.array([0, number]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_table_comes_back_from_its_bytes(dtype):
    rng = np.random.default_rng(0)
    table = polygons(TRIANGLE, FRAME, SQUARE)
    table = table._replace(vertices=rng.normal(4.7e6, 100, table.vertices.shape).astype(dtype))
    assert_equal(Polygons.from_bytes(table.to_bytes()), table)


def test_an_empty_table_comes_back():
    assert_equal(Polygons.from_bytes(polygons().to_bytes()), polygons())


def test_a_damaged_table_is_refused():
    content = polygons(TRIANGLE, FRAME).to_bytes()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        with pytest.raises(ValueError, match="checksum of the map table does not match"):
            Polygons.from_bytes(bytes(damaged))
