import errno
import gc
import json
import logging
import os
import resource
import shutil
import subprocess
import time
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from recogdrive.training import manifest, preservation
from recogdrive.training.checkpoint import CheckpointError, Checkpoints, load_params
from recogdrive.training.optim import AdamW
from recogdrive.training.saved import has_checkpoint, saved_steps, usable_steps
from recogdrive.training.state import create_state

TRANSFORMATION, _ = AdamW().build(8, 64)


def make_state(value=1.0, size=4, with_ema=True, name="w", kept=None):
    params = {name: jnp.full((size,), value), "bias.x": jnp.zeros(2)}
    return create_state(params, TRANSFORMATION, jax.random.key(0), with_ema=with_ema, kept=kept)


def template(**options):
    placement = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement), make_state(**options)
    )


def save_steps(folder, steps, scores=None, **options):
    """Saves `steps`; the weights at step n are n."""
    checkpoints = Checkpoints(folder, **{"keep_last": 9, **options})
    for step in steps:
        metrics = None if scores is None else {"score": scores[step]}
        checkpoints.save(step, make_state(step), {"next_batch": step}, {"pending": [{"loss": 0.1}]}, metrics)
    checkpoints.close()


def restore(folder, **options):
    return Checkpoints(folder, **options).restore(template())


