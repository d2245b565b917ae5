"""Traffic-light compliance on hand-placed connectors, and shapely on drawn ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapely

from recogdrive.geometry import box_corners
from recogdrive.pdm.contact import Boxes
from recogdrive.pdm.lights import ALWAYS, Light, LightSizes, pad_lights
from recogdrive.pdm.metrics.traffic_light import Lights, traffic_light
from recogdrive.pdm.state import HALF_LENGTH_M, HALF_WIDTH_M

SIZES = LightSizes(lights=4, vertices=8)
_traffic_light = jax.jit(traffic_light)


def rectangle(x0, y0, x1, y1):
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def run(x, y, heading, lights, dtype="float64"):
    """Score, first step and light of drives (G, 41) of the box's centre."""
    x, y, heading = (np.broadcast_to(v, np.broadcast_shapes(np.shape(x), (1, 41))) for v in (x, y, heading))
    with jax.enable_x64(dtype == "float64"):
        footprint = Boxes(*(jnp.asarray(v[None], dtype) for v in (x, y, np.cos(heading), np.sin(heading))))
        padded = Lights(*map(jnp.asarray, pad_lights([lights], SIZES, dtype)))
        return tuple(np.asarray(v)[0] for v in _traffic_light(footprint, padded))


def single(*args, **kwargs):
    return tuple(v.item() for v in run(*args, **kwargs))


AHEAD = rectangle(20, -2, 40, 2)


def test_without_lights_nothing_is_lost():
    assert single(0.0, 0.0, 0.0, []) == (1.0, -1, -1)


def test_the_step_at_which_the_front_reaches_a_red_connector():
    # The front is 2.588 m ahead of the centre: at 1 m a step it passes x = 20 with the step to 18.
    assert single(np.arange(41.0), 0.0, 0.0, [Light(AHEAD, ALWAYS)]) == (0.0, 18, 0)


@pytest.mark.parametrize("frames, step", [(1 << 3, -1), (1 << 4, 20), (1 << 8, 40), (1 << 3 | 1 << 5, 25), (0, -1)])
def test_a_light_holds_for_the_five_steps_of_its_frame(frames, step):
    # On the connector from step 18 to 40. Frame 3 holds for steps 15 to 19.
    x = np.where(np.arange(41) < 20, 0.0, 30.0)
    assert single(x, 0.0, 0.0, [Light(AHEAD, frames)])[1] == step


def test_having_been_there_before_is_no_excuse():
    assert single(30.0, 0.0, 0.0, [Light(AHEAD, ALWAYS)]) == (0.0, 0, 0)


def test_a_box_wholly_inside_of_an_outline_is_on_it():
    assert single(0.0, 0.0, 0.7, [Light(rectangle(-50, -50, 50, 50), ALWAYS)]) == (0.0, 0, 0)


def test_a_box_in_the_bend_of_an_outline_is_not_on_it():
    bend = np.array([[-10, -10], [10, -10], [10, -8], [-8, -8], [-8, 10], [-10, 10]], float)
    assert single(1.0, 1.0, 0.0, [Light(bend, ALWAYS)]) == (1.0, -1, -1)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_touching_counts(dtype):
    # The outline begins at the box's front to the last bit, or one bit beyond it.
    front = float(np.asarray(HALF_LENGTH_M, dtype))
    assert single(0.0, 0.0, 0.0, [Light(rectangle(front, -2, 40, 2), ALWAYS)], dtype)[0] == 0.0
    beyond = float(np.nextafter(np.asarray(front, dtype), np.asarray(9, dtype)))
    assert single(0.0, 0.0, 0.0, [Light(rectangle(beyond, -2, 40, 2), ALWAYS)], dtype)[0] == 1.0


def test_the_first_of_several_lights_is_named():
    lights = [Light(rectangle(80, 0, 90, 9), ALWAYS), Light(AHEAD, ALWAYS), Light(rectangle(0, -2, 40, 2), 1 << 7)]
    assert single(np.arange(41.0), 0.0, 0.0, lights) == (0.0, 18, 1)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_drawn_boxes_and_outlines_agree_with_shapely(dtype):
    rng = np.random.default_rng(1)
    angles = np.sort(rng.uniform(0, 2 * np.pi, (4, 7)), axis=1)
    radii = rng.uniform(2, 12, (4, 7, 1))
    centers = rng.normal(0, 8, (4, 1, 2))
    outlines = centers + radii * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    lights = [Light(outline, 1 << k) for k, outline in enumerate(outlines)]
    poses = np.concatenate([rng.normal(0, 10, (60, 41, 2)), rng.uniform(-4, 4, (60, 41, 1))], axis=-1)
    points, steps, which = run(*np.moveaxis(poses, -1, 0), lights, dtype)
    size = np.array([2 * HALF_LENGTH_M, 2 * HALF_WIDTH_M])
    for g, drive in enumerate(poses):
        boxes = shapely.polygons(box_corners(drive, np.full(41, size[0]), np.full(41, size[1])))
        on_red = np.array(
            [shapely.intersects(boxes[5 * k : 5 * k + 5], shapely.Polygon(outlines[k])) for k in range(4)]
        )
        first = int(on_red.ravel().argmax()) if on_red.any() else -1
        assert (points[g], steps[g]) == (0.0 if on_red.any() else 1.0, first)
        assert which[g] == (first // 5 if on_red.any() else -1)


def test_lights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"cannot hold these lights.*lights=5"):
        pad_lights([[Light(AHEAD, 1)] * 5], SIZES, np.float64)
