"""Tests of pdm/reference_scenes.py."""

import json

import numpy as np
import pytest

from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.reference_scenes import ReferenceScenes, reference_outputs, reference_scene
from recogdrive.pdm.scene import PolygonLayer
from recogdrive.pdm.validation import validate


def _write(folder, file: str = "a.npz", *, format_number: int = 1, **changes) -> None:
    """A folder with one scene: two agents, the second seen from step 3 on; a triangle of intersection."""
    state = np.zeros((51, 2, 7), dtype=np.float32)
    state[:, 0] = [10, 1, 0.5, 4, 2, 3, 4]
    state[3:, 1] = [20, 2, 0.1, 5, 2.5, 0, 0.05]
    state[4:, 1, 5:] = 9.0
    valid = np.ones((51, 2), dtype=bool)
    valid[:3, 1] = False
    arrays = {
        "origin_xy": np.array([100.5, 200.25]),
        "t0_us": np.int64(7),
        "ego_state": np.arange(11, dtype=np.float64),
        "agent_state": state,
        "agent_valid": valid,
        "agent_type": np.array([0, 6], dtype=np.int8),
        "poly_vertices": np.array([[0, 0], [1, 0], [0, 1], [5, 5], [6, 5], [6, 6], [5, 6]], dtype=np.float32),
        "poly_offsets": np.array([0, 3, 7], dtype=np.int32),
        "poly_type": np.array([2, 0], dtype=np.int8),
        "poly_on_route": np.array([False, True]),
        "centerline": np.array([[0, 0, 9], [1, 0, 9], [2, 0, 9]], dtype=np.float32),
        "normaliser_poses": np.ones((51, 3), dtype=np.float32),
        "candidates": np.zeros((4, 8, 3), dtype=np.float32),
        "out_comfort": np.array([1.0, 0, 1, 0]),
        "out_sim_states": np.zeros((4, 41, 11)),
    } | changes
    np.savez(folder / file, **{name: array for name, array in arrays.items() if array is not None})
    index = {"format": format_number, "scenes": [{"file": file, "kind": "synthetic", "log": "log_7"}]}
    (folder / "index.json").write_text(json.dumps(index))


def test_inputs_keep_their_numbers_and_dtypes(tmp_path):
    _write(tmp_path)
    scene = ReferenceScenes(tmp_path)[0]
    assert (scene.token, scene.log_name, scene.map_name, scene.timestamp_us) == ("a", "log_7", "synthetic", 7)
    assert scene.origin.tolist() == [100.5, 200.25, 0.0]
    assert scene.ego_state.dtype == np.float64
    assert scene.ego_state.tolist() == list(range(11))
    assert scene.agent_poses.dtype == scene.vertices.dtype == scene.centerline.dtype == np.float32
    assert scene.agent_poses[0, 0].tolist() == [10.0, 1.0, 0.5]
    assert scene.centerline.tolist() == [[0, 0], [1, 0], [2, 0]]
    assert scene.normaliser_name == "pdm_closed"


def test_speeds_and_sizes_are_those_where_a_track_is_first_seen(tmp_path):
    _write(tmp_path)
    scene = ReferenceScenes(tmp_path)[0]
    assert scene.agent_speeds.tolist() == [5.0, float(np.float32(0.05))]
    assert scene.agent_sizes.tolist() == [[4.0, 2.0], [5.0, 2.5]]


def test_a_track_that_is_never_there_is_left_out(tmp_path):
    valid = np.zeros((51, 2), dtype=bool)
    valid[:, 1] = True
    state = np.zeros((51, 2, 7), dtype=np.float32)
    state[:, 1] = [20, 2, 0.1, 5, 2.5, 0, 3]
    _write(tmp_path, agent_state=state, agent_valid=valid)
    scene = ReferenceScenes(tmp_path)[0]
    validate(scene)
    assert scene.agent_types.tolist() == [6]
    assert scene.agent_sizes.tolist() == [[5.0, 2.5]]
    assert scene.agent_valid.shape == (51, 1)


def test_every_polygon_is_one_ring(tmp_path):
    _write(tmp_path)
    scene = ReferenceScenes(tmp_path)[0]
    assert scene.ring_offsets.tolist() == [0, 3, 7]
    assert scene.polygon_offsets.tolist() == [0, 1, 2]
    assert scene.polygon_layers.tolist() == [PolygonLayer.INTERSECTION, PolygonLayer.LANE]
    assert scene.polygon_on_route.tolist() == [False, True]


def test_the_driven_future_is_unknown(tmp_path):
    _write(tmp_path)
    assert np.isnan(ReferenceScenes(tmp_path)[0].human_poses).all()


def test_outputs_come_by_name_without_prefix(tmp_path):
    _write(tmp_path)
    expected = ReferenceScenes(tmp_path).expected(0)
    assert set(expected) == {"comfort", "sim_states"}
    assert expected["comfort"].tolist() == [1, 0, 1, 0]
    assert set(reference_outputs(tmp_path / "a.npz")) == set(expected)


def test_candidates_are_read_alone(tmp_path):
    _write(tmp_path)
    assert ReferenceScenes(tmp_path).candidates(0).shape == (4, 8, 3)


def test_another_format_is_refused(tmp_path):
    _write(tmp_path, format_number=2)
    with pytest.raises(SceneError, match="format 2, only format 1"):
        ReferenceScenes(tmp_path)


def test_a_folder_without_index_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"index\.json"):
        ReferenceScenes(tmp_path)


def test_a_listed_file_that_is_missing_is_named(tmp_path):
    _write(tmp_path)
    (tmp_path / "a.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 files.*a\.npz"):
        ReferenceScenes(tmp_path)


def test_a_file_without_an_input_is_refused(tmp_path):
    _write(tmp_path, centerline=None)
    with pytest.raises(SceneError, match="centerline"):
        reference_scene(tmp_path / "a.npz")


def test_all_listed_scenes_are_read_in_order_and_valid(reference_folder):
    scenes = ReferenceScenes(reference_folder)
    listed = json.loads((reference_folder / "index.json").read_text())["scenes"]
    assert scenes.tokens == tuple(entry["file"].removesuffix(".npz") for entry in listed)
    for token, scene in zip(scenes.tokens, scenes, strict=True):
        assert scene.token == token
        assert all("route" in warning for warning in validate(scene)), token
