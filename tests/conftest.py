"""Shared by every test: where the reference data is, a clean gin around each test, and programs compiled once."""

import os
import shutil
import tempfile
from pathlib import Path

import gin
import hypothesis
import pytest

# Property tests look for new examples on every run, but not where a failure should mean that the change is wrong.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI") == "true":
    hypothesis.settings.load_profile("ci")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """Lets all workers, and the processes that tests start, share what they compile, as a user's runs may.

    The folder is new for every session, unless JAX_COMPILATION_CACHE_DIR names another. Workers inherit it.
    """
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="recogdrive_compiled_")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder


def _present_or_absent(path: Path, what: str) -> Path:
    """Returns `path`; without it the test fails under CI and is skipped, with the reason, elsewhere."""
    if not path.exists():
        reason = f"{what} not found at {path}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The read-only reference folder beside the checkout."""
    return _present_or_absent(SHARED, "reference folder")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Reference outputs: `RECOGDRIVE_GOLDEN`, by default ../shared/golden."""
    return _present_or_absent(Path(os.environ.get("RECOGDRIVE_GOLDEN", SHARED / "golden")), "golden data")


@pytest.fixture(scope="session")
def golden_metric_cache(golden_dir) -> Path:
    """Reference scenes of navsim_mini: of `RECOGDRIVE_GOLDEN` where it has any, else of ../shared/golden."""
    own = golden_dir / "metric_cache"
    return own if own.exists() else _present_or_absent(SHARED / "golden" / "metric_cache", "golden metric cache")


@pytest.fixture(scope="session")
def golden_planner_constants(golden_dir) -> Path:
    """Learning rates, normalisation and schedule of the reference, found likewise."""
    own = golden_dir / "planner" / "constants.json"
    return own if own.exists() else _present_or_absent(SHARED / "golden" / "planner" / own.name, "planner constants")


@pytest.fixture(scope="session")
def navsim_mini() -> Path:
    """Two logs of real driving in NAVSIM's format (an OPENSCENE_DATA_ROOT)."""
    return _present_or_absent(SHARED / "data" / "navsim_mini", "navsim_mini")


@pytest.fixture(autouse=True)
def clean_gin():
    """Every test starts and ends without gin bindings."""
    gin.clear_config()
    yield
    gin.clear_config()
