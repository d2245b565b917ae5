"""Where the reference scenes are."""

from pathlib import Path

import pytest

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
