"""Scenes, drives and layouts that several tests of the town look at; built once."""

import numpy as np
import pytest

from recogdrive.data.synthetic.drives import LAYOUTS, draw_drive
from recogdrive.data.synthetic.town import SyntheticTown


@pytest.fixture(scope="session")
def scenes():
    """200 scenes, 50 of each kind of road."""
    town = SyntheticTown(num_scenes=200, seed=11)
    return [town[i] for i in range(len(town))]


@pytest.fixture(scope="session")
def layouts():
    """Twelve layouts of each kind."""
    return [make(np.random.default_rng(seed)) for make in LAYOUTS.values() for seed in range(12)]


@pytest.fixture(scope="session")
def drives():
    """Fifteen drives on each kind of road."""
    return [draw_drive(kind, np.random.default_rng([5, k])) for kind in LAYOUTS for k in range(15)]
