"""Scenes of real driving made by the command line: alone, killed and continued, on Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recogdrive.pdm.cache import PdmCache

pytestmark = pytest.mark.heavy

SHARDS = ["SCENES_PER_SHARD=12"]
IN_PROCESSES = [*SHARDS, "CacheMetrics.executor=@ProcessPool()", "WORKERS=1"]


@pytest.fixture(scope="module")
def start(request):
    """Function: experiment, folder, bindings, flags -> running process."""
    root = request.getfixturevalue("navsim_mini")

    def run(experiment, folder, bindings=(), flags=()):
        command = [sys.executable, "-m", "recogdrive.main", f"--experiment={experiment}", f"--workdir={folder}", *flags]
        return subprocess.Popen(
            [*command, *(f"--gin_bindings={binding}" for binding in bindings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OPENSCENE_DATA_ROOT": str(root), "NUPLAN_MAPS_ROOT": str(root / "maps")},
            cwd=folder.parent,
            start_new_session=True,
        )

    return run


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """Folder and log of a run that was not disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    process = start("mini_cache_metrics", folder, SHARDS)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    return folder, log


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "scenes").iterdir()}


def test_a_run_says_what_it_made_and_where(whole):
    folder, log = whole
    cache = PdmCache(folder / "scenes")
    cache.verify()
    assert len(cache) == 35 and not cache.failed
    assert "navsim_mini: 35 scenes in the split (expected number unknown), 35 stored, 0 failed" in log
    summary = json.loads((folder / "cache_metrics.json").read_text())
    # A third of the official 291 kB, shared polygons included.
    assert summary["bytes_per_scene"] < 97_000
    assert all(scene.normaliser_name == "pdm_closed" and scene.extended is not None for scene in cache)


def test_a_killed_run_is_continued_in_other_processes_to_the_same_bytes(whole, start):
    folder = whole[0].with_name("killed")
    process = start("mini_cache_metrics", folder, IN_PROCESSES)
    shard, until = folder / "scenes" / "scenes-00000.arrow", time.monotonic() + 200
    while not shard.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert shard.exists() and not (folder / "scenes" / "manifest.json").exists()
    written = shard.stat().st_mtime_ns
    process = start("mini_cache_metrics", folder, IN_PROCESSES)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    assert shard.stat().st_mtime_ns == written and "finished before" in log
    assert contents(folder) == contents(whole[0])


def test_ray_makes_the_same_bytes(whole, start):
    folder = whole[0].with_name("ray")
    process = start("mini_cache_metrics", folder, [*SHARDS, "WORKERS=1"], ["--gin_file=gin/option/ray.gin"])
    _, log = process.communicate(timeout=400)
    assert process.returncode == 0, log
    assert contents(folder) == contents(whole[0])


def test_an_evaluation_without_container_or_weights_says_what_to_run_first(navsim_mini, tmp_path, forked_command):
    flags = ["--experiment=mini_eval", f"--workdir={tmp_path / 'run'}"]
    root = {"OPENSCENE_DATA_ROOT": str(navsim_mini), "NUPLAN_MAPS_ROOT": str(navsim_mini / "maps")}
    result = forked_command(*flags, cwd=tmp_path, environment=root)
    assert result.returncode == 2
    assert "PARENT='runs/mini_il' does not exist. Run --experiment=mini_il first" in result.stderr
    (tmp_path / "parent").mkdir()
    bindings = [f"PARENT='{tmp_path / 'parent'}'", "PDM_CACHE='nowhere'"]
    result = forked_command(*flags, cwd=tmp_path, bindings=bindings, environment=root)
    assert result.returncode != 0
    assert "There is no container at nowhere: write one with an experiment such as mini_cache_metrics" in result.stderr
    assert Path(tmp_path / "run" / "error.txt").exists()
