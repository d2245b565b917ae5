"""Parity of everything a scene is made of with the reference's metric caches, and of scores in our container.

Cases come from `<golden>/metric_cache/index.json`, logs and maps from where `conftest.py` finds them.

Geometry agrees to 1e-9 m, the rounding of UTM metres in float64. Simulated states have the tolerance of golden/pdm's
README. The drive of the last second may move by 1e-5 m: behind a leader the driver model feeds rounding back, and one
of the 8 scenes turns 1e-9 m at 4 s into 2e-6 m at 5 s.
"""

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recogdrive.data.maps import open_map
from recogdrive.data.types import AgentClass
from recogdrive.geometry import box_corners
from recogdrive.pdm.cache import PdmCache, PdmCacheWriter
from recogdrive.pdm.closed.lane_graph import graph_of
from recogdrive.pdm.closed.maker import NavsimMetricScenes, plan_scene
from recogdrive.pdm.closed.proposals import SPEED_FRACTIONS
from recogdrive.pdm.scene import PolygonLayer
from recogdrive.pdm.scorer import PdmScorer
from recogdrive.pdm.validation import GEOMETRY

pytestmark = pytest.mark.heavy

SHARED = Path(__file__).resolve().parents[4] / "shared"
GOLDEN = Path(os.environ.get("RECOGDRIVE_GOLDEN", SHARED / "golden"))
CASES = GOLDEN / "metric_cache" if (GOLDEN / "metric_cache").exists() else SHARED / "golden" / "metric_cache"
INDEX = json.loads((CASES / "index.json").read_text()) if (CASES / "index.json").exists() else {}
TOKENS = sorted(INDEX)
GEOMETRY_M = 1e-9
OFFICIAL_LAYERS = {
    PolygonLayer.LANE: 0,
    PolygonLayer.INTERSECTION: 1,
    PolygonLayer.LANE_CONNECTOR: 11,
    PolygonLayer.CARPARK_AREA: 15,
    PolygonLayer.ROADBLOCK: 17,
}


def test_there_are_cases(golden_metric_cache):
    assert TOKENS == sorted(path.stem for path in golden_metric_cache.glob("*.npz")) != []


@pytest.fixture(scope="module")
def scenes(reference_split):
    return reference_split


@pytest.fixture(scope="module")
def planned(scenes):
    """Token -> everything up to PDM-Closed's choice."""
    made = {}
    for token in TOKENS:
        position = scenes.tokens.index(token)
        frames = scenes.frames(position)
        graph = graph_of(open_map(scenes.maps_root, frames[0].map_name))
        made[token] = plan_scene(frames, scenes.log_of(position), graph)
    return made


@pytest.fixture(scope="module")
def made(scenes):
    """Token -> finished scene in float64, chosen together with all the others."""
    maker = NavsimMetricScenes(lambda: scenes, geometry="float64")
    return dict(zip(scenes.tokens, maker.make(range(len(scenes))), strict=True))


@pytest.fixture(params=TOKENS)
def case(request, planned):
    with np.load(CASES / f"{request.param}.npz") as arrays:
        expected = SimpleNamespace(**{name: arrays[name] for name in arrays.files})
    return SimpleNamespace(token=request.param, ours=planned[request.param], golden=expected)


def test_the_initial_state_is_the_references(case):
    state, golden = case.ours.inputs.state.copy(), case.golden
    state[:3] += case.ours.inputs.origin
    np.testing.assert_allclose(state, golden.ego_state, atol=GEOMETRY_M, rtol=0)
    center = case.ours.inputs.center + case.ours.inputs.origin[:2]
    np.testing.assert_allclose(center, golden.ego_center[:2], atol=GEOMETRY_M, rtol=0)
    assert case.ours.record.timestamp_us == golden.ego_time_us


def test_the_route_is_corrected_as_the_references(case):
    assert [block.id for block in case.ours.route_in] == case.golden.route_in.tolist()
    assert [block.id for block in case.ours.route] == case.golden.route_out.tolist()
    lanes = [lane.element.id for block in case.ours.route for lane in block.lanes]
    assert lanes == case.golden.route_lane_ids.tolist()


