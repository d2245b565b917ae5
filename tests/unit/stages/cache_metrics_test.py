"""Tests of stages/cache_metrics.py with scenes that cost nothing to make."""

import csv
import dataclasses
import json
import logging as stdlib_logging

import numpy as np
import pytest

from recogdrive.pdm import machine
from recogdrive.pdm.cache import PdmCache
from recogdrive.pdm.machine import MachineError, machine_stamp
from recogdrive.pdm.making import FailedScene, MadeScene
from recogdrive.stages import cache_metrics
from recogdrive.stages.cache_metrics import CacheMetrics
from recogdrive.stages.executors import InProcess


class Maker:
    """Makes copies of one scene; those at the positions in `broken` fail, those in `invalid` do not validate."""

    name = "copies"

    def __init__(self, scene, count=7, broken=(), invalid=(), expected=None, note="a"):
        self.tokens = tuple(f"t{k}" for k in range(count))
        self.expected_scenes = expected
        self.made = []
        self._scene, self._broken, self._invalid, self._note = scene, broken, invalid, note

    def describe(self):
        return {"source": "copies", "note": self._note}

    def make(self, positions):
        for position in positions:
            self.made.append(position)
            if position in self._broken:
                yield FailedScene(self.tokens[position], f"scene {self.tokens[position]}: no route")
                continue
            scene = dataclasses.replace(self._scene, token=self.tokens[position], timestamp_us=position)
            if position in self._invalid:
                scene = dataclasses.replace(scene, centerline=scene.centerline[:1])
            yield MadeScene(scene, None, {"making": 0.5})


class Folder:
    """Stands for a `RunFolder`."""

    def __init__(self, path):
        self.path, self.facts = path, {}

    def update(self, **facts):
        self.facts |= facts


@pytest.fixture
def scene(road_scene):
    return road_scene


def run(maker, path, **options):
    folder = Folder(path)
    figures = CacheMetrics(maker, InProcess(), **{"scenes_per_shard": 3, **options}).run(folder, None)
    return figures, folder


def contents(path):
    return {file.name: file.read_bytes() for file in sorted((path / "scenes").iterdir())}


def test_every_scene_is_in_the_container_in_order(tmp_path, scene, assert_same):
    figures, folder = run(Maker(scene), tmp_path)
    cache = PdmCache(tmp_path / "scenes")
    cache.verify()
    assert cache.tokens == tuple(f"t{k}" for k in range(7))
    assert_same(cache[5], dataclasses.replace(scene, token="t5", timestamp_us=5))
    assert [shard["scenes"] for shard in cache.manifest["shards"]] == [3, 3, 1]
    assert figures == {"in_split": 7, "stored": 7, "failed": 0, "bytes_per_scene": cache.manifest["bytes"] / 7}
    assert folder.facts["data"] == {"scenes": "7 scenes of copies"}


def test_the_container_says_what_it_was_made_from_and_on_what(tmp_path, scene):
    run(Maker(scene), tmp_path)
    manifest = PdmCache(tmp_path / "scenes").manifest
    assert manifest["origin"] == {"source": "copies", "note": "a"}
    assert manifest["machines"] == [machine_stamp()]
    assert {"numpy", "blas", "cpu", "jax"} <= set(machine_stamp())
    assert machine_stamp()["numpy"] == np.__version__


def test_scenes_that_fail_are_listed_with_their_reasons_and_the_others_stored(tmp_path, scene):
    run(Maker(scene, broken={0, 4}, invalid={5}), tmp_path)
    cache = PdmCache(tmp_path / "scenes")
    assert cache.tokens == ("t1", "t2", "t3", "t6")
    rows = list(csv.DictReader((tmp_path / "failed.csv").open()))
    assert [row["token"] for row in rows] == ["t0", "t4", "t5"]
    assert rows[0]["reason"] == "scene t0: no route" and "centerline is 1 point" in rows[2]["reason"]
    assert cache.failed == rows


def test_a_shard_of_failures_alone_is_no_obstacle(tmp_path, scene):
    run(Maker(scene, broken={3, 4, 5}), tmp_path)
    cache = PdmCache(tmp_path / "scenes")
    assert [shard["scenes"] for shard in cache.manifest["shards"]] == [3, 0, 1]
    assert cache[3].token == "t6"


def test_no_scene_at_all_is_an_error_that_gives_a_reason(tmp_path, scene):
    with pytest.raises(ValueError, match="None of the 2 scenes could be made, e.g. scene t0: no route"):
        run(Maker(scene, count=2, broken={0, 1}), tmp_path)


