"""Plans in words against upstream's rules."""

import json

import numpy as np

from recogdrive.data.vlm.scene_facts import plan_of


def test_every_plan_has_upstreams_speed_and_path(golden_dir):
    cases = json.loads((golden_dir / "vlm" / "data_rules.json").read_text())["plan"]
    assert cases
    for case in cases:
        assert plan_of(np.array(case["future"])) == (case["speed"], case["path"]), case
