"""Vehicles that follow their routes: the intelligent driver model (IDM) along each route's arc length."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from recogdrive.data.synthetic.paths import GRID_M, PathTables

STEP_S = 0.1
HARDEST_BRAKING_MPS2 = -6.0
ANTICIPATION_S = 0.5
"""Drivers aim at the comfortable speed of the place they reach so much later."""
LAG_S = 0.3
"""Time constant with which acceleration follows the driver's wish."""
COMMITTED_MPS2 = 4.5
"""Who would have to brake harder than this for a stop line drives on."""


@dataclass(frozen=True)
class Drivers:
    """How N drivers drive; all fields (N,).

    Attributes:
      speed_factor: Of the comfortable speed of the road; 0 for a vehicle that stays where it is.
      acceleration_mps2: Highest wanted acceleration.
      braking_mps2: Comfortable deceleration.
      headway_s: Wanted time gap.
      min_gap_m: Bumper to bumper when standing.
    """

    speed_factor: Float[np.ndarray, "N"]
    acceleration_mps2: Float[np.ndarray, "N"]
    braking_mps2: Float[np.ndarray, "N"]
    headway_s: Float[np.ndarray, "N"]
    min_gap_m: Float[np.ndarray, "N"]

    @cached_property
    def usual_mps2(self) -> Float[np.ndarray, "N"]:
        """Geometric mean of acceleration and deceleration."""
        return np.sqrt(self.acceleration_mps2 * self.braking_mps2)


@dataclass(frozen=True)
class Fleet:
    """N vehicles at the start of a simulation.

    Attributes:
      path: (N,) row of each vehicle's route in the tables.
      s_m: (N,) arc length of the reference point.
      speed_mps: (N,) speed.
      front_m: (N,) from the reference point to the front bumper.
      rear_m: (N,) from the reference point to the rear bumper.
      drivers: How they drive.
    """

    path: Int[np.ndarray, "N"]
    s_m: Float[np.ndarray, "N"]
    speed_mps: Float[np.ndarray, "N"]
    front_m: Float[np.ndarray, "N"]
    rear_m: Float[np.ndarray, "N"]
    drivers: Drivers


@dataclass(frozen=True)
class StopSchedule:
    """Where and when N vehicles must stop.

    Attributes:
      s_m: (N, K) arc length of each vehicle's stop lines; inf where it has fewer than K.
      active: (T, N, K) whether each is closed during step t.
    """

    s_m: Float[np.ndarray, "N K"]
    active: Bool[np.ndarray, "T N K"]


@dataclass(frozen=True)
class Motion:
    """What came out: arc length, speed and acceleration (over the step that ends there) at T + 1 times, (T + 1, N)."""

    s_m: Float[np.ndarray, "T1 N"]
    speed_mps: Float[np.ndarray, "T1 N"]
    acceleration_mps2: Float[np.ndarray, "T1 N"]


def idm_acceleration(
    speed_mps: Float[np.ndarray, "*n"],
    wanted_mps: Float[np.ndarray, "*n"],
    gap_m: Float[np.ndarray, "*n"],
    leader_mps: Float[np.ndarray, "*n"],
    drivers: Drivers,
) -> Float[np.ndarray, "*n"]:
    """Acceleration in m/s^2 behind a leader at the given bumper-to-bumper gap (inf: none).

    Source: Treiber, Hennecke, Helbing 2000, equations 2 and 3, exponent 4; gaps below 0.5 m count as 0.5 m.
    """
    a = drivers.acceleration_mps2
    dynamic = speed_mps * (drivers.headway_s + (speed_mps - leader_mps) / (2 * drivers.usual_mps2))
    wanted_gap = drivers.min_gap_m + np.maximum(dynamic, 0.0)
    free = np.square(np.square(speed_mps / wanted_mps))
    return a * (1 - free - np.square(wanted_gap / np.maximum(gap_m, 0.5)))


