"""Baselines by name on the command line: the ego-status MLP is trained, then stands beside another baseline."""

import csv
import json
import os
import subprocess
import sys

import pytest

from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.pdm.cache import PdmCacheWriter
from recogdrive.pdm.sources import TownPdmScenes, write_scenes

pytestmark = pytest.mark.heavy
BASELINES = {"constant_velocity", "stopped", "human"}


def run(experiment, folder, *bindings):
    flags = [f"--experiment={experiment}", f"--workdir={folder}", *(f"--gin_bindings={b}" for b in bindings)]
    command = [sys.executable, "-m", "recogdrive.main", *flags]
    result = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=240, env=os.environ)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mlp"
    short = ["TRAIN_STEPS=4", "TRAIN_SCENES=8", "VAL_SCENES=4", "BATCH_SIZE=4", "LOG_EVERY=2", "EVAL_EVERY=4"]
    return folder, run("baseline_ego_status_mlp", folder, *short)


def test_the_trained_baseline_leaves_rows_report_and_an_official_checkpoint(trained):
    folder, summary = trained
    assert set(summary) == BASELINES | {"ego_status_mlp"}
    assert (folder / "export" / "ego_status_mlp.ckpt").is_file()
    assert "ego_status_mlp" in (folder / "report" / "index.html").read_text()


def test_a_baseline_runs_by_name_with_the_trained_one_as_a_further_row(trained, tmp_path):
    folder, trained_summary = trained
    weights = folder / "export" / "ego_status_mlp.ckpt"
    summary = run("baseline_constant_velocity", tmp_path / "cv", "VAL_SCENES=4", f"EGO_STATUS_MLP='{weights}'")
    assert list(summary) == ["constant_velocity", "stopped", "human", "ego_status_mlp"]
    for agent, metrics in summary.items():
        assert metrics["scenes"] == 4
        assert metrics["fde"] == pytest.approx(trained_summary[agent]["fde"], rel=1e-5), agent
    rows = list(csv.DictReader((tmp_path / "cv" / "scenes.csv").open()))
    assert sum(row["agent"] == "ego_status_mlp" for row in rows) == 4


def test_scores_in_a_container_equal_those_made_on_the_way_and_a_missing_scene_makes_them_partial(
    trained, tmp_path, forked_command
):
    town = SyntheticTown(num_scenes=4, seed=1000003, name="town_val")
    with PdmCacheWriter(tmp_path / "cache", origin={"source": "town"}) as writer:
        write_scenes(writer, (town[i] for i in range(3)), TownPdmScenes())
    flags = ["--experiment=baseline_constant_velocity", "--gin_file=gin/option/pdm_cache.gin"]
    bindings = ["VAL_SCENES=4", f"PDM_CACHE='{tmp_path / 'cache'}'"]
    result = forked_command(*flags, f"--workdir={tmp_path / 'cv'}", cwd=tmp_path, bindings=bindings)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "cv" / "summary.json").read_text())
    assert {metrics["pdms_partial"] for metrics in summary.values()} == {1}
    for agent in BASELINES:
        *made, _, _ = (trained[0] / "pdms" / "val" / f"{agent}.csv").read_text().splitlines()
        *found, missing, average = (tmp_path / "cv" / "pdms" / "val" / f"{agent}.csv").read_text().splitlines()
        assert found == made
        assert missing == f"{town[3].token},False,,,,,,,"
        assert average.startswith("average,False,")
