import numpy as np
import pytest

from recogdrive.data.synthetic.drives import TIMES_S
from recogdrive.data.synthetic.intersection import intersection
from recogdrive.data.synthetic.lights import CLEARANCE_S, SIGNALS, Lights, draw_lights
from recogdrive.data.synthetic.roads import straight_road


@pytest.fixture(scope="module")
def drawn():
    """(layout, route, connector governed on it, lights, signal) of 60 intersections."""
    cases = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        layout = intersection(rng)
        route = layout.routes[seed % len(layout.routes)]
        lights, signal = draw_lights(layout, route, TIMES_S, rng)
        (connector,) = set(route.elements) & set(lights.connectors)
        cases.append((layout, route, connector, lights, signal))
    return cases


def test_every_kind_of_signal_occurs(drawn):
    assert {signal for *_, signal in drawn} == set(SIGNALS) - {"none"}


def test_the_light_of_the_ego_does_what_the_signal_says(drawn):
    for _, _, connector, lights, signal in drawn:
        red = lights.is_red(connector)
        changes = np.flatnonzero(np.diff(red.astype(int)))
        if signal in ("green", "red"):
            assert (red == (signal == "red")).all()
        else:
            assert len(changes) == 1
            assert red[-1] == (signal == "turned_red")


def test_lights_change_before_now(drawn):
    for _, _, connector, lights, _ in drawn:
        assert np.ptp(lights.is_red(connector)[TIMES_S > -0.3].astype(int)) == 0


def test_at_most_one_phase_is_green_at_a_time(drawn):
    for layout, _, _, lights, _ in drawn:
        for red in lights.red:
            green = {c for c, closed in zip(lights.connectors, red, strict=True) if not closed}
            assert not green or green in [set(phase) for phase in layout.phases]


def test_everything_is_red_for_the_clearance_time_between_two_phases(drawn):
    for _, _, connector, lights, signal in drawn:
        if signal == "turned_red":
            own_end = np.flatnonzero(~lights.is_red(connector))[-1]
            others = np.flatnonzero((~lights.red).any(axis=1) & (np.arange(len(TIMES_S)) > own_end))
            assert (others[0] - own_end) * 0.1 >= CLEARANCE_S - 0.11


def test_roads_without_lights_have_none():
    layout = straight_road(np.random.default_rng(0))
    lights, signal = draw_lights(layout, layout.routes[0], TIMES_S, np.random.default_rng(0))
    assert (lights.connectors, signal) == ((), "none")


def test_a_connector_without_a_light_is_never_red():
    assert not Lights(("1",), np.ones((3, 1), dtype=bool)).is_red("2").any()