@pytest.mark.parametrize(("expected", "complete"), [(7, True), (8, False), (None, True)])
def test_a_split_that_does_not_hold_what_it_should_is_named_loudly(tmp_path, scene, expected, complete, caplog):
    with caplog.at_level(stdlib_logging.INFO, logger="absl"):
        run(Maker(scene, expected=expected), tmp_path)
    loud = [record.getMessage() for record in caplog.records if record.levelno >= stdlib_logging.ERROR]
    if complete:
        assert loud == []
    else:
        assert any("copies IS NOT COMPLETE: 7 of 8 scenes" in message for message in loud)
    summary = json.loads((tmp_path / "cache_metrics.json").read_text())
    assert (summary["expected"], summary["in_split"], summary["stored"]) == (expected, 7, 7)
    assert summary["seconds"]["making"] == 3.5


def test_a_failed_scene_makes_a_split_incomplete(tmp_path, scene, caplog):
    with caplog.at_level(stdlib_logging.INFO, logger="absl"):
        run(Maker(scene, broken={2}, expected=7), tmp_path)
    messages = [record.getMessage() for record in caplog.records if record.levelno >= stdlib_logging.ERROR]
    assert any("1 scenes could not be made (all in failed.csv): t2: scene t2: no route" in m for m in messages)
    assert any("6 of 7" in m for m in messages)


def test_the_expected_number_can_be_given(tmp_path, scene):
    run(Maker(scene, expected=5), tmp_path, expected_scenes=7)
    assert json.loads((tmp_path / "cache_metrics.json").read_text())["expected"] == 7


def test_a_stopped_run_is_continued_to_the_same_bytes(tmp_path, scene):
    run(Maker(scene, broken={4}), tmp_path / "whole")

    class Stops(Maker):
        def make(self, positions):
            for made in super().make(positions):
                if positions[0] >= 3:
                    raise KeyboardInterrupt
                yield made

    with pytest.raises(KeyboardInterrupt):
        run(Stops(scene, broken={4}), tmp_path / "stopped")
    assert sorted(contents(tmp_path / "stopped")) == ["plan.json", "scenes-00000.arrow"]
    maker = Maker(scene, broken={4})
    run(maker, tmp_path / "stopped")
    assert maker.made == [3, 4, 5, 6]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_finished_run_makes_nothing_again(tmp_path, scene):
    run(Maker(scene), tmp_path)
    before, maker = contents(tmp_path), Maker(scene)
    figures, _ = run(maker, tmp_path)
    assert maker.made == [] and contents(tmp_path) == before and figures["stored"] == 7


def test_a_damaged_shard_is_made_again(tmp_path, scene):
    run(Maker(scene), tmp_path)
    before = contents(tmp_path)
    shard = tmp_path / "scenes" / "scenes-00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-200])
    (tmp_path / "scenes" / "scenes-00002.arrow.tmp").write_bytes(b"half")
    maker = Maker(scene)
    run(maker, tmp_path)
    assert maker.made == [3, 4, 5] and contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"note": "b"}, "origin was"), ({"count": 8}, "scenes was 7 and is 8")],
)
def test_a_folder_of_another_plan_is_refused(tmp_path, scene, changed, told):
    run(Maker(scene), tmp_path)
    with pytest.raises(ValueError, match=f"holds scenes of another plan .*{told}.*another --workdir"):
        run(Maker(scene, **changed), tmp_path)


def test_another_size_of_shards_is_another_plan(tmp_path, scene):
    run(Maker(scene), tmp_path)
    with pytest.raises(ValueError, match="scenes_per_shard was 3 and is 4"):
        run(Maker(scene), tmp_path, scenes_per_shard=4)


def test_nothing_is_written_on_a_machine_that_computes_wrong_inverses(tmp_path, scene, monkeypatch):
    def wrong():
        machine.check_linear_algebra(inverse=lambda matrices: np.linalg.inv(matrices) * (1 + 1e-6))

    monkeypatch.setattr(cache_metrics, "check_linear_algebra", wrong)
    with pytest.raises(MachineError, match="an inverse of 3 x 3 matrices"):
        run(Maker(scene), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_shards_of_no_scenes_are_refused(scene):
    with pytest.raises(ValueError, match="scenes_per_shard=0 must be at least 1"):
        CacheMetrics(Maker(scene), InProcess(), scenes_per_shard=0)


def test_a_split_without_scenes_is_refused(tmp_path, scene):
    with pytest.raises(ValueError, match="copies holds no scenes"):
        run(Maker(scene, count=0), tmp_path)


def test_a_description_needs_no_data(scene):
    class Absent(Maker):
        def __init__(self):
            pass

        @property
        def tokens(self):
            raise FileNotFoundError("no data root")

    assert CacheMetrics(Absent(), InProcess()).describe().data == {"scenes": "not available: no data root"}
    assert CacheMetrics(Maker(scene), InProcess()).describe().data == {"scenes": "7 scenes of copies"}
