"""Traffic lights of a layout over the seconds around now."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.random import Generator

from recogdrive.data.synthetic.network import Layout, Route

CLEARANCE_S = 2.5
"""All lights stay red so long between two phases."""


@dataclass(frozen=True)
class Lights:
    """State of every governed connector.

    Attributes:
      connectors: Their ids.
      red: (T, C) whether each is red at time t; yellow does not exist.
    """

    connectors: tuple[str, ...]
    red: Bool[np.ndarray, "T C"]

    def is_red(self, connector: str) -> Bool[np.ndarray, "T"]:
        """Whether a connector is red, over time; never for one without a light."""
        if connector not in self.connectors:
            return np.zeros(len(self.red), dtype=bool)
        return self.red[:, self.connectors.index(connector)]


SIGNALS = ("green", "red", "turned_green", "turned_red", "none")
"""What the light on the ego's route does. Changes lie in the past: what comes can be known from what is seen."""


def draw_lights(layout: Layout, route: Route, times_s: Float[np.ndarray, "T"], rng: Generator) -> tuple[Lights, str]:
    """Lights of a layout such that the one on `route` does a drawn entry of `SIGNALS`.

    `green` and `red` hold throughout; `turned_green` was red until up to 2.2 s ago, with all others red as well;
    `turned_red` was green until then, and another phase follows after `CLEARANCE_S`.
    """
    connectors = tuple(sorted(frozenset().union(*layout.phases), key=int)) if layout.phases else ()
    own = next((k for k, phase in enumerate(layout.phases) if phase & set(route.elements)), None)
    if own is None:
        return Lights(connectors, np.ones((len(times_s), len(connectors)), dtype=bool)), "none"
    signal = str(rng.choice(SIGNALS[:4], p=[0.42, 0.22, 0.24, 0.12]))
    others = [k for k in range(len(layout.phases)) if k != own]
    other = int(rng.choice(others))
    change_s = float(rng.uniform(-2.2, -0.3))
    green = np.full(len(times_s), -1)
    if signal == "green":
        green[:] = own
    elif signal == "red":
        green[:] = other
    elif signal == "turned_green":
        green[times_s >= change_s] = own
    else:
        green[times_s < change_s] = own
        green[times_s >= change_s + CLEARANCE_S] = other
    member = np.array([[c in phase for c in connectors] for phase in layout.phases] + [[False] * len(connectors)])
    return Lights(connectors, ~member[green]), signal
