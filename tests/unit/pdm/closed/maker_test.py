"""Tests of pdm/closed/maker.py on real driving; parity of its scenes is in tests/golden/metric_cache."""

import dataclasses
import pickle

import numpy as np
import pytest

from recogdrive.data.navsim import NavsimScenes
from recogdrive.data.scene_filter import SceneFilter
from recogdrive.pdm.closed.choice import ProposalScorer
from recogdrive.pdm.closed.maker import NavsimMetricScenes, in_geometry
from recogdrive.pdm.making import FailedScene
from recogdrive.pdm.validation import GEOMETRY, validate

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def split(request):
    root = request.getfixturevalue("navsim_mini")
    return NavsimScenes(str(root), "mini", SceneFilter(frame_interval=1), str(root / "maps"))


@pytest.fixture(scope="module")
def maker(split):
    return NavsimMetricScenes(lambda: split)


def test_scenes_come_in_the_order_asked_for_with_their_maps(maker):
    made = list(maker.make([5, 2]))
    assert [m.scene.token for m in made] == [maker.tokens[5], maker.tokens[2]]
    for m in made:
        assert validate(m.scene) == () and m.scene.normaliser_name == "pdm_closed"
        assert m.scene.agent_poses.dtype == np.float32
        np.testing.assert_array_equal((m.map_vertices - m.scene.origin[:2]).astype(np.float32), m.scene.vertices)
        assert {"log and map", "map queries", "route", "map index"} <= set(m.seconds)


def test_a_scene_does_not_depend_on_those_made_with_it(maker, assert_same):
    together = list(maker.make(range(4)))
    for position, made in enumerate(together):
        (alone,) = maker.make([position])
        assert_same(alone.scene, made.scene)


def test_a_scene_that_cannot_be_made_says_why_and_stops_nothing(split, monkeypatch):
    frames = split.frames

    def broken(position):
        found = list(frames(position))
        if position == 1:
            found[3] = dataclasses.replace(found[3], roadblock_ids=("4711",))
        return found

    monkeypatch.setattr(split, "frames", broken)
    first, second, third = NavsimMetricScenes(lambda: split).make(range(3))
    assert isinstance(second, FailedScene) and second.token == split.tokens[1]
    assert "names the roadblock '4711'" in second.reason
    assert (first.scene.token, third.scene.token) == (split.tokens[0], split.tokens[2])


def test_collided_tracks_are_forgotten_unless_they_are_to_accumulate(split):
    """The ego stands in the light of connector 27029 in scenes 4 to 7 and drives on; upstream never forgets it."""
    scorer = ProposalScorer()

    def ignored_by(maker):
        seen = []
        plan = maker._plan
        maker._scorer = scorer  # Compiled already: which batch a scene is scored in does not matter here.

        def noted(position, ignored):
            planned = plan(position, ignored)
            seen.append((sorted(ignored), planned.around.collided_tokens))
            return planned

        maker._plan = noted
        list(maker.make(range(3, 9)))
        return seen

    forgets = ignored_by(NavsimMetricScenes(lambda: split))
    assert all(before == [] for before, _ in forgets)
    keeps = ignored_by(NavsimMetricScenes(lambda: split, accumulate_collided_tracks=True))
    light = "red_light_27029"
    assert [before for before, _ in keeps] == [[], [], [light], [light], [light], [light]]


@pytest.mark.parametrize(("name", "expected"), [("navtest", 12_146), ("navtrain", 103_288), ("", None)])
def test_the_name_of_an_official_filter_says_how_many_scenes_there_should_be(navsim_mini, name, expected):
    chosen = SceneFilter(frame_interval=1, name=name)
    maker = NavsimMetricScenes(lambda: NavsimScenes(str(navsim_mini), "mini", chosen, str(navsim_mini / "maps")))
    assert maker.expected_scenes == expected and len(maker.tokens) == 35


def test_a_pickled_maker_takes_no_logs_and_no_programs_along(maker):
    assert len(pickle.dumps(maker)) < 10_000
    copy = pickle.loads(pickle.dumps(maker))
    assert copy.tokens == maker.tokens and copy.describe() == maker.describe()


def test_the_description_says_what_decides_the_scenes_and_not_where_they_lie(maker, split):
    described = NavsimMetricScenes(lambda: split, geometry="float64", accumulate_collided_tracks=True).describe()
    assert described["geometry"] == "float64" and described["accumulate_collided_tracks"] is True
    assert maker.describe() != described
    assert "/" not in str(described.values())


@pytest.mark.parametrize(
    ("options", "told"),
    [({"geometry": "float16"}, "geometry='float16' must be one of"), ({"scenes_at_once": 0}, "scenes_at_once=0")],
)
def test_arguments_are_checked(options, told):
    with pytest.raises(ValueError, match=told):
        NavsimMetricScenes(lambda: None, **options)


def test_geometry_is_rounded_once_and_facts_stay_float64(maker):
    wide = NavsimMetricScenes(lambda: maker.scenes, geometry="float64")
    (made,) = wide.make([3])
    assert in_geometry(made.scene, np.dtype(np.float64)) is made.scene
    narrow = in_geometry(made.scene, np.dtype(np.float32))
    for name in GEOMETRY:
        np.testing.assert_array_equal(getattr(narrow, name), getattr(made.scene, name).astype(np.float32))
    assert narrow.extended.light_vertices.dtype == np.float32
    assert narrow.ego_state.dtype == narrow.extended.history_states.dtype == np.float64