def test_the_centre_line_starts_in_the_same_lane_and_goes_the_same_way(case):
    assert case.ours.start.element.id == case.golden.start_lane_id
    limit = case.ours.start.element.speed_limit_mps
    assert (limit is None) == np.isnan(case.golden.start_lane_speed_limit)
    assert limit is None or limit == pytest.approx(case.golden.start_lane_speed_limit, abs=1e-12)
    line = case.ours.line + case.ours.inputs.origin
    np.testing.assert_allclose(line, case.golden.centerline, atol=GEOMETRY_M, rtol=0)
    center = case.ours.proposals.paths[0].path
    np.testing.assert_allclose(center.progress_m, case.golden.centerline_progress, atol=GEOMETRY_M, rtol=0)


def test_the_drivable_polygons_are_the_references(case):
    ours, golden = case.ours, case.golden
    assert [element.id for element in ours.surroundings.elements] == golden.map_tokens.tolist()
    assert [OFFICIAL_LAYERS[layer] for layer in ours.surroundings.layers] == golden.map_types.tolist()
    assert ours.record.polygon_offsets.tolist() == golden.map_polygon_ring_offsets.tolist()
    # The reference's rings repeat their first point at the end.
    open_rings = np.ones(len(golden.map_vertices), dtype=bool)
    open_rings[golden.map_ring_offsets[1:] - 1] = False
    np.testing.assert_allclose(ours.map_vertices, golden.map_vertices[open_rings], atol=GEOMETRY_M, rtol=0)
    assert (
        ours.record.ring_offsets.tolist()
        == (golden.map_ring_offsets - np.arange(len(golden.map_ring_offsets))).tolist()
    )
    on_route = np.array(golden.map_tokens)[ours.record.polygon_on_route]
    assert set(on_route) <= set(golden.route_lane_ids.tolist())


def test_the_tracks_are_interpolated_as_the_references(case):
    record, golden = case.ours.record, case.golden
    # Columns are in order of first appearance, as the reference's objects are.
    assert len(record.agent_types) == len(golden.object_tokens)
    assert [AgentClass(kind).name for kind in record.agent_types] == golden.object_types.tolist()
    np.testing.assert_allclose(record.agent_sizes, golden.object_box[:, 3:5], atol=1e-12, rtol=0)
    speeds = np.nan_to_num(np.hypot(*golden.object_velocity.T))
    is_agent = record.agent_types <= 2
    np.testing.assert_allclose(record.agent_speeds[is_agent], speeds[is_agent], atol=1e-12, rtol=0)
    for step in range(51):
        columns = golden.obs_object_index[golden.obs_offsets[step] : golden.obs_offsets[step + 1]]
        assert set(columns) == set(np.flatnonzero(record.agent_valid[step]))
        corners = box_corners(record.agent_poses[step, columns], *record.agent_sizes[columns].T)
        expected = golden.obs_corners[golden.obs_offsets[step] : golden.obs_offsets[step + 1]]
        # 1e-9 m of rounding in UTM metres, turned by an angle with rounding of its own.
        np.testing.assert_allclose(corners + record.origin[:2], expected, atol=2e-9, rtol=0)


def test_the_forecast_has_the_same_obstacles_in_the_same_order(case):
    assert case.ours.around.tokens == tuple(case.golden.planner_obs_tokens_t0.tolist())
    assert case.ours.around.collided_tokens == set(case.golden.planner_obs_collided.tolist())
    assert len(case.ours.around.maps) == case.golden.planner_obs_n_maps


def test_the_proposals_are_unrolled_as_the_references(case):
    ours, golden = case.ours.proposals, case.golden
    np.testing.assert_allclose(ours.paths[0].target_speeds, golden.idm_target_velocities, atol=1e-12, rtol=0)
    origin = case.ours.inputs.origin
    np.testing.assert_allclose(ours.poses + origin, golden.proposals_se2, atol=GEOMETRY_M, rtol=0)

    def of_all(name):
        return np.concatenate([getattr(unrolled, name) for unrolled in ours.paths])[:, :41]

    np.testing.assert_allclose(of_all("progress_m"), golden.proposals_idm[..., 0], atol=GEOMETRY_M, rtol=0)
    np.testing.assert_allclose(of_all("speeds"), golden.proposals_idm[..., 1], atol=GEOMETRY_M, rtol=0)
    # Distances of polygons far from their frame's origin: a few units in the last place of UTM metres.
    np.testing.assert_allclose(of_all("leaders"), golden.proposals_leading, atol=5e-9, rtol=0)


