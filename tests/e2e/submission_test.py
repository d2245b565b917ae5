"""A submission as commands: a baseline's plans are written, read back and scored as what they are."""

import json
import os
import subprocess
import sys

import pytest

from recogdrive.evaluation.submission import read_submission

pytestmark = pytest.mark.heavy
TEAM = ["TEAM_NAME='T'", "AUTHORS='A, B'", "EMAIL='a@b.org'", "INSTITUTION='I'", "COUNTRY='C'"]
BASELINE = ["--gin_file=gin/stage/agent_submission.gin", "--gin_file=gin/data/navsim_mini.gin"]


def recogdrive(*flags, root, cwd, bindings=()):
    command = [sys.executable, "-m", "recogdrive.main", *flags, *(f"--gin_bindings={b}" for b in bindings)]
    environment = os.environ | {"OPENSCENE_DATA_ROOT": str(root)}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, env=environment)


@pytest.fixture(scope="module")
def submitted(navsim_mini, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "submission"
    bindings = [*TEAM, "WriteAgentSubmission.agent = @ConstantVelocity()"]
    result = recogdrive(*BASELINE, f"--workdir={folder}", root=navsim_mini, cwd=folder.parent, bindings=bindings)
    assert result.returncode == 0, result.stderr
    assert f"submission   {folder / 'submission.pkl'}" in result.stdout
    return folder


def test_the_run_folder_holds_the_file_and_what_is_to_be_known_of_it(submitted):
    submission = read_submission(submitted / "submission.pkl")
    summary = json.loads((submitted / "submission.json").read_text())
    assert (summary["tokens"], summary["seeds"]) == (len(submission.predictions[0]), submission.seeds) == (35, 1)
    assert submission.team.authors == "A, B" and summary["bytes"] == (submitted / "submission.pkl").stat().st_size


def test_a_baseline_read_from_its_submission_is_that_baseline(submitted, navsim_mini, tmp_path, forked_command):
    cache = forked_command(
        *("--experiment=mini_cache_metrics", f"--workdir={tmp_path / 'cache'}"),
        cwd=tmp_path,
        environment={"OPENSCENE_DATA_ROOT": str(navsim_mini)},
    )
    assert cache.returncode == 0, cache.stderr
    bindings = [f"SUBMISSION='{submitted / 'submission.pkl'}'", f"PDM_CACHE='{tmp_path / 'cache'}'"]
    flags = ["--experiment=mini_score_submission", f"--workdir={tmp_path / 'score'}"]
    result = recogdrive(*flags, root=navsim_mini, cwd=tmp_path, bindings=bindings)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "score" / "summary.json").read_text())
    assert list(summary) == ["submission", "constant_velocity", "stopped", "human"]
    assert summary["submission"] == summary["constant_velocity"]
    assert summary["submission"]["other_log/scenes"] == 18 and summary["submission"]["fde"] > 1.0
    assert 0.5 < summary["submission"]["pdms"] < summary["human"]["pdms"] and summary["submission"]["pdms_partial"] == 0
    assert (tmp_path / "score" / "report" / "index.html").is_file()


def test_scoring_without_a_submission_says_which_experiment_writes_one(navsim_mini, tmp_path, forked_command):
    flags = ["--experiment=mini_score_submission", f"--workdir={tmp_path / 'score'}"]
    root = {"OPENSCENE_DATA_ROOT": str(navsim_mini)}
    result = forked_command(*flags, environment=root, cwd=tmp_path, bindings=["OpenLoop.pdm_scenes = None"])
    assert result.returncode == 1
    assert "no submission at runs/mini_submission/submission.pkl: write one with an experiment" in result.stderr


def test_a_submission_of_a_planner_says_what_is_not_filled_in(navsim_mini, tmp_path, forked_command):
    flags = ["--experiment=mini_submission", f"--workdir={tmp_path / 'run'}"]
    root = {"OPENSCENE_DATA_ROOT": str(navsim_mini)}
    result = forked_command(*flags, environment=root, cwd=tmp_path, bindings=[f"PARENT='{tmp_path}'", "TEAM_NAME='T'"])
    assert result.returncode == 1
    assert "has no authors, email, institution, country: set TEAM_NAME, AUTHORS" in result.stderr
