import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from recogdrive.evaluation.bev import (
    MAX_REACH_M,
    View,
    draw_scene,
    figure_pixels,
    figure_png,
    scene_figure,
    scene_title,
    trajectory_grid,
    view_of,
)

TIMES_S = 0.5 * np.arange(1, 9)


@pytest.fixture
def left_turn():
    """Ends 20 m ahead and 8 m to the left."""
    return np.stack([5.0 * TIMES_S, 0.5 * TIMES_S**2, 0.2 * TIMES_S], axis=-1)


@pytest.fixture
def ax():
    return Figure(figsize=(5, 5)).add_subplot()


def artist(ax, gid):
    (found,) = [a for a in ax.get_children() if a.get_gid() == gid]
    return found


def on_screen(ax, left_m, forward_m):
    """Pixel (right, up) of a point given in the scene frame."""
    ax.apply_aspect()
    return ax.transData.transform((left_m, forward_m))


def test_forward_is_up_and_left_is_left(ax, make_scene, left_turn):
    draw_scene(ax, make_scene(), {"planner": left_turn})

    origin, ahead, left = on_screen(ax, 0, 0), on_screen(ax, 0, 10), on_screen(ax, 10, 0)
    assert ahead[1] > origin[1] and ahead[0] == pytest.approx(origin[0])
    assert left[0] < origin[0] and left[1] == pytest.approx(origin[1])
    # Equal scale on both axes.
    assert ahead[1] - origin[1] == pytest.approx(origin[0] - left[0])


def test_a_trajectory_is_plotted_as_y_over_x_from_the_origin(ax, make_scene, left_turn):
    draw_scene(ax, make_scene(), {"human": left_turn, "planner": np.add(left_turn, [0.0, 1.0, 0.0])})

    line = artist(ax, "trajectory:planner")
    np.testing.assert_allclose(line.get_xdata(), [0, *(left_turn[:, 1] + 1)])
    np.testing.assert_allclose(line.get_ydata(), [0, *left_turn[:, 0]])
    assert (to_hex(line.get_color()), line.get_marker()) == ("#de7061", "o")
    assert to_hex(artist(ax, "trajectory:human").get_color()) == "#59a14f"


def test_road_users_are_oriented_boxes_in_the_colour_of_their_class(ax, make_scene):
    draw_scene(ax, make_scene(), {})

    vehicle = artist(ax, "objects:vehicle")
    corners = vehicle.get_paths()[0].vertices[:4]
    # A car 4 x 2 m at x = 15, y = 3.5, heading forward: picture x spans its width, picture y its length.
    assert sorted(set(corners[:, 0])) == [2.5, 4.5] and sorted(set(corners[:, 1])) == [13.0, 17.0]
    assert to_hex(vehicle.get_facecolor()[0]) == "#699cdb" and to_hex(vehicle.get_edgecolor()[0]) == "#000000"
    assert to_hex(artist(ax, "objects:traffic_cone").get_facecolor()[0]) == "#edc948"


def test_heading_ticks_point_forward_and_static_objects_have_none(ax, make_scene):
    draw_scene(ax, make_scene(), {})

    (car,) = artist(ax, "headings:vehicle").get_segments()
    (pedestrian,) = artist(ax, "headings:pedestrian").get_segments()
    np.testing.assert_allclose(car, [[3.5, 15.0], [3.5, 17.0]])
    # Faces left: the tick grows in picture x, which runs to the left.
    np.testing.assert_allclose(pedestrian, [[-6.0, 8.0], [-5.7, 8.0]], atol=1e-12)
    assert not [a for a in ax.get_children() if a.get_gid() == "headings:traffic_cone"]


def test_the_ego_box_lies_around_the_vehicle_centre_ahead_of_the_origin(ax, make_scene):
    draw_scene(ax, make_scene(), {})

    corners = artist(ax, "ego").get_paths()[0].vertices[:4]
    assert corners[:, 1].max() == pytest.approx(1.461 + 5.176 / 2)
    assert corners[:, 1].min() == pytest.approx(1.461 - 5.176 / 2)
    assert np.ptp(corners[:, 0]) == pytest.approx(2.297)


def test_map_areas_have_their_layers_colour_and_roadblocks_are_not_drawn(ax, make_scene):
    draw_scene(ax, make_scene(), {})

    lanes = artist(ax, "map:lane")
    assert to_hex(lanes.get_facecolor()[0]) == "#d3d3d3"
    # Lane 2 lies at y = 3.5, 3.5 m wide: picture x from 1.75 to 5.25.
    assert (lanes.get_paths()[1].vertices[:, 0].min(), lanes.get_paths()[1].vertices[:, 0].max()) == (1.75, 5.25)
    assert artist(ax, "map:crosswalk").get_alpha() == 0.3
    np.testing.assert_allclose(artist(ax, "map:centerlines").get_segments()[1][:, 0], 3.5)
    assert not [a for a in ax.get_children() if a.get_gid() == "map:roadblock"]


