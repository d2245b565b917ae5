"""What becomes of a recorded drive when the PDM score drives it: a car steered along it, its wheels straight at first.

The score knows 2 Hz poses, speed and acceleration of a drive but not the angle of its wheels. Along a drive recorded in
a bend its car therefore strays by up to a metre: its footprint, not the recorded one, has to stay on the road.
"""

import math

import numpy as np
from jaxtyping import Float

from recogdrive.data.synthetic.traffic import STEP_S
from recogdrive.data.types import FRAME_INTERVAL_S, PACIFICA

HORIZON_S = 4.0
_STEPS = round(HORIZON_S / STEP_S)
NUM_STEERED = _STEPS + 1
"""Poses from now to the horizon."""
_STEPS_PER_KNOT = round(FRAME_INTERVAL_S / STEP_S)
_LOOKAHEAD = 10
"""Steps that one decision looks ahead."""
_HEADING_COST, _STEERING_RATE_COST = 10.0, 1.0
"""Of errors after the lookahead, beside a cost of 1 for a metre to the side."""
_SPEED_GAIN = 10.0 / 11.0
"""Acceleration a second of lookahead makes of an error of speed, at costs of 10 for it and 1 for acceleration."""
_STEERING_LAG_S, _ACCELERATION_LAG_S = 0.05, 0.2
_BEND_SMOOTHNESS_M2 = 1.0
"""What a change of curvature costs beside an error of heading; NAVSIM's 0.01 over the squared step."""

_WINDOW = np.minimum(np.arange(_STEPS)[:, None] + np.arange(_LOOKAHEAD), _STEPS - 1)
_END = np.minimum(np.arange(_STEPS) + _LOOKAHEAD, _STEPS - 1)
_CHANGES = np.diff(np.eye(_STEPS), axis=0)
_ROUGHNESS = _BEND_SMOOTHNESS_M2 * _CHANGES.T @ _CHANGES


def steered(
    poses: Float[np.ndarray, "41 3"], speed_mps: float, acceleration_mps2: float
) -> tuple[Float[np.ndarray, "41 3"], Float[np.ndarray, "41"]]:
    """Rear-axle poses and speeds of a car that starts on a recorded drive with straight wheels and is steered along it.

    The way is the score's to a few centimetres: decisions look ahead with the recorded speeds, not with those the car
    would reach.

    Args:
      poses: Every 0.1 s from now to 4 s, headings not wrapped; only those every 0.5 s are used, as in the score.
      speed_mps: Now.
      acceleration_mps2: Now, along the car.

    Source: NAVSIM `BatchLQRTracker` and `BatchKinematicBicycleModel`.
    """
    knots = np.arange(0, _STEPS + 1, _STEPS_PER_KNOT)
    path = np.stack([np.interp(np.arange(_STEPS + 1), knots, poses[knots, axis]) for axis in range(3)], axis=-1)
    x, y, heading = path[:-1].T
    cos, sin = np.cos(heading), np.sin(heading)
    step = np.diff(path, axis=0)
    way = step[:, 0] * cos + step[:, 1] * sin
    curvature = np.linalg.solve(np.diag(way**2 + 1e-9) + _ROUGHNESS, way * step[:, 2])

    # What a turn per metre in each step of the lookahead adds to the final errors of heading and of place.
    turn = way[_WINDOW]
    shift = turn * (np.cumsum(turn[:, ::-1], axis=1)[:, ::-1] - turn)
    wanted_turn, wanted_shift = ((effect * curvature[_WINDOW]).sum(1) for effect in (turn, shift))
    bend_turn, bend_shift = (effect.sum(1) / PACIFICA.wheel_base_m for effect in (turn, shift))
    swing = STEP_S / PACIFICA.wheel_base_m * np.arange(_LOOKAHEAD)
    rate_turn, rate_shift = turn @ swing, shift @ swing
    share = STEP_S / (STEP_S + _STEERING_LAG_S) / (rate_shift**2 + _HEADING_COST * rate_turn**2 + _STEERING_RATE_COST)
    # One row of plain numbers a step: arrays of one element would cost ten times as much.
    pull, align = share * rate_shift, share * _HEADING_COST * rate_turn
    wanted = (way[_END] / STEP_S, wanted_turn, wanted_shift)
    effects = (turn.sum(1), bend_turn, bend_shift, pull, align)
    rows = np.stack([x, y, heading, cos, sin, *wanted, *effects], axis=-1).tolist()

    car_x, car_y, car_heading, wheels = *rows[0][:3], 0.0
    speed, acceleration = float(speed_mps), float(acceleration_mps2)
    driven = [(car_x, car_y, car_heading, speed)]
    for row in rows:
        x, y, heading, cos, sin, wanted_speed, wanted_turn, wanted_shift, ahead, bend_turn, bend_shift, pull, align = (
            row
        )
        turned = car_heading - heading
        aside = (car_y - y) * cos - (car_x - x) * sin + ahead * turned + bend_shift * wheels - wanted_shift
        rate = -pull * aside - align * (turned + bend_turn * wheels - wanted_turn)
        way = STEP_S * speed
        car_x += way * math.cos(car_heading)
        car_y += way * math.sin(car_heading)
        car_heading += way * math.tan(wheels) / PACIFICA.wheel_base_m
        wheels += STEP_S * rate
        acceleration += (_SPEED_GAIN * (wanted_speed - speed) - acceleration) * STEP_S / (STEP_S + _ACCELERATION_LAG_S)
        speed += STEP_S * acceleration
        driven.append((car_x, car_y, car_heading, speed))
    states = np.array(driven)
    return states[:, :3], states[:, 3]