def test_the_proposals_score_as_in_the_reference(planned):
    from recogdrive.pdm.closed.choice import ProposalScorer

    scorer = ProposalScorer(max(16, len(TOKENS)))
    scenes = [planned[token] for token in TOKENS]
    scores = scorer.score(
        [scene.forecast_record for scene in scenes],
        [scene.index for scene in scenes],
        [scene.red_lights for scene in scenes],
        np.stack([scene.proposals.poses for scene in scenes]),
    )
    for s, (token, scene) in enumerate(zip(TOKENS, scenes, strict=True)):
        with np.load(CASES / f"{token}.npz") as golden:
            states = scores.states[s].copy()
            states[..., :3] += scene.inputs.origin
            np.testing.assert_allclose(states, golden["proposals_simulated"], atol=1e-3, rtol=0)
            multi = np.stack([scores.no_at_fault_collisions[s], scores.drivable_area_compliance[s]])
            np.testing.assert_array_equal(multi, golden["proposal_multi_metrics"])
            progress, *others = golden["proposal_weighted_metrics"]
            np.testing.assert_allclose(scores.ego_progress[s], progress, atol=1e-6, rtol=0)
            weighted = np.stack(
                [
                    scores.time_to_collision_within_bound[s],
                    scores.comfort[s],
                    scores.driving_direction_compliance[s],
                ]
            )
            np.testing.assert_array_equal(weighted, np.stack(others))
            np.testing.assert_allclose(scores.score[s], golden["proposal_scores"], atol=1e-6, rtol=0)
            # Behind one leader drives of different target speeds can be the same but for rounding: any of them is best.
            assert golden["proposal_scores"][scores.winner[s]] >= golden["proposal_scores"].max() - 1e-9
            assert len(golden["proposal_scores"]) == 3 * len(SPEED_FRACTIONS)


def test_pdm_closed_drives_what_the_reference_drives(case, made):
    poses = made[case.token].scene.normaliser_poses + made[case.token].scene.origin
    np.testing.assert_allclose(poses[:41], case.golden.pdm_states[:41, :3], atol=GEOMETRY_M, rtol=0)
    np.testing.assert_allclose(poses, case.golden.pdm_states[:, :3], atol=1e-5, rtol=0)
    assert not case.golden.pdm_states[:, 3:].any()


@pytest.mark.parametrize("geometry", ["float32", "float64"])
def test_plans_score_in_our_container_as_in_the_references_cache(made, tmp_path, geometry):
    """Float32 coordinates 100 m from the ego are 4 micrometres off: scores move by less than 1e-6."""
    with PdmCacheWriter(tmp_path, origin={"source": "golden"}) as writer:
        for token in TOKENS:
            scene = dataclasses.replace(made[token].scene, extended=None)
            scene = dataclasses.replace(scene, **{n: getattr(scene, n).astype(geometry) for n in GEOMETRY})
            assert writer.add(scene, made[token].map_vertices)
    cache = PdmCache(tmp_path)
    plans, expected = [], []
    for token in TOKENS:
        with np.load(CASES / f"{token}.npz") as golden:
            plans.append(golden["plan_poses"])
            expected.append(dict(zip(golden["plan_score_names"].tolist(), golden["plan_scores"].T, strict=True)))
    scores = PdmScorer().score([cache.by_token(token) for token in TOKENS], np.stack(plans))
    for s, by_name in enumerate(expected):
        for name, values in by_name.items():
            tolerance = 1e-6 if name in ("ego_progress", "score") else 0
            np.testing.assert_allclose(getattr(scores, name)[s], values, atol=tolerance, rtol=0, err_msg=name)