def test_a_hole_in_an_area_shows_the_ground(make_scene):
    figure = scene_figure(make_scene(), {}, size_in=4)
    pixels = figure_pixels(figure)
    (ax,) = figure.axes

    def colour(forward_m, left_m):
        right, up = np.round(on_screen(ax, left_m, forward_m)).astype(int)
        return to_hex(pixels[len(pixels) - up, right] / 255)

    # The car park spans x 5 ... 15, y -20 ... -10; its hole x 8 ... 12, y -17 ... -13.
    assert colour(6.5, -18.0) == "#b9d3b4"
    assert colour(10.0, -15.0) == "#ffffff"
    assert colour(-20.0, 0.9) == "#d3d3d3"


def test_the_view_is_the_64_metre_square_around_the_ego_while_all_fits(left_turn):
    assert view_of([left_turn]) == View((-32.0, 32.0), (-32.0, 32.0))


def test_the_view_moves_and_grows_just_enough_for_a_fast_trajectory():
    straight = np.stack([15.0 * TIMES_S, 0 * TIMES_S, 0 * TIMES_S], axis=-1)

    # From 4 m behind the ego's reach (5.176 m) to 4 m beyond the end at 60 m.
    view = view_of([straight])

    assert view.forward == pytest.approx((-9.176, 64.0))
    assert view.left == pytest.approx((-36.588, 36.588))
    assert view.contains(straight[:, :2])
    medium = view_of([straight / 2.0])
    assert medium.forward == pytest.approx((-30.0, 34.0)), "moved, not grown"


def test_poses_out_of_reach_do_not_widen_the_view_and_the_legend_says_so(ax, make_scene, left_turn):
    far = left_turn.copy()
    far[-1, 0] = MAX_REACH_M * 1000

    draw_scene(ax, make_scene(), {"human": left_turn, "planner": far})

    assert view_of([far]).side_m == 64.0
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["human", "planner (leaves the view)"]


def test_an_invalid_trajectory_is_named_and_not_drawn(ax, make_scene, left_turn):
    draw_scene(ax, make_scene(), {"human": left_turn, "planner": np.full((8, 3), np.nan)})

    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["human", "planner (invalid, not drawn)"]
    assert not [a for a in ax.get_children() if a.get_gid() == "trajectory:planner"]
    assert "planner invalid" in ax.get_title()


def test_the_title_gives_token_speed_command_and_distance_at_the_end(make_scene):
    scene = make_scene(10, speed_mps=5.0)

    title = scene_title(scene, {"human": scene.future, "planner": np.add(scene.future, [0.0, 1.25, 0.0])})

    assert title == "000000000000000a   5.0 m/s   straight\nFDE  planner 1.25 m"


def test_dollar_signs_in_names_are_drawn_as_they_are(make_scene, left_turn):
    figure = scene_figure(make_scene(token="$\\bad$"), {"$\\agent$": left_turn})

    assert figure_pixels(figure).shape == (540, 500, 3)


def test_the_scale_bar_is_ten_metres_long(ax, make_scene):
    draw_scene(ax, make_scene(), {})

    bar = artist(ax, "scale")
    assert np.ptp(bar.get_xdata()) == 10.0 and np.ptp(bar.get_ydata()) == 0.0


def test_a_grid_shows_each_scene_with_its_own_prediction(make_scene):
    scenes = [make_scene(i, speed_mps=float(i + 1)) for i in range(4)]
    predictions = np.stack([np.add(scene.future, [0.0, i, 0.0]) for i, scene in enumerate(scenes)])

    figure = trajectory_grid(scenes, {"planner": predictions}, columns=3)

    assert len(figure.axes) == 4
    for i, ax in enumerate(figure.axes):
        assert artist(ax, "trajectory:planner").get_xdata()[-1] == i
        assert artist(ax, "trajectory:human").get_ydata()[-1] == 4.0 * (i + 1)
        assert scenes[i].token in ax.get_title()


def test_a_grid_draws_scenes_whose_future_is_unknown(make_scene):
    figure = trajectory_grid([make_scene(future=None)], {"planner": np.zeros((1, 8, 3))})

    assert not [a for a in figure.axes[0].get_children() if a.get_gid() == "trajectory:human"]


@pytest.mark.parametrize(("count", "message"), [(0, "no scenes"), (2, "1 predictions of 'planner' for 2 scenes")])
def test_a_grid_needs_one_prediction_for_each_scene(make_scene, count, message):
    with pytest.raises(ValueError, match=message):
        trajectory_grid([make_scene(i) for i in range(count)], {"planner": np.zeros((1, 8, 3))})


def test_pictures_drawn_by_threads_equal_those_drawn_one_by_one(make_scene, left_turn):
    scenes = [make_scene(i, speed_mps=float(i)) for i in range(4)]

    def draw(scene):
        return figure_png(scene_figure(scene, {"human": scene.future, "planner": left_turn}, dpi=50))

    one_by_one = [draw(scene) for scene in scenes]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, scenes))

    assert together == one_by_one
    assert len(set(one_by_one)) == 4
    assert Image.open(io.BytesIO(one_by_one[0])).size == (250, 270)
