from itertools import combinations

import numpy as np
import pytest
import shapely

from recogdrive.data.synthetic import curves
from recogdrive.data.synthetic.intersection import intersection
from recogdrive.data.types import MapLayer


@pytest.fixture(scope="module")
def junctions():
    return [intersection(np.random.default_rng(seed)) for seed in range(16)]


def test_both_crossings_and_t_junctions_occur(junctions):
    assert {len(junction.crosswalks) for junction in junctions} == {3, 4}


def test_a_route_turns_by_a_quarter_in_the_direction_of_its_name(junctions):
    quarter = {"left": np.pi / 2, "straight": 0.0, "right": -np.pi / 2}
    for junction in junctions:
        lights = {line.connector for line in junction.stop_lines}
        for route in junction.routes:
            (connector,) = [e for e in route.elements if e in lights]
            line = junction.lines[connector]
            assert line[-1, 2] - line[0, 2] == pytest.approx(quarter[route.turn], abs=1e-6)


def test_every_governed_connector_has_green_in_exactly_one_phase(junctions):
    for junction in junctions:
        governed = {element.id for element in junction.elements if element.has_traffic_light}
        assert sorted(c for phase in junction.phases for c in phase) == sorted(governed)


def test_connectors_with_green_together_never_cross(junctions):
    for junction in junctions:
        element = {e.id: e for e in junction.elements}
        for phase in junction.phases:
            for a, b in combinations(sorted(phase), 2):
                if element[a].predecessors == element[b].predecessors:
                    continue
                first, second = (shapely.LineString(junction.lines[c][:, :2]) for c in (a, b))
                assert not first.crosses(second)
                assert element[a].successors != element[b].successors


def test_stop_lines_are_at_the_start_and_before_the_crosswalk_one_leaves_over(junctions):
    for junction in junctions:
        for line in junction.stop_lines:
            if line.crosswalk is None:
                assert line.at_m == 0.0
                continue
            way = shapely.LineString(junction.lines[line.connector][:, :2])
            crossing = shapely.LineString(junction.crosswalks[line.crosswalk].line[:, :2])
            to_crosswalk = way.project(way.intersection(crossing)) - line.at_m
            assert to_crosswalk == pytest.approx(2.0, abs=0.05)


def test_a_crosswalk_is_closed_by_what_enters_over_it(junctions):
    for junction in junctions:
        starts = {
            line.connector: shapely.LineString(curves.densify(junction.lines[line.connector])[:6, :2])
            for line in junction.stop_lines
            if line.crosswalk is None
        }
        for crosswalk in junction.crosswalks:
            way = shapely.LineString(crosswalk.line[:, :2])
            entering = {connector for connector, start in starts.items() if start.intersects(way)}
            assert entering == crosswalk.closed_by


def test_there_is_a_stop_polygon_and_a_crosswalk_an_arm(junctions):
    for junction in junctions:
        layers = [element.layer for element in junction.elements]
        arms = len(junction.crosswalks)
        assert layers.count(MapLayer.STOP_POLYGON) == layers.count(MapLayer.CROSSWALK) == arms
