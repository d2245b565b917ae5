"""Pictures of what went wrong: everything marked lies where it was computed to be, and in the view."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from recogdrive.evaluation.agents import Human
from recogdrive.evaluation.bev import figure_pixels
from recogdrive.evaluation.failure import draw_failure, failure_figure, failure_marks, footprint
from recogdrive.evaluation.open_loop import evaluate_open_loop
from recogdrive.evaluation.pdms import evaluate_pdms
from recogdrive.pdm.state import STATE_SIZE, EgoState

HIT = {"no_at_fault_collisions": 0.0, "score": 0.0, "collision_step": 30, "collision_track": 0}
OFF_ROAD = {"drivable_area_compliance": 0.0, "score": 0.0, "off_road_step": 20, "off_road_corner": 3}
TTC = {"time_to_collision_within_bound": 0.0, "score": 0.5, "ttc_step": 10, "ttc_ahead_steps": 6, "ttc_track": 1}
FRONT_M, REAR_M, HALF_WIDTH_M = 1.461 + 2.588, 1.461 - 2.588, 1.1485


@pytest.fixture
def failing(make_scene, pdm_scene, telling_scorer):
    """(scene, its PDM scene, evidence) of a drive 16 m ahead in 4 s of which the scorer says this."""

    def failing(**told):
        scene = make_scene(1)
        scorer = telling_scorer({(scene.token, 0): {"driven_m": 16.0} | told})
        pdms = evaluate_pdms(evaluate_open_loop([Human()], [("val", [scene])]), pdm_scene, scorer)
        (evidence,) = pdms.evidence["val", "human"]
        return scene, pdm_scene(scene), evidence

    return failing


def drawn(failing, **told):
    """Axes with the picture, and its artists by gid."""
    scene, pdm, evidence = failing(**told)
    ax = Figure(figsize=(5, 5)).add_subplot()
    draw_failure(ax, scene, pdm, evidence, Human().plan([scene])[0])
    return ax, {a.get_gid(): a for a in ax.get_children() if a.get_gid()}


def box_of(artist):
    """(rear, front, right, left) of a box in the scene frame: picture x is left, picture y forward."""
    corners = artist.get_paths()[0].vertices[:4]
    return corners[:, 1].min(), corners[:, 1].max(), corners[:, 0].min(), corners[:, 0].max()


def test_a_collision_shows_the_ego_and_the_box_it_hits_at_that_time(failing):
    _, artists = drawn(failing, **HIT)

    # 30 of 40 steps of 0.4 m: the rear axle is at 12 m.
    expected = (12 + REAR_M, 12 + FRONT_M, -HALF_WIDTH_M, HALF_WIDTH_M)
    assert box_of(artists["failure:collision_ego"]) == pytest.approx(expected)
    # A car of 4 x 2 m at (20, 0).
    assert box_of(artists["failure:collision_box"]) == pytest.approx((18.0, 22.0, -1.0, 1.0))
    assert artists["failure:collision_box:label"].get_text() == "hit 3.0 s"
    assert not [gid for gid in artists if gid.startswith(("failure:off_road", "failure:ttc"))]


def test_the_corner_off_the_road_is_marked_on_the_footprint_of_that_time(failing):
    _, artists = drawn(failing, **OFF_ROAD)

    assert box_of(artists["failure:off_road_ego"])[1] == pytest.approx(8 + FRONT_M)
    corner = artists["failure:off_road_corner"]
    assert corner.get_xdata() == pytest.approx([-HALF_WIDTH_M]), "front right"
    assert corner.get_ydata() == pytest.approx([8 + FRONT_M])
    assert artists["failure:off_road_corner:label"].get_text() == "off road 2.0 s"


def test_time_to_collision_shows_ego_projection_and_whom_it_would_hit_then(failing):
    _, artists = drawn(failing, **TTC)

    # At step 10 the rear axle is at 4 m, 6 steps later at 4 m/s it would be 2.4 m on.
    assert box_of(artists["failure:ttc_ego"])[1] == pytest.approx(4 + FRONT_M)
    assert box_of(artists["failure:ttc_projection"])[1] == pytest.approx(4 + 2.4 + FRONT_M)
    assert box_of(artists["failure:ttc_box"]) == pytest.approx((9.7, 10.3, -3.3, -2.7))
    assert artists["failure:ttc_box:label"].get_text() == "TTC 1.0 + 0.6 s"


def test_the_way_of_an_object_starts_where_it_is_first_seen(failing):
    _, pdm, evidence = failing(**TTC)
    poses = np.array(pdm.agent_poses)
    poses[5:, 1, 0] += np.arange(46)  # moves once it is seen, at step 5

    marks = {m.gid: m for m in failure_marks(type(pdm)(**{**vars(pdm), "agent_poses": poses}), evidence, np.zeros(3))}

    np.testing.assert_allclose(marks["failure:ttc_way"].xy, poses[5:17, 1, :2])


def test_the_looks_of_ego_projection_and_object_differ(failing):
    _, artists = drawn(failing, **TTC | HIT)

    ego, projection, hit = (artists[f"failure:ttc_{name}"] for name in ("ego", "projection", "box"))
    assert ego.get_facecolor()[0, 3] == 0.25 and projection.get_facecolor()[0, 3] == 0
    assert hit.get_hatch() and not ego.get_hatch()
    assert ego.get_linestyle() != projection.get_linestyle()
    assert to_hex(ego.get_edgecolor()[0]) != to_hex(artists["failure:collision_ego"].get_edgecolor()[0])


def test_the_simulated_drive_stands_beside_the_planned_poses(failing):
    ax, artists = drawn(failing, **HIT)

    simulated = artists["failure:simulated"]
    np.testing.assert_allclose(simulated.get_ydata(), np.linspace(0, 16, 41))
    np.testing.assert_allclose(simulated.get_xdata(), 0, atol=1e-9)
    assert "trajectory:human" in artists
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["human", "centre line", "full progress (expert)", "simulated"]


def test_centre_line_and_normaliser_are_drawn_up_to_the_horizon(failing):
    _, artists = drawn(failing, **HIT)

    np.testing.assert_allclose(artists["failure:centerline"].get_ydata(), [-20, 60])
    # 0.5 m a step, 40 of 50 steps.
    np.testing.assert_allclose(artists["failure:normaliser"].get_ydata()[[0, -1]], [0, 20])


def test_the_drivable_area_lies_below_the_map_with_its_outer_edge(failing):
    _, artists = drawn(failing, **OFF_ROAD)

    area, edge = artists["failure:drivable_area"], artists["failure:drivable_edge"]
    assert edge.get_zorder() < area.get_zorder() < 1
    corners = area.get_paths()[0].vertices
    assert (corners[:, 0].min(), corners[:, 0].max()) == pytest.approx((-10, 10))
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((-60, 60))


def test_polygons_that_do_not_count_as_drivable_are_left_out(failing):
    scene, pdm, evidence = failing(**OFF_ROAD)
    lane_only = type(pdm)(**{**vars(pdm), "polygon_layers": np.array([0], dtype=np.int8)})
    ax = Figure().add_subplot()

    draw_failure(ax, scene, lane_only, evidence, Human().plan([scene])[0])

    (area,) = [a for a in ax.get_children() if a.get_gid() == "failure:drivable_area"]
    assert len(area.get_paths()) == 0


@pytest.mark.parametrize("far_m", [25.0, 400.0])
def test_the_view_holds_everything_marked(failing, far_m):
    ax, artists = drawn(failing, **HIT, driven_m=far_m)

    (right, left), (rear, front) = sorted(ax.get_xlim()), ax.get_ylim()
    for gid in ("failure:collision_ego", "failure:collision_box"):
        box = box_of(artists[gid])
        assert rear < box[0] and box[1] < front and right < box[2] and box[3] < left


def test_a_projection_goes_forward_even_when_the_ego_reverses():
    state = np.zeros(STATE_SIZE)
    state[[EgoState.VELOCITY_X, EgoState.VELOCITY_Y]] = -3.0, 4.0

    moved = footprint(state, np.zeros(3), moved_s=0.9)

    assert moved[:, 0].max() == pytest.approx(FRONT_M + 0.9 * 5.0)


def test_the_footprint_turns_with_heading_and_frame():
    state = np.zeros(STATE_SIZE)
    state[: EgoState.HEADING + 1] = 1.0, 2.0, np.pi / 2
    place = np.array([10.0, 0.0, np.pi / 2])

    corners = footprint(state, place)

    # Facing left in the local frame, backwards in the other; the rear axle is at (10 - 2, 1).
    np.testing.assert_allclose(corners[0], [8 - FRONT_M, 1 - HALF_WIDTH_M], atol=1e-9)
    np.testing.assert_allclose(corners[2], [8 - REAR_M, 1 + HALF_WIDTH_M], atol=1e-9)


def test_a_figure_renders_to_pixels_of_the_marks_colours(failing):
    scene, pdm, evidence = failing(**HIT | OFF_ROAD | TTC)

    pixels = figure_pixels(failure_figure(scene, pdm, evidence, Human().plan([scene])[0], dpi=100))

    assert pixels.shape == (500, 500, 3)
    colours = {to_hex(c / 255) for c in np.unique(pixels.reshape(-1, 3), axis=0)}
    assert {"#b3001b", "#7b1fa2", "#d95f02", "#de7061"} <= colours
