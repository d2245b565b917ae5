"""Official caches of the reference scenes give their arrays and their scores.

The golden arrays hold all that an official cache holds. They are pickled the way NAVSIM does, by classes that are gone
when the caches are read.
"""

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from recogdrive.data.types import AgentClass
from recogdrive.pdm.making import MadeScene
from recogdrive.pdm.official_cache import OfficialMetricCache
from recogdrive.pdm.scene import LANE_LAYERS, PolygonLayer
from recogdrive.pdm.scorer import PdmScorer

pytestmark = pytest.mark.heavy

_spec = importlib.util.spec_from_file_location(
    "official_pickles", Path(__file__).resolve().parents[2] / "unit" / "pdm" / "official_pickles.py"
)
pickles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pickles)

POSITION = 1e-8
"""Global coordinates have steps of 1e-9 m; a local one is the difference of two."""
ANGLE = 1e-7
"""A pedestrian's box measures 0.3 m, so that such a step turns it by 1e-8 rad."""
LAYERS = {
    17: PolygonLayer.ROADBLOCK,
    0: PolygonLayer.LANE,
    11: PolygonLayer.LANE_CONNECTOR,
    1: PolygonLayer.INTERSECTION,
    15: PolygonLayer.CARPARK_AREA,
}


@pytest.fixture(scope="module")
def references(golden_metric_cache):
    """Token -> arrays."""
    found = {path.stem: dict(np.load(path)) for path in sorted(golden_metric_cache.glob("*.npz"))}
    assert len(found) >= 8
    return found


@pytest.fixture(scope="module")
def cache(references, tmp_path_factory):
    """An official cache of the reference scenes."""
    root = tmp_path_factory.mktemp("official")
    with pickles.official_modules() as classes:
        for number, (token, arrays) in enumerate(references.items()):
            pickles.write_cache(
                root, pickles.cache_of(classes, arrays, with_rear_axle=number % 2 == 0), token, str(arrays["log_name"])
            )
    assert not any(name.partition(".")[0] in ("nuplan", "navsim") for name in sys.modules)
    return root


@pytest.fixture(scope="module", params=["float64", "float32"])
def made(request, cache):
    """Token -> made scene, in either geometry."""
    maker = OfficialMetricCache(cache, geometry=request.param)
    scenes = list(maker.make(range(len(maker.tokens))))
    assert all(isinstance(scene, MadeScene) for scene in scenes), scenes
    return {scene.scene.token: scene for scene in scenes}


def tolerance(array, exact):
    """float32 rounds to 6e-8 of 100 m and more."""
    return exact if array.dtype == np.float64 else 2e-5


def test_ego_and_place_are_those_of_the_reference(references, made):
    for token, arrays in references.items():
        scene, expected = made[token].scene, arrays["ego_state"]
        np.testing.assert_allclose(scene.origin, [*expected[:2], 0], rtol=0, atol=2e-9)
        np.testing.assert_allclose(scene.ego_state, [0, 0, *expected[2:]], rtol=0, atol=1e-12)
        assert scene.timestamp_us == arrays["ego_time_us"]
        assert (scene.log_name, scene.map_name) == (str(arrays["log_name"]), str(arrays["map_location"]))
        assert scene.extended is None and np.isnan(scene.human_poses).all()


def test_tracks_are_those_of_the_reference(references, made):
    for token, arrays in references.items():
        scene = made[token].scene
        seen = {token: column for column, token in enumerate(arrays["object_tokens"])}
        assert scene.agent_valid.shape == (51, len(seen))
        np.testing.assert_allclose(scene.agent_sizes, arrays["object_box"][:, 3:5], rtol=1e-6)
        speeds = np.nan_to_num(np.hypot(*arrays["object_velocity"].T))
        np.testing.assert_allclose(scene.agent_speeds, speeds, rtol=1e-15)
        assert [AgentClass(kind).name for kind in scene.agent_types] == arrays["object_types"].tolist()
        offsets = arrays["obs_offsets"]
        for step in range(51):
            rows = slice(offsets[step], offsets[step + 1])
            columns, corners = arrays["obs_object_index"][rows], arrays["obs_corners"][rows]
            assert set(np.flatnonzero(scene.agent_valid[step])) == set(columns)
            poses = scene.agent_poses[step, columns]
            center = corners.mean(axis=1) - scene.origin[:2]
            np.testing.assert_allclose(poses[:, :2], center, rtol=0, atol=tolerance(poses, POSITION))
            forward = corners[:, 0] - corners[:, 1]
            turned = poses[:, 2] - np.arctan2(forward[:, 1], forward[:, 0])
            np.testing.assert_allclose(np.sin(turned), 0, atol=tolerance(poses, ANGLE))
            assert (np.cos(turned) > 0).all()
            first = ~scene.agent_valid[:step].any(axis=0)[columns]
            expected = arrays["object_box"][columns[first]]
            np.testing.assert_allclose(
                poses[first, :2], expected[:, :2] - scene.origin[:2], rtol=0, atol=tolerance(poses, POSITION)
            )


def test_the_map_is_that_of_the_reference(references, made):
    for token, arrays in references.items():
        scene, vertices = made[token].scene, made[token].map_vertices
        assert [PolygonLayer(layer) for layer in scene.polygon_layers] == [LAYERS[kind] for kind in arrays["map_types"]]
        np.testing.assert_array_equal(scene.polygon_offsets, arrays["map_polygon_ring_offsets"])
        rings = arrays["map_ring_offsets"]
        open_rings = [arrays["map_vertices"][a : b - 1] for a, b in itertools.pairwise(rings)]
        np.testing.assert_array_equal(np.diff(scene.ring_offsets), [len(ring) for ring in open_rings])
        np.testing.assert_array_equal(vertices, np.concatenate(open_rings))
        np.testing.assert_array_equal(scene.vertices, (vertices - scene.origin[:2]).astype(scene.vertices.dtype))
        lanes = np.isin(scene.polygon_layers, LANE_LAYERS)
        np.testing.assert_array_equal(
            scene.polygon_on_route, lanes & np.isin(arrays["map_tokens"], arrays["route_lane_ids"])
        )


def test_centre_line_and_normaliser_are_those_of_the_reference(references, made):
    for token, arrays in references.items():
        scene = made[token].scene
        line = arrays["centerline"][:, :2] - scene.origin[:2]
        np.testing.assert_allclose(scene.centerline, line, rtol=0, atol=tolerance(scene.centerline, POSITION) * 2)
        poses = arrays["pdm_states"][:, :3] - scene.origin
        np.testing.assert_allclose(
            scene.normaliser_poses, poses, rtol=0, atol=tolerance(scene.normaliser_poses, POSITION)
        )
        assert scene.normaliser_name == "pdm_closed"


def test_scores_are_those_of_the_reference(references, made):
    scores = PdmScorer(dtype="float64").score(
        [made[token].scene for token in references], np.stack([arrays["plan_poses"] for arrays in references.values()])
    )
    for name in next(iter(references.values()))["plan_score_names"]:
        for row, arrays in enumerate(references.values()):
            expected = arrays["plan_scores"][:, arrays["plan_score_names"].tolist().index(name)]
            np.testing.assert_allclose(getattr(scores, str(name))[row], expected, rtol=0, atol=1e-6, err_msg=name)