def arrays_file(folder, step):
    """The largest file of a checkpoint: array data."""
    files = (path for path in (folder / str(step) / "state").rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def flip_byte(path, position=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 0xFF
    path.write_bytes(content)


def test_an_empty_folder_restores_nothing(tmp_path):
    assert restore(tmp_path / "new") is None


def test_saving_asks_nobody_whether_the_run_is_to_stop(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: asked.append(step) or False)
    save_steps(tmp_path, [1, 2])
    assert saved_steps(tmp_path) == [1, 2]
    assert not asked


def test_state_stream_and_loop_come_back_as_saved(tmp_path):
    save_steps(tmp_path, [1, 2])
    restored = restore(tmp_path)
    assert restored.step == 2
    assert restored.stream_state == {"next_batch": 2}
    assert restored.loop_state == {"pending": [{"loss": 0.1}]}
    expected = make_state(2.0)
    assert jax.tree.structure(restored.state) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(restored.state), jax.tree.leaves(expected), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def truncate(folder):
    os.truncate(arrays_file(folder, 3), 10)


def flip(folder):
    flip_byte(arrays_file(folder, 3))


def remove_file(folder):
    arrays_file(folder, 3).unlink()


def remove_stream(folder):
    (folder / "3" / "stream" / "metadata").unlink()


def remove_manifest(folder):
    (folder / "3" / manifest.MANIFEST).unlink()


FAULTS = {
    truncate: "is truncated",
    flip: "its checksum does not match",
    remove_file: "is missing",
    remove_stream: "stream/metadata is missing",
    remove_manifest: "manifest.json is missing",
}


@pytest.fixture(scope="module")
def three_saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    save_steps(folder, [1, 2, 3])
    return folder


@pytest.fixture
def three(three_saved, tmp_path):
    return shutil.copytree(three_saved, tmp_path / "checkpoints")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_checkpoint_is_named_with_the_reason_and_the_last_good_one_is_used(three, fault, caplog):
    fault(three)
    with caplog.at_level(logging.ERROR):
        restored = restore(three)
    assert restored.step == 2
    assert float(restored.state.params["w"][0]) == 2.0
    (message,) = [record.getMessage() for record in caplog.records if "cannot be used" in record.getMessage()]
    assert "the checkpoint of step 3" in message
    assert FAULTS[fault] in message
    assert str(three) in message


def test_a_flipped_byte_in_any_file_of_a_checkpoint_is_found(three):
    files = json.loads((three / "3" / manifest.MANIFEST).read_text())["files"]
    assert len(files) > 5
    for name in files:
        path = three / "3" / name
        original = path.read_bytes()
        flip_byte(path, position=-1)
        assert usable_steps(three)[0] == [1, 2], name
        path.write_bytes(original)
    assert usable_steps(three)[0] == [1, 2, 3]


def test_a_damaged_checkpoint_is_set_aside_so_that_its_step_can_be_saved_again(three):
    flip(three)
    checkpoints = Checkpoints(three, keep_last=9)
    assert checkpoints.restore(template()).step == 2
    assert [len(list(path.iterdir())) for path in three.glob("unusable-3-*")] == [1]
    checkpoints.save(3, make_state(33.0), {}, {})
    checkpoints.close()
    assert float(restore(three).state.params["w"][0]) == 33.0


def test_checkpoints_that_are_all_damaged_stop_the_run_with_every_reason(three):
    for step in (1, 2, 3):
        flip_byte(arrays_file(three, step))
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints") as caught:
        restore(three)
    assert all(f"step {step}:" in str(caught.value) for step in (1, 2, 3))
    assert saved_steps(three) == [1, 2, 3]


def test_remains_of_an_interrupted_save_are_removed_and_never_restored(three):
    shutil.copytree(three / "3", three / "4.orbax-checkpoint-tmp")
    assert restore(three).step == 3
    assert not list(three.glob("*tmp*"))


def test_a_deletion_cut_short_leaves_nothing_that_passes_for_a_checkpoint(three, monkeypatch, caplog):
    def cut_short(folder):
        (folder / manifest.MANIFEST).unlink()
        raise OSError("as if killed")

    monkeypatch.setattr(preservation.shutil, "rmtree", cut_short)
    save_steps(three, [4], keep_last=2)
    monkeypatch.undo()
    assert "discarded-1 could not be deleted" in caplog.text
    assert usable_steps(three) == ([3, 4], {})
    assert sorted(path.name for path in three.iterdir()) == ["3", "4", "discarded-1", "discarded-2"]
    restore(three)
    assert sorted(path.name for path in three.iterdir()) == ["3", "4"]


def test_a_run_killed_before_it_let_go_of_an_old_checkpoint_does_so_when_it_is_started_again(three):
    # Step 1 as a deletion of earlier versions left it: a step's name, no manifest.
    (three / "1" / manifest.MANIFEST).unlink()
    checkpoints = Checkpoints(three, keep_last=1)
    assert checkpoints.restore(template()).step == 3
    checkpoints.close()
    assert sorted(path.name for path in three.iterdir()) == ["3"]


def test_an_unsealed_checkpoint_newer_than_the_restored_one_is_never_deleted(three):
    remove_manifest(three)
    checkpoints = Checkpoints(three, keep_last=1)
    assert checkpoints.restore(template()).step == 2
    checkpoints.close()
    assert saved_steps(three) == [2]
    (aside,) = three.glob("unusable-3-*/3")
    assert (aside / "stream" / "metadata").is_file()


def test_another_model_is_refused_with_all_differences(three):
    with pytest.raises(ValueError, match="does not fit this configuration") as caught:
        Checkpoints(three).restore(template(size=5, name="v"))
    message = str(caught.value)
    assert "params/v: needed with shape (5,), not in the checkpoint" in message
    assert "params/w: in the checkpoint with shape (4,), unknown here" in message
    assert "ema/v" in message
    with pytest.raises(ValueError, match=r"params/w: shape \(4,\) in the checkpoint, \(7,\) here"):
        Checkpoints(three).restore(template(size=7))


def test_a_differently_configured_run_is_refused_with_all_differences(tmp_path):
    save_steps(tmp_path, [1], identity={"batch_size": 8, "seed": 0})
    with pytest.raises(ValueError, match="batch_size: 8 in the checkpoint, 16 here"):
        restore(tmp_path, identity={"batch_size": 16, "seed": 0})
    assert restore(tmp_path, identity={"batch_size": 8, "seed": 0}).step == 1


def test_the_newest_and_the_best_are_kept(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6}
    save_steps(tmp_path, scores, scores, keep_last=1, best_metric="score", best_mode="max")
    assert saved_steps(tmp_path) == [2, 4]


def test_the_best_is_remembered_across_restarts(tmp_path):
    scores = {1: 0.5, 2: 0.2, 3: 0.7, 4: 0.6}
    for step in scores:  # A new process, as it were, for every save.
        save_steps(tmp_path, [step], scores, keep_last=1, best_metric="score", best_mode="min")
    assert saved_steps(tmp_path) == [2, 4]


def test_of_equally_good_checkpoints_the_newest_is_kept(tmp_path):
    scores = {1: 0.5, 2: 0.5, 3: 0.4, 4: 0.1}
    save_steps(tmp_path, scores, scores, keep_last=1, best_metric="score", best_mode="max")
    assert saved_steps(tmp_path) == [2, 4]


def test_a_missing_best_metric_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'fde', is not among \['score'\]"):
        save_steps(tmp_path, [1], {1: 0.5}, best_metric="fde")


def test_a_failed_background_save_surfaces_at_the_next_check_and_is_never_restored(tmp_path, monkeypatch):
    save_steps(tmp_path, [1])
    checkpoints = Checkpoints(tmp_path)

    def broken_disk(folder):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(manifest, "seal", broken_disk)
    checkpoints.save(2, make_state(2.0), {}, {})  # Returns before the failure.
    with pytest.raises(CheckpointError, match=r"saving step 2 to .* failed: .*Input/output error") as caught:
        for _ in range(1000):
            checkpoints.check()
            time.sleep(0.01)
    assert "the last good checkpoint is step 1" in str(caught.value)
    monkeypatch.undo()
    assert restore(tmp_path).step == 1


@contextmanager
def small_file_system(folder, size):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def failing_writes():
    """For tests in which a write fails: Orbax drops the coroutines of its other writes, which Python reports when it
    frees them. They are freed here, so that no later test is blamed."""
    yield
    gc.collect()


def fails_writes(test):
    test = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")(test)
    return pytest.mark.usefixtures("failing_writes")(test)


def noisy_state(size=60_000):
    """A state that does not compress: 240 kB each of weights and average, moments zero."""
    params = {"w": jax.random.normal(jax.random.key(1), (size,)), "bias.x": jnp.zeros(2)}
    return create_state(params, TRANSFORMATION, jax.random.key(0), with_ema=True)


@fails_writes
def test_a_full_disk_names_step_folder_and_cause_and_leaves_the_last_good_checkpoint(tmp_path):
    with small_file_system(tmp_path, "800k"):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, noisy_state(), {}, {})
        checkpoints.wait()
        with pytest.raises(
            CheckpointError, match=rf"saving step 2 to {tmp_path} failed.*(No space left|ENOSPC)"
        ) as caught:
            checkpoints.save(2, noisy_state(), {}, {})
            checkpoints.wait()
        assert "the last good checkpoint is step 1" in str(caught.value)
        checkpoints.close()
        assert usable_steps(tmp_path) == ([1], {})


@contextmanager
def largest_file(size):
    """No file of this process can grow beyond `size` bytes, as on a disk that is full; needs no privilege."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@fails_writes
def test_writes_cut_short_by_the_system_fail_the_save_and_not_the_checkpoint_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, noisy_state(), {}, {})
    checkpoints.wait()
    with (
        largest_file(100_000),
        pytest.raises(CheckpointError, match="saving step 2 to .* failed.*(File too large|EFBIG)"),
    ):
        checkpoints.save(2, noisy_state(), {}, {})
        checkpoints.wait()
    checkpoints.close()
    assert usable_steps(tmp_path) == ([1], {})


def test_a_read_only_folder_is_refused_at_the_start(open_folder, unprivileged):
    open_folder.chmod(0o555)
    with unprivileged(), pytest.raises(CheckpointError, match=f"cannot write checkpoints to {open_folder}.*Permission"):
        Checkpoints(open_folder)


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="cannot write checkpoints to"):
        Checkpoints(tmp_path / "checkpoints")


@fails_writes
def test_a_folder_that_becomes_read_only_fails_the_next_save_and_leaves_the_last_good_one(open_folder, unprivileged):
    checkpoints = Checkpoints(open_folder)
    checkpoints.save(1, make_state(), {}, {})
    checkpoints.wait()
    open_folder.chmod(0o555)
    with unprivileged(), pytest.raises(CheckpointError, match=rf"saving step 2 to {open_folder} failed.*ermission"):
        checkpoints.save(2, make_state(), {}, {})
        checkpoints.wait()
    checkpoints.close()
    open_folder.chmod(0o777)
    assert restore(open_folder).step == 1


def test_weights_are_loaded_without_the_optimiser_state_and_the_average_is_preferred(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state = make_state(1.0)
    checkpoints.save(5, type(state)(**{**vars(state), "ema": {**state.ema, "w": jnp.full(4, 9.0)}}), {}, {})
    checkpoints.close()
    for folder in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "5"):
        assert load_params(folder)["w"].tolist() == [9.0] * 4
        assert load_params(folder, prefer="params")["w"].tolist() == [1.0] * 4
    assert set(load_params(tmp_path)) == {"w", "bias.x"}


@pytest.fixture(scope="module")
def with_kept(tmp_path_factory):
    """Run folder with a checkpoint that holds kept weights."""
    folder = tmp_path_factory.mktemp("kept")
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(1, make_state(kept={"reference.w": jnp.arange(4.0)}), {}, {})
    checkpoints.close()
    return folder


def test_kept_weights_come_back_and_are_not_taken_for_the_trained_ones(with_kept):
    restored = Checkpoints(with_kept / "checkpoints").restore(template(kept={"reference.w": jnp.zeros(4)}))
    assert restored.state.kept["reference.w"].tolist() == [0.0, 1.0, 2.0, 3.0]
    for prefer in ("ema", "params"):
        assert set(load_params(with_kept, make_state().params, prefer=prefer)) == {"w", "bias.x"}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (None, r"kept/reference.w: in the checkpoint with shape \(4,\), unknown here"),
        ({"reference.w": jnp.zeros(5)}, r"kept/reference.w: shape \(4,\) in the checkpoint, \(5,\) here"),
        ({"reference.v": jnp.zeros(4)}, r"kept/reference.v: needed with shape \(4,\), not in the checkpoint"),
    ],
)
def test_other_kept_weights_than_those_of_the_checkpoint_are_refused_by_name(with_kept, wanted, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints(with_kept / "checkpoints").restore(template(kept=wanted))


def test_whether_a_run_goes_on_from_a_checkpoint_is_told_by_its_folder(with_kept, tmp_path):
    assert has_checkpoint(with_kept)
    assert not has_checkpoint(tmp_path / "new")
    (tmp_path / "checkpoints" / "discarded-3").mkdir(parents=True)
    assert not has_checkpoint(tmp_path)
    # A damaged one too: the run stops over it, and never needs the weights it once started from.
    (tmp_path / "checkpoints" / "4").mkdir()
    assert has_checkpoint(tmp_path)


def test_a_run_without_average_gives_its_weights(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(3.0, with_ema=False), {}, {})
    checkpoints.close()
    assert load_params(tmp_path)["w"].tolist() == [3.0] * 4


def test_the_best_or_the_latest_weights_are_chosen(tmp_path):
    scores = {1: 0.5, 2: 0.2, 3: 0.7}
    save_steps(tmp_path, scores, scores, best_metric="score", best_mode="min")
    assert load_params(tmp_path)["w"][0] == 2.0
    assert load_params(tmp_path, which="latest")["w"][0] == 3.0


def test_weights_are_never_loaded_from_a_damaged_checkpoint(three):
    flip(three)
    assert load_params(three, which="latest")["w"][0] == 2.0
    with pytest.raises(CheckpointError, match="its checksum does not match"):
        load_params(three / "3")
    for step in (1, 2):
        flip_byte(arrays_file(three, step))
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        load_params(three)


def test_weights_that_do_not_fit_are_refused_with_all_differences(three):
    wanted = {"w": jax.ShapeDtypeStruct((5,), jnp.float32), "extra": jax.ShapeDtypeStruct((1,), jnp.float32)}
    with pytest.raises(ValueError, match="do not fit this model") as caught:
        load_params(three, wanted)
    message = str(caught.value)
    assert "extra: needed with shape (1,)" in message
    assert "bias.x: in the checkpoint" in message
    assert "w: shape (4,) in the checkpoint, (5,) here" in message


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_params(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("keep_last", 0), ("keep_best", 0), ("best_mode", "lowest")])
def test_arguments_out_of_range_are_refused_by_name(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        Checkpoints(tmp_path, **{name: value})
