"""Records that every reward can score in, and a split of them."""

import dataclasses
import types

import numpy as np
import pytest

from recogdrive.data.types import AgentClass
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.rewards.reward import KNOWN
from recogdrive.pdm.rewards.scene_layout import rows_of
from recogdrive.pdm.scene import ExtendedFacts, PdmScene, PolygonLayer

TIMES_S = 0.5 * np.arange(1, 9)


def _road(token, cars=(), lights=()):
    """A road along x that the ego enters with 10 m/s and the normaliser drives at 12 m/s.

    Cars of 4 m by 2 m stand at (x, y); red lights reach from x0 to x1 across the road.
    """
    rings = np.array([[[-60.0, -5], [200, -5], [200, 5], [-60, 5]]] * 2)
    normaliser = np.stack([1.2 * np.arange(51), np.zeros(51), np.zeros(51)], axis=-1)
    past = np.zeros((4, 11))
    past[:, 0], past[:, 3] = 10.0 * np.array([-1.5, -1.0, -0.5, 0.0]), 10.0
    outlines = [[[x0, -5], [x1, -5], [x1, 5], [x0, 5]] for x0, x1 in lights]
    poses = np.zeros((51, len(cars), 3))
    poses[..., :2] = np.reshape(cars, (-1, 2))
    return PdmScene(
        token=token,
        log_name="log",
        map_name="nowhere",
        timestamp_us=0,
        origin=np.zeros(3),
        ego_state=past[-1],
        agent_poses=poses,
        agent_valid=np.ones((51, len(cars)), bool),
        agent_sizes=np.tile([4.0, 2.0], (len(cars), 1)),
        agent_speeds=np.zeros(len(cars)),
        agent_types=np.full(len(cars), AgentClass.VEHICLE, np.int8),
        vertices=np.concatenate(rings),
        ring_offsets=4 * np.arange(3, dtype=np.int32),
        polygon_offsets=np.arange(3, dtype=np.int32),
        polygon_layers=np.array([PolygonLayer.LANE, PolygonLayer.ROADBLOCK], np.int8),
        polygon_on_route=np.array([True, False]),
        centerline=np.array([[-60.0, 0], [200, 0]]),
        normaliser_poses=normaliser,
        normaliser_name="hand",
        human_poses=_straight(10.0),
        extended=ExtendedFacts(
            agent_sightings=np.tile(np.array([0, 8], np.int8), (len(cars), 1)),
            history_states=past,
            history_times_us=500_000 * np.arange(4),
            light_vertices=np.array(outlines, float).reshape(-1, 2),
            light_offsets=4 * np.arange(len(lights) + 1, dtype=np.int32),
            light_frames=np.full(len(lights), 511, np.int16),
            normaliser_poses_v2=normaliser,
        ),
    )


def _straight(speed_mps):
    return np.stack([speed_mps * TIMES_S, 0 * TIMES_S, 0 * TIMES_S], axis=-1)


class _Split:
    """Positions of records whose tokens are their names; only what `Records` reads of a split."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return types.SimpleNamespace(token=self.tokens[index])


class _Source:
    """Records by the token of a scene."""

    def __init__(self, records):
        self.records = records

    def __call__(self, scene):
        if scene.token not in self.records:
            raise SceneError(f"scene {scene.token} has no record")
        return self.records[scene.token]


@pytest.fixture(scope="session")
def records():
    """Free road, a car in the way at 40 m, a car and a red light."""
    return [_road("free"), _road("car", [(40.0, 0.0)]), _road("light", [(30.0, 20.0)], [(20.0, 30.0)])]


@pytest.fixture(scope="session")
def split_of():
    """Records -> a split of them and their source; a name instead of a record stands for one that is missing."""

    def make(records):
        tokens = tuple(record if isinstance(record, str) else record.token for record in records)
        return _Split(tokens), _Source({record.token: record for record in records if not isinstance(record, str)})

    return make


@pytest.fixture(scope="session")
def straight():
    """Speed in m/s -> 8 poses of driving straight on."""
    return _straight


@pytest.fixture(scope="session")
def plans(records):
    """(3, 3, 8, 3) float32 for the records: 10 m/s, drifting to the left, and one with a NaN."""
    made = np.stack([_straight(10.0), _straight(9.0), _straight(10.0)]).astype(np.float32)
    made[1, :, 1] = 0.2 * TIMES_S**2
    made[2, 4, 1] = np.nan
    return np.tile(made, (len(records), 1, 1, 1))


@pytest.fixture(scope="session")
def batch_of():
    """Records, layout and sizes -> a batch of the records and of one blank row more."""

    def make(records, layout, sizes):
        rows = [rows_of(record, [layout], {layout.prefix: sizes}) for record in records]
        batch = {name: np.stack([row[name] for row in (*rows, layout.blank(sizes))]) for name in rows[0]}
        return batch | {"index": np.arange(len(records) + 1), KNOWN: np.array([True] * len(records) + [False])}

    return make


@pytest.fixture(scope="session")
def damaged(records):
    """A record that does not validate."""
    return dataclasses.replace(records[0], token="damaged", centerline=np.zeros((2, 2)))
