"""Official metric caches: what of them ends up in a scene, and what is refused, with file and reason."""

import builtins
import importlib.util
import lzma
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import shapely

from recogdrive.data.types import AgentClass
from recogdrive.pdm import official_records
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.making import FailedScene, MadeScene
from recogdrive.pdm.official_cache import OfficialMetricCache, OfficialPdmScenes
from recogdrive.pdm.scene import PolygonLayer

_spec = importlib.util.spec_from_file_location("official_pickles", Path(__file__).with_name("official_pickles.py"))
pickles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pickles)

TOKEN = "a1b2c3d4e5f60718"


class Call:
    """Pickles as the instruction to call `function(*args)`."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


@pytest.fixture
def made(tmp_path):
    """Function: change of the cache object (given it and the classes) -> what comes of it."""

    def make(change=None, geometry="float64", **how):
        with pickles.official_modules() as classes:
            cache = pickles.cache_of(classes, pickles.small_arrays(), **how)
            if change is not None:
                cache = change(cache, classes) or cache
            pickles.write_cache(tmp_path, cache)
        (result,) = OfficialMetricCache(tmp_path, geometry=geometry).make([0])
        return result

    return make


def refused(result):
    """The reason of a scene that failed; it names the file."""
    assert isinstance(result, FailedScene), result
    assert result.token == TOKEN and f"{TOKEN}/metric_cache.pkl" in result.reason
    return result.reason


def test_the_local_frame_starts_at_the_rear_axle_and_is_not_turned(made):
    scene = made().scene
    np.testing.assert_allclose(scene.origin, [331_000, 4_691_000, 0])
    np.testing.assert_allclose(scene.ego_state, [0, 0, 0, 10, 0.1, 0.5, -0.2, 0.01, 0.02, 0.03, 0.04])
    np.testing.assert_allclose(scene.normaliser_poses[[0, 50]], [[0, 0, 0], [45, 0, 0]], atol=1e-8)
    np.testing.assert_allclose(scene.centerline, [[-50, 0], [50, 0], [150, 0]], atol=1e-8)
    assert (scene.token, scene.log_name, scene.timestamp_us) == (TOKEN, "2021.06.09_veh-12", 1_000_000)
    assert scene.normaliser_name == "pdm_closed" and scene.extended is None and np.isnan(scene.human_poses).all()


def test_a_rear_axle_that_is_not_stored_lies_1_461_m_behind_the_centre(made):
    def turn(cache, classes):
        for state in (cache.ego_state, *cache.trajectory.args[0]):
            state._car_footprint._center.heading = math.pi / 2

    scene = made(turn, with_rear_axle=False).scene
    np.testing.assert_allclose(scene.origin, [331_000 + 1.461, 4_691_000 - 1.461, 0])
    assert scene.ego_state[2] == pytest.approx(math.pi / 2)


def test_tracks_have_the_poses_of_their_boxes_and_what_they_were_first(made):
    scene = made().scene
    assert scene.agent_types.tolist() == [AgentClass.VEHICLE, AgentClass.TRAFFIC_CONE]
    assert scene.agent_speeds.tolist() == [6.0, 0.0]
    np.testing.assert_allclose(scene.agent_sizes, [[4.5, 1.9], [0.4, 0.3]])
    np.testing.assert_allclose(scene.agent_poses[20, 0], [32, 0, 0], atol=1e-8)
    np.testing.assert_allclose(scene.agent_poses[10:, 1], np.tile([30, -3, 0.5], (41, 1)), atol=1e-8)
    assert scene.agent_valid[:, 0].all() and scene.agent_valid[:, 1].tolist() == [False] * 10 + [True] * 41
    assert not scene.agent_poses[:10, 1].any()


def test_columns_come_in_the_order_of_first_appearance(made):
    def swap(cache, classes):
        tokens, boxes, _ = cache.observation._occupancy_maps[10].args
        tokens.reverse(), boxes.reverse()
        cache.observation._occupancy_maps[0].args = (["cone"], [boxes[0]], 10)

    assert made(swap).scene.agent_types.tolist() == [AgentClass.TRAFFIC_CONE, AgentClass.VEHICLE]


def test_the_map_keeps_its_order_its_holes_and_its_exact_coordinates(made):
    result = made()
    scene = result.scene
    assert scene.polygon_layers.tolist() == [
        PolygonLayer.ROADBLOCK,
        PolygonLayer.LANE,
        PolygonLayer.LANE,
        PolygonLayer.CARPARK_AREA,
    ]
    assert scene.polygon_on_route.tolist() == [False, True, False, False]
    assert scene.ring_offsets.tolist() == [0, 4, 8, 12, 16, 20] and scene.polygon_offsets.tolist() == [0, 1, 2, 3, 5]
    np.testing.assert_array_equal(scene.vertices[:4], [[-50, -6], [150, -6], [150, 2], [-50, 2]])
    np.testing.assert_array_equal(scene.vertices[16:], [[10, 10], [10, 20], [20, 20], [20, 10]])
    np.testing.assert_array_equal(result.map_vertices, scene.vertices + np.array([331_000, 4_691_000]))


def test_geometry_is_float32_by_default_and_the_state_float64(tmp_path, made):
    made()
    (result,) = OfficialMetricCache(tmp_path).make([0])
    scene = result.scene
    for name in ("agent_poses", "agent_sizes", "vertices", "centerline", "normaliser_poses", "human_poses"):
        assert getattr(scene, name).dtype == np.float32, name
    assert scene.ego_state.dtype == scene.origin.dtype == result.map_vertices.dtype == np.float64


@pytest.mark.parametrize(
    ("place", "city"),
    [
        ((365_100, 143_500), "sg-one-north"),
        ((331_700, 4_692_200), "us-ma-boston"),
        ((664_400, 3_996_800), "us-nv-las-vegas-strip"),
        ((587_600, 4_475_300), "us-pa-pittsburgh-hazelwood"),
        ((100_000, 100_000), ""),
    ],
)
def test_the_city_follows_from_the_coordinates(tmp_path, place, city):
    arrays = pickles.small_arrays()
    shift = np.array(place, dtype=np.float64) - [331_000, 4_691_000]
    for name in ("ego_state", "pdm_states", "centerline", "object_box", "obs_corners", "map_vertices"):
        arrays[name][..., :2] += shift
    with pickles.official_modules() as classes:
        pickles.write_cache(tmp_path, pickles.cache_of(classes, arrays))
    (result,) = OfficialMetricCache(tmp_path).make([0])
    assert result.scene.map_name == city


def test_what_navsim_v2_adds_is_read_over_and_its_red_lights_are_no_agents(made):
    def add(cache, classes):
        tokens, boxes, _ = cache.observation._occupancy_maps[3].args
        tokens.append("red_light_27007")
        boxes.append(shapely.Polygon([(331_050, 4_691_000), (331_060, 4_691_000), (331_055, 4_691_005)]))
        cache.map_parameters = classes.MapParameters(map_root="/maps", map_version="v1.0", map_name="us-ma-boston")
        cache.scene_type = classes.SceneFrameType.ORIGINAL
        cache.timepoint = classes.TimePoint(1)
        sampling = classes.TrajectorySampling(num_poses=8, time_horizon=4.0, interval_length=0.5)
        cache.human_trajectory = classes.Trajectory(poses=np.zeros((8, 3), np.float32), trajectory_sampling=sampling)
        tracked = classes.TrackedObjects(tracked_objects=list(cache.observation._unique_objects.values()))
        cache.current_tracked_objects = [classes.DetectionsTracks(tracked_objects=tracked)]

    plain, extended = made().scene, made(add).scene
    np.testing.assert_array_equal(extended.agent_poses, plain.agent_poses)
    assert extended.map_name == "us-ma-boston"


def test_polygons_of_old_shapely_are_read(made, monkeypatch):
    class OldPolygon:
        def __init__(self, polygon):
            self.polygon = polygon

        def __reduce__(self):
            return OldPolygon, (), shapely.to_wkb(self.polygon)

    OldPolygon.__module__, OldPolygon.__qualname__ = "shapely.geometry.polygon", "Polygon"

    def age(cache, classes):
        tokens, kinds, polygons, capacity = cache.drivable_area_map.args
        cache.drivable_area_map.args = (tokens, kinds, [OldPolygon(polygon) for polygon in polygons], capacity)
        monkeypatch.setattr("shapely.geometry.polygon.Polygon", OldPolygon)
        content = pickle.dumps(cache, 5)
        monkeypatch.undo()
        return lzma.compress(content)

    expected = made().scene
    np.testing.assert_array_equal(made(age).scene.vertices, expected.vertices)


@pytest.mark.parametrize(
    ("function", "args", "named"),
    [
        (os.system, ("touch {marker}",), "posix.system"),
        (builtins.eval, ("open('{marker}', 'w')",), "builtins.eval"),
        (builtins.getattr, ("{marker}", "upper"), "builtins.getattr"),
        (np.load, ("{marker}",), "numpy.load"),
        (np.save, ("{marker}.npy", 1), "numpy.save"),
        (shapely.from_wkt, ("POINT (0 0)",), "shapely.io.from_wkt"),
    ],
)
def test_a_cache_that_would_call_something_is_refused_and_calls_nothing(made, tmp_path, function, args, named):
    marker = tmp_path / "executed"
    filled = [arg.replace("{marker}", str(marker)) if isinstance(arg, str) else arg for arg in args]

    def infect(cache, classes):
        cache.file_path = Call(function, *filled)

    assert f"contains {named}," in refused(made(infect))
    assert not list(tmp_path.glob("executed*"))


def test_classes_of_nuplan_that_no_cache_holds_are_refused_by_name(made):
    def add(cache, classes):
        cache.ego_state.waypoint = classes.Waypoint(x=1)

    assert "nuplan.common.actor_state.waypoint.Waypoint" in refused(made(add))


def test_chains_of_attributes_are_refused(tmp_path):
    for module, name in [("shapely.io", "from_wkb.__globals__"), ("pathlib", "PosixPath.write_text")]:
        crafted = b"\x80\x05" + b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name)) + b"\x93."
        pickles.write_cache(tmp_path, lzma.compress(crafted))
        (result,) = OfficialMetricCache(tmp_path).make([0])
        assert f"{module}.{name}" in refused(result)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c, k: c.__dict__.pop("observation"), "lacks observation"),
        (lambda c, k: setattr(c, "observation", None), "observation is a NoneType instead of a PDMObservation"),
        (lambda c, k: setattr(c, "ego_state", c.centerline), "ego_state is a PDMPath instead of a EgoState"),
        (
            lambda c, k: c.observation._occupancy_maps.__delitem__(slice(41, None)),
            "41 steps of 0.1 s; scoring needs 51",
        ),
        (lambda c, k: setattr(c.observation, "_sample_interval", 0.2), "51 steps of 0.2 s"),
        (lambda c, k: c.observation._unique_objects.pop("cone"), "_unique_objects lacks 'cone'"),
        (lambda c, k: c.observation._occupancy_maps[3].args[0].append("car"), "2 tokens, 1 of them different"),
        (lambda c, k: c.observation._occupancy_maps[3].args[0].clear(), "0 tokens"),
        (lambda c, k: setattr(c.observation._unique_objects["car"]._box, "_length", 4.6), "measures [4.5"),
        (lambda c, k: setattr(c.observation._unique_objects["car"]._box, "_length", math.nan), "_length is nan"),
        (lambda c, k: setattr(c.observation._unique_objects["car"]._box, "_length", "4.5"), "_length is a str"),
        (lambda c, k: setattr(c.observation._unique_objects["car"], "_velocity", None), "_velocity is a NoneType"),
        (
            lambda c, k: setattr(c.observation._unique_objects["car"], "_tracked_object_type", k.TrackedObjectType.EGO),
            "has class 7",
        ),
        (lambda c, k: c.trajectory.args[0].pop(), "trajectory has 50 states instead of 51"),
        (lambda c, k: setattr(c.trajectory.args[0][9], "_time_point", k.TimePoint(2_000_000)), "us off the clock"),
        (lambda c, k: setattr(c.ego_state, "_tire_steering_angle", math.inf), "_tire_steering_angle is inf"),
        (lambda c, k: c.centerline.args[0].clear(), "centerline"),
        (lambda c, k: setattr(c.centerline.args[0][1], "x", 1j), "centerline[1].x is a complex"),
        (lambda c, k: setattr(c, "route_lane_ids", [11]), "route_lane_ids holds something other than strings"),
        (lambda c, k: c.drivable_area_map.args[0].pop(), "3 tokens, 4 types and 4 polygons"),
        (
            lambda c, k: c.drivable_area_map.args[1].__setitem__(0, k.SemanticMapLayer.STOP_LINE),
            "layers [2]; known are [0, 1, 11, 15, 17]",
        ),
        (lambda c, k: c.drivable_area_map.args[2].__setitem__(1, shapely.Point(1, 2)), "geometry 1 is no polygon"),
        (lambda c, k: c.drivable_area_map.args[2].__setitem__(1, shapely.Polygon()), "polygon 1 is empty"),
        (lambda c, k: c.drivable_area_map.args[2].__setitem__(1, None), "polygon 1 is a NoneType"),
        (
            lambda c, k: c.observation._occupancy_maps[0].args[1].__setitem__(0, shapely.Point(1, 2).buffer(1)),
            "polygon 0 is no box",
        ),
    ],
)
def test_what_navsim_does_not_write_fails_with_its_place(made, change, reason):
    def apply(cache, classes):
        change(cache, classes)

    assert reason in refused(made(apply))


def test_a_pickle_of_something_else_is_no_cache(tmp_path):
    pickles.write_cache(tmp_path, {"a": 1})
    (result,) = OfficialMetricCache(tmp_path).make([0])
    assert "the file is a dict instead of a MetricCache" in refused(result)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-20], "ends early"),
        (lambda data: b"", "ends early"),
        (lambda data: data + b"more", "goes on for 4 bytes"),
        (lambda data: b"<html>404</html>", "is no LZMA stream"),
        (lambda data: data[:200] + b"\x00" * 8 + data[208:], "is no LZMA stream"),
        (lambda data: lzma.compress(lzma.decompress(data)[:5000]), "is not a readable pickle"),
    ],
)
def test_damaged_files_are_named_with_what_is_wrong(tmp_path, made, damage, reason):
    made()
    path = tmp_path / "2021.06.09_veh-12" / "unknown" / TOKEN / "metric_cache.pkl"
    path.write_bytes(damage(path.read_bytes()))
    (result,) = OfficialMetricCache(tmp_path).make([0])
    assert reason in refused(result)


def test_a_stream_that_unpacks_to_more_than_any_cache_holds_is_not_unpacked(tmp_path):
    path = pickles.write_cache(tmp_path, lzma.compress(bytes(2**20)))
    with pytest.raises(ValueError, match=f"{TOKEN}.* holds more than 65536 bytes"):
        official_records.open_cache(path, max_bytes=2**16)
    with pytest.raises(ValueError, match="is larger than 64 bytes"):
        official_records.open_cache(path, max_bytes=64)


def test_a_stream_that_asks_for_much_memory_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**28}]
    pickles.write_cache(tmp_path, lzma.compress(b"x", filters=filters))
    (result,) = OfficialMetricCache(tmp_path).make([0])
    assert "memory" in refused(result).lower()


def test_a_scene_that_fails_does_not_stop_the_others(tmp_path):
    with pickles.official_modules() as classes:
        cache = pickles.cache_of(classes, pickles.small_arrays())
        for token in ("t1", "t3"):
            pickles.write_cache(tmp_path, cache, token)
    pickles.write_cache(tmp_path, b"", "t2")
    pickles.write_list(tmp_path, [f"/x/2021.06.09_veh-12/unknown/t{i}/metric_cache.pkl" for i in (3, 4, 2, 1)])
    maker = pickle.loads(pickle.dumps(OfficialMetricCache(tmp_path, name="navtest")))
    assert maker.tokens == ("t1", "t2", "t3", "t4") and maker.name == "navtest" and maker.expected_scenes == 12_146
    results = list(maker.make([3, 2, 1, 0]))
    assert [type(result) for result in results] == [FailedScene, MadeScene, FailedScene, MadeScene]
    assert "t4/metric_cache.pkl" in results[0].reason and "No such file" in results[0].reason
    assert set(results[1].seconds) == {"reading the pickle", "conversion"}


def test_descriptions_do_not_depend_on_where_the_files_lie(tmp_path):
    described = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        pickles.write_cache(folder, b"")
        described.append(OfficialMetricCache(folder, name="navmini").describe())
    assert described[0] == described[1]
    assert described[0] == {
        "source": "official_metric_cache",
        "name": "navmini",
        "normaliser": "pdm_closed",
        "geometry": "float32",
    }


def test_scenes_are_found_by_token(made, tmp_path):
    expected = made(geometry="float32").scene
    source = OfficialPdmScenes(tmp_path)

    class Asked:
        token = TOKEN

    np.testing.assert_array_equal(source(Asked).agent_poses, expected.agent_poses)
    Asked.token = "other"
    with pytest.raises(SceneError, match=r"scene other is not in the official metric cache .* 1 scenes"):
        source(Asked)


def test_a_damaged_file_is_a_scene_error_to_who_asks_by_token(tmp_path):
    pickles.write_cache(tmp_path, b"")

    class Asked:
        token = TOKEN

    with pytest.raises(SceneError, match=f"scene {TOKEN}: .*ends early"):
        OfficialPdmScenes(tmp_path)(Asked)


@pytest.mark.parametrize("reader", [OfficialMetricCache, OfficialPdmScenes])
def test_arguments_are_checked(tmp_path, reader):
    with pytest.raises(ValueError, match="No official metric cache is named"):
        reader(None)
    pickles.write_cache(tmp_path, b"")
    with pytest.raises(ValueError, match=r"geometry='float16' must be one of float32, float64"):
        reader(tmp_path, geometry="float16")
