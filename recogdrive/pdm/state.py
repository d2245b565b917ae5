"""What the simulator moves and on which clock: columns of a state, steps, the vehicle's measures."""

from enum import IntEnum

from recogdrive.data.types import PACIFICA

STEP_S = 0.1
"""Interval of the simulation."""
NUM_STEPS = 40
NUM_STATES = NUM_STEPS + 1
"""States of a simulated trajectory, 0 ... 4.0 s."""
NUM_OBSERVED = 51
"""Occupancy sets of a scene, 0 ... 5.0 s: time to collision looks up to 0.9 s beyond the simulation."""

CANDIDATE_POSES = 8
CANDIDATE_INTERVAL_S = 0.5
"""A trajectory to score: 8 poses at 0.5 ... 4.0 s."""

WHEEL_BASE_M = PACIFICA.wheel_base_m
HALF_LENGTH_M = PACIFICA.length_m / 2
HALF_WIDTH_M = PACIFICA.width_m / 2
REAR_AXLE_TO_CENTER_M = PACIFICA.rear_axle_to_center_m


class EgoState(IntEnum):
    """Columns of a state: pose, velocity and acceleration of the rear axle, the latter two in the body frame.

    Source: NAVSIM `StateIndex`.
    """

    X = 0
    Y = 1
    HEADING = 2
    VELOCITY_X = 3
    VELOCITY_Y = 4
    ACCELERATION_X = 5
    ACCELERATION_Y = 6
    STEERING_ANGLE = 7
    STEERING_RATE = 8
    YAW_RATE = 9
    YAW_ACCELERATION = 10


STATE_SIZE = len(EgoState)
