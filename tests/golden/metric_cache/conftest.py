"""Reference scenes of NAVSIM logs, and the logs and maps that they are of."""

import json
import os
from pathlib import Path

import pytest

from recogdrive.data.navsim import NavsimScenes
from recogdrive.data.scene_filter import SceneFilter


@pytest.fixture(scope="session")
def reference_split(request, golden_metric_cache) -> NavsimScenes:
    """All scenes of the split that has the logs of the reference scenes.

    It is in the first of these data roots that has them: `data/navsim_mini` beside the golden folder,
    OPENSCENE_DATA_ROOT, ../shared/data/navsim_mini.
    """
    index = json.loads((golden_metric_cache / "index.json").read_text())
    wanted = {case["log"] for case in index.values()}
    beside = golden_metric_cache.parents[1] / "data" / "navsim_mini"
    roots = [beside, Path(os.environ.get("OPENSCENE_DATA_ROOT", "nowhere"))]
    for root in (*roots, request.getfixturevalue("navsim_mini")):
        for split in sorted((root / "navsim_logs").glob("*")):
            if wanted <= {path.stem for path in split.glob("*.pkl")}:
                return NavsimScenes(str(root), split.name, SceneFilter(frame_interval=1), str(root / "maps"))
    raise AssertionError(f"no data root has the logs {sorted(wanted)}")