class _Leaders:
    """Finds who drives in front of whom."""

    def __init__(self, tables: PathTables, fleet: Fleet, merge_zone_m: float):
        paths, inverse = np.unique(fleet.path, return_inverse=True)
        zones = np.array([[tables.shared(p, q, merge_zone_m) for q in paths] for p in paths])
        offset, low, high = np.moveaxis(zones[inverse][:, inverse], -1, 0)
        self._rows = np.arange(len(inverse))
        self._low, self._high = low.copy(), high
        self._low[self._rows, self._rows] = np.inf
        # Of two vehicles at the same place the one listed first leads, so that never both wait for the other.
        self._offset = offset + 1e-6 * (self._rows[:, None] - self._rows[None, :])
        self._bumpers = fleet.rear_m[None, :] + fleet.front_m[:, None]

    def gaps(
        self, s_m: Float[np.ndarray, "N"], speed_mps: Float[np.ndarray, "N"]
    ) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
        """Bumper-to-bumper gap to the leader (inf: none) and the leader's speed."""
        ahead = s_m - s_m[:, None] + self._offset
        np.copyto(ahead, np.inf, where=(ahead <= 0) | (s_m <= self._low) | (s_m >= self._high))
        leader = ahead.argmin(axis=1)
        return ahead[self._rows, leader] - self._bumpers[self._rows, leader], speed_mps[leader]


def _closed_at(fleet: Fleet, stops: StopSchedule) -> Float[np.ndarray, "T N K"]:
    """Arc length of the reference point at which the front bumper is at each closed stop line; -inf at open ones."""
    return np.where(stops.active, stops.s_m - fleet.front_m[:, None], -np.inf)


def settle(tables: PathTables, fleet: Fleet, stops: StopSchedule, merge_zone_m: float) -> Float[np.ndarray, "N"]:
    """Initial speeds lowered to what the road, leaders and closed stop lines allow without hard braking."""
    leaders, drivers = _Leaders(tables, fleet, merge_zone_m), fleet.drivers
    speed = np.minimum(fleet.speed_mps, tables.at(tables.speed_mps, fleet.path, fleet.s_m))
    distance = _closed_at(fleet, stops)[0] - fleet.s_m[:, None]
    stop = np.where(distance > 0, distance, np.inf).min(axis=1)
    speed = np.minimum(speed, np.sqrt(2 * 0.7 * drivers.braking_mps2 * np.maximum(stop - drivers.min_gap_m, 0.0)))
    for _ in range(4):  # queues of up to five vehicles settle from the front
        gap, leader_mps = leaders.gaps(fleet.s_m, speed)
        room = np.maximum(gap - drivers.min_gap_m, 0.0)
        speed = np.minimum(speed, np.sqrt(leader_mps**2 + 1.4 * drivers.braking_mps2 * room))
    return speed


def simulate(tables: PathTables, fleet: Fleet, stops: StopSchedule, merge_zone_m: float) -> Motion:
    """Drives the fleet for as many steps of `STEP_S` as the schedule has.

    A vehicle takes the smallest of three accelerations: IDM behind its leader, IDM before a closed stop line, and the
    one that leads to the comfortable speed of the road just ahead. It never reverses.
    """
    drivers, path = fleet.drivers, fleet.path
    leaders, closed_at = _Leaders(tables, fleet, merge_zone_m), _closed_at(fleet, stops)
    steps = len(closed_at)
    s, v, a = (np.zeros((steps + 1, len(path))) for _ in range(3))
    s[0], v[0] = fleet.s_m, fleet.speed_mps
    some_closed = stops.active.any()
    comfortable, width = tables.speed_mps.ravel(), tables.speed_mps.shape[1]
    row, last = path * width, width - 1
    preview = np.array([[0.0], [ANTICIPATION_S]])
    stop = np.full(len(path), np.inf)
    for t in range(steps):
        place, speed = s[t], v[t]
        gap, leader_mps = leaders.gaps(place, speed)
        if some_closed:
            distance = closed_at[t] - place[:, None]
            # A stop line too near to stop at has been passed in the driver's mind.
            passed = distance <= (speed * speed / (2 * COMMITTED_MPS2))[:, None]
            np.copyto(distance, np.inf, where=passed)
            stop = distance.min(axis=1)
        cell = np.minimum((place + preview * speed) / GRID_M, last).astype(np.intp)
        here, there = comfortable[row + cell]
        wanted = np.maximum(here * drivers.speed_factor, np.maximum(0.8 * speed, 0.1))
        follow = idm_acceleration(speed, wanted, np.minimum(stop, gap), leader_mps * (gap <= stop), drivers)
        road = (there * drivers.speed_factor - speed) / ANTICIPATION_S
        wish = np.maximum(np.minimum(follow, road), HARDEST_BRAKING_MPS2)
        reached = np.maximum(speed + STEP_S * (a[t] + (wish - a[t]) * (STEP_S / LAG_S)), 0.0)
        v[t + 1] = reached
        a[t + 1] = (reached - speed) / STEP_S
        s[t + 1] = place + STEP_S * (speed + reached) / 2
    return Motion(s, v, a)
