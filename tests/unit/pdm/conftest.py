"""A scene to score in that is small enough to work out by hand, and where the reference scenes are."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recogdrive.data.types import AgentClass
from recogdrive.pdm.scene import PdmScene, PolygonLayer

REPOSITORY_SCENES = Path(__file__).resolve().parents[2] / "golden" / "pdm" / "data"


@pytest.fixture(scope="session")
def golden_pdm(golden_dir, request) -> Path:
    """All reference scenes: of `RECOGDRIVE_GOLDEN` where it has any, else of ../shared/golden."""
    own = golden_dir / "pdm"
    return own if own.exists() else request.getfixturevalue("shared_dir") / "golden" / "pdm"


@pytest.fixture(scope="session")
def reference_folder(request) -> Path:
    """The reference scenes kept with the tests; without them the reference folder."""
    if (REPOSITORY_SCENES / "index.json").is_file():
        return REPOSITORY_SCENES
    return request.getfixturevalue("golden_pdm")


@pytest.fixture
def road_scene() -> PdmScene:
    """A lane on its roadblock along x, beside it a car park with a hole; a car, and a cone seen from 1 s on."""
    times = np.arange(51) * 0.1
    poses = np.zeros((51, 2, 3), dtype=np.float32)
    poses[:, 0, 0] = 20.0 + 6.0 * times
    poses[10:, 1] = [30.0, -3.0, 0.5]
    valid = np.ones((51, 2), dtype=bool)
    valid[:10, 1] = False
    road = [[-50, -2], [150, -2], [150, 2], [-50, 2]]
    car_park = [[0, 2], [40, 2], [40, 30], [0, 30]]
    hole = [[10, 10], [10, 20], [20, 15]]
    return PdmScene(
        token="road",
        log_name="log",
        map_name="nowhere",
        timestamp_us=1_000_000,
        origin=np.array([3e5, 4.7e6, 0.0]),
        ego_state=np.array([0, 0, 0, 10.0, 0, 0.5, 0, 0, 0, 0, 0]),
        agent_poses=poses,
        agent_valid=valid,
        agent_sizes=np.array([[4.5, 1.9], [0.4, 0.3]], dtype=np.float32),
        agent_speeds=np.array([6.0, 0.0]),
        agent_types=np.array([AgentClass.VEHICLE, AgentClass.TRAFFIC_CONE], dtype=np.int8),
        vertices=np.array([*road, *road, *car_park, *hole], dtype=np.float32),
        ring_offsets=np.array([0, 4, 8, 12, 15], dtype=np.int32),
        polygon_offsets=np.array([0, 1, 2, 4], dtype=np.int32),
        polygon_layers=np.array([PolygonLayer.LANE, PolygonLayer.ROADBLOCK, PolygonLayer.CARPARK_AREA], dtype=np.int8),
        polygon_on_route=np.array([True, False, False]),
        centerline=np.array([[-50, 0], [50, 0], [50, 0], [150, 0]], dtype=np.float32),
        normaliser_poses=np.stack([10 * times, 0 * times, 0 * times], axis=1).astype(np.float32),
        normaliser_name="expert",
        human_poses=np.full((8, 3), np.nan, dtype=np.float32),
    )


@pytest.fixture
def assert_same() -> Callable[[PdmScene, PdmScene], None]:
    """Compares two scenes field by field: values bit for bit, dtypes and shapes."""

    def compare(first: PdmScene, second: PdmScene) -> None:
        for field in dataclasses.fields(first):
            one, other = getattr(first, field.name), getattr(second, field.name)
            assert type(one) is type(other), field.name
            if dataclasses.is_dataclass(one):
                compare(one, other)
            elif isinstance(one, np.ndarray):
                assert (one.dtype, one.shape) == (other.dtype, other.shape), field.name
                assert one.tobytes() == other.tobytes(), field.name
            else:
                assert one == other, field.name

    return compare
