"""Tests of stages/cache_hidden_states.py with an encoder that costs nothing."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from recogdrive.data.hidden_cache.container import HiddenCacheError, fingerprint_of
from recogdrive.data.hidden_cache.reader import HiddenStateCache, HiddenStateContainer
from recogdrive.data.samples import planner_sample
from recogdrive.data.splits import PlanningSplits
from recogdrive.stages import cache_hidden_states, hidden_shards
from recogdrive.stages.cache_hidden_states import CacheHiddenStates

_spec = importlib.util.spec_from_file_location("hidden_cache_work", Path(__file__).with_name("hidden_cache_work.py"))
work = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(work)

TOWN = work.splits().open_all()
SCENES = [scene for source in TOWN.values() for scene in source]


def run(path, **options):
    path.mkdir(exist_ok=True)
    folder = work.Folder(path)
    return work.stage(**options).run(folder, path), folder


def contents(path):
    return {file.name: file.read_bytes() for file in sorted((path / "hidden_states").iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    return path, *run(path)


def test_every_scene_of_every_split_is_in_the_container(whole):
    path, figures, folder = whole
    container = HiddenStateContainer(path / "hidden_states")
    container.verify()
    assert container.tokens == tuple(scene.token for scene in SCENES)
    assert figures["scenes"] == figures["stored"] == 8 and figures["failed"] == 0
    assert container.manifest["splits"] == {"train": 5, "evaluate val": 3}
    assert [shard["records"] for shard in container.manifest["shards"]] == [3, 3, 2]
    assert [text.split(" (")[0] for text in folder.facts["data"].values()] == [
        "5 scenes of town_1",
        "3 scenes of town_2",
    ]


def test_states_are_the_encoders_and_the_rest_is_the_scenes(whole):
    cache, encoder, prompts = HiddenStateCache(whole[0]), work.Encoder(), work.Prompts()
    samples = cache.samples(TOWN["train"])
    for index, scene in enumerate(TOWN["train"]):
        row = prompts.inputs(scene)
        states = encoder.encode({"scale": np.float32(3)}, {name: value[None] for name, value in row.items()})[0]
        expected = planner_sample(scene, cache, index)
        np.testing.assert_array_equal(expected["context"], np.asarray(states))
        np.testing.assert_array_equal(expected["context_mask"], row["segment_ids"] == 1)
        found = samples[index]
        assert list(found) == list(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype


def test_the_fingerprint_is_that_of_all_fields(whole):
    path, _, folder = whole
    fields = {"weights": "abc", "prompt": "numbers", "storage": "bfloat16"}
    cache = HiddenStateCache(path, expect=fields)
    assert cache.fingerprint == fingerprint_of(fields) == folder.facts["fingerprint"]


def test_all_batches_have_one_shape(tmp_path):
    encoder = work.Encoder()
    run(tmp_path, encoder=encoder)
    assert encoder.batches == [(2, 10)]  # Traced once.


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_container_does_not_depend_on_the_batch_size(tmp_path, whole, batch_size):
    run(tmp_path, batch_size=batch_size)
    assert contents(tmp_path) == contents(whole[0])


def test_a_second_run_makes_nothing(tmp_path):
    run(tmp_path)
    before, prompts = contents(tmp_path), work.Prompts()
    run(tmp_path, prompts=prompts)
    assert not prompts.made and contents(tmp_path) == before


@pytest.mark.parametrize("lost", ["states-00001.array_record", "states-00001.json"])
def test_only_what_is_missing_is_made_again(tmp_path, whole, lost):
    run(tmp_path)
    (tmp_path / "hidden_states" / lost).unlink()
    (tmp_path / "hidden_states" / "manifest.json").unlink()
    (tmp_path / "hidden_states" / "states-00002.array_record.tmp").write_bytes(b"half")
    prompts = work.Prompts()
    run(tmp_path, prompts=prompts)
    assert sorted(prompts.made) == sorted(scene.token for scene in SCENES[3:6])
    assert contents(tmp_path) == contents(whole[0])


def test_a_truncated_shard_is_made_again(tmp_path, whole):
    run(tmp_path)
    shard = tmp_path / "hidden_states" / "states-00000.array_record"
    shard.write_bytes(shard.read_bytes()[:-7])
    run(tmp_path)
    assert contents(tmp_path) == contents(whole[0])


def test_killed_at_any_time_it_ends_with_the_same_bytes_as_on_another_number_of_devices(tmp_path, whole):
    command = [sys.executable, work.__file__, str(tmp_path)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    first = tmp_path / "hidden_states" / "states-00000.json"
    deadline = time.monotonic() + 60
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.15)  # In the midst of the second shard.
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.exists() and not (tmp_path / "hidden_states" / "manifest.json").exists()
    run(tmp_path)
    assert contents(tmp_path) == contents(whole[0])


def test_other_weights_in_the_same_folder_are_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(HiddenCacheError, match="weights: 'xyz' instead of 'abc'"):
        run(tmp_path, encoder=work.Encoder(weights="xyz"))


def test_a_scene_that_fails_stops_the_run_and_is_named(tmp_path):
    broken = SCENES[4].token
    with pytest.raises(ValueError, match=f"1 scenes could not be cached, 0 may fail .*{broken}: .*picture is missing"):
        run(tmp_path, prompts=work.Prompts([broken]))
    assert [path.name for path in (tmp_path / "hidden_states").glob("states-*.json")] == ["states-00000.json"]


def test_a_run_continues_when_the_scene_is_repaired(tmp_path, whole):
    with pytest.raises(ValueError, match="could not be cached"):
        run(tmp_path, prompts=work.Prompts([SCENES[4].token]))
    run(tmp_path)
    assert contents(tmp_path) == contents(whole[0])


def test_within_the_budget_failures_are_left_out_and_listed(tmp_path):
    broken = SCENES[4].token
    figures, _ = run(tmp_path, prompts=work.Prompts([broken]), failure_budget=1)
    assert figures["stored"] == 7 and figures["failed"] == 1
    cache = HiddenStateCache(tmp_path)
    assert cache.container.manifest["failed"] == [
        {"token": broken, "reason": f"Scene {broken}: its picture is missing"}
    ]
    with pytest.raises(HiddenCacheError, match="its picture is missing"):
        cache(SCENES[4])
    with pytest.raises(HiddenCacheError, match="1 of 5 scenes of town_1"):
        cache.samples(TOWN["train"])


def test_failures_of_shards_finished_before_count(tmp_path):
    broken = [SCENES[0].token]
    with pytest.raises(ValueError, match="2 scenes could not be cached"):
        run(tmp_path, prompts=work.Prompts([*broken, SCENES[4].token]), failure_budget=1)
    with pytest.raises(ValueError, match="2 scenes could not be cached"):
        run(tmp_path, prompts=work.Prompts([*broken, SCENES[4].token]), failure_budget=1)


def test_states_that_are_not_finite_are_failures(tmp_path):
    last = int(work.Prompts().inputs(SCENES[1])["input_ids"][-1])
    with pytest.raises(ValueError, match=f"Scene {SCENES[1].token} .* hidden states are not finite"):
        run(tmp_path, encoder=work.Encoder(infinite=[last]))


def test_eight_bit_states_have_their_error_in_the_manifest(tmp_path):
    run(tmp_path, storage="int8")
    manifest = json.loads((tmp_path / "hidden_states" / "manifest.json").read_text())
    assert manifest["fields"]["storage"] == "int8"
    assert 0 < manifest["int8_error"]["mean_rms_relative"] < 0.02


def test_processes_share_the_shards(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        prompts = work.Prompts()
        if process == 1:
            # The lead would have noted the plan before the others look.
            monkeypatch.setattr(jax, "process_index", lambda: 0)
            work.stage()._claim(
                tmp_path / "hidden_states", {"weights": "abc", "prompt": "numbers", "storage": "bfloat16"},
                cache_hidden_states.SceneList(TOWN),
            )  # fmt: skip
            monkeypatch.setattr(jax, "process_index", lambda: 1)
        run(tmp_path, prompts=prompts)
        expected = SCENES[3:6] if process == 1 else SCENES[:3] + SCENES[6:]
        assert sorted(prompts.made) == sorted(scene.token for scene in expected)
    assert contents(tmp_path) == contents(whole[0])


def test_the_plan_says_bytes_and_hours_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    description = work.stage(assumed_tflops=4.0).describe()
    text = "\n".join(description.notes)
    assert "8 scenes, 10 tokens x 16, stored as bfloat16" in text
    assert "2 TFLOP a scene, assuming 4 TFLOP/s a device x 1: 0.00 hours" in text
    assert "free disk" in text and "int8" in text
    assert description.data["train"].startswith("5 scenes of town_1")
    assert not list(tmp_path.iterdir())


def test_the_plan_of_a_split_that_is_not_there_says_so():
    def missing():
        raise OSError("no logs at /nowhere")

    stage = CacheHiddenStates(PlanningSplits(train=missing), work.Prompts(), work.Encoder())
    description = stage.describe()
    assert "no logs" in description.data["train"]
    assert "unknown number of scenes" in description.notes[0]
    stage = CacheHiddenStates(PlanningSplits(train=missing), work.Prompts(), work.Encoder(), expected_scenes=85_109)
    notes = "\n".join(stage.describe().notes)
    # 85,109 scenes of 2 TFLOP at 100 TFLOP/s take 1,702 s.
    assert "85,109 scenes" in notes and "x 1: 0.47 hours" in notes


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [None, None])
    with pytest.raises(ValueError, match="batch_size=3 does not divide over 2 devices"):
        hidden_shards.on_devices(lambda params, batch: batch, {}, 3)


def test_weights_must_be_named(tmp_path):
    with pytest.raises(ValueError, match="set PARENT"):
        work.stage().run(work.Folder(tmp_path), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "float16"}, "storage='float16' must be one of bfloat16, int8"),
        ({"samples_per_shard": 0}, "samples_per_shard=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_threads": 0}, "num_threads=0"),
        ({"failure_budget": -1}, "failure_budget=-1"),
        ({"assumed_tflops": 0.0}, "assumed_tflops=0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        work.stage(**options)
