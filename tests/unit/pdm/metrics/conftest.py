"""One ego and a few tracks, placed by hand, for the metrics that look at contacts."""

import jax
import numpy as np
import pytest

from recogdrive.pdm.contact import Agents, Boxes
from recogdrive.pdm.metrics.collision import EgoMotion
from recogdrive.pdm.metrics.drivable_area import Areas
from recogdrive.pdm.state import REAR_AXLE_TO_CENTER_M


@pytest.fixture
def x64():
    """Computes in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def ego_along_x():
    """An ego that looks along x, its rear axle at `rear_x` (a number or 41 of them), y = 0."""

    def build(rear_x=0.0, speed=10.0):
        zeros = np.zeros((1, 1, 41))
        footprint = Boxes(zeros + rear_x + REAR_AXLE_TO_CENTER_M, zeros, zeros + 1, zeros)
        return EgoMotion(rear_x=zeros + rear_x, rear_y=zeros, footprint=footprint, speed=zeros + speed)

    return build


@pytest.fixture
def tracks():
    """Tracks that look along x; each a dict of `x`, `y` (numbers or 51 of them), `size`, `stopped`, `static`."""

    def build(*described):
        def rows(name, default):
            return np.array([[track.get(name, default) for track in described]])

        xy = np.zeros((2, 51, 1, len(described)))
        for a, track in enumerate(described):
            xy[0, :, 0, a], xy[1, :, 0, a] = track["x"], track.get("y", 0.0)
        half_length, half_width = np.moveaxis(rows("size", (4.0, 2.0)), -1, 0) / 2
        static = rows("static", False)
        boxes = Boxes(*xy, np.ones(xy.shape[1:]), np.zeros(xy.shape[1:]))
        return Agents(boxes, half_length, half_width, rows("stopped", False) | static, static)

    return build


@pytest.fixture
def on_lane():
    """Areas of an ego on its lane but, at the steps given, between lanes, with corners off or in an intersection."""

    def build(several_lanes=(), off_road=(), intersection=(), oncoming=()):
        def flags(steps):
            found = np.zeros((1, 1, 41), bool)
            found[..., list(steps)] = True
            return found

        corner_off = np.zeros((1, 1, 41, 4), bool)
        corner_off[..., list(off_road), 2] = True
        return Areas(flags(several_lanes), corner_off, flags(oncoming), flags(intersection), flags(()))

    return build
