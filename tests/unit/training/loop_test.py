import json
import shutil

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recogdrive.training import loop, manifest
from recogdrive.training.checkpoint import CheckpointError, load_params
from recogdrive.training.loop import Trainer
from recogdrive.training.metrics_file import without_timings
from recogdrive.training.optim import AdamW, Constant
from recogdrive.training.saved import saved_steps, usable_steps
from recogdrive.training.sharding import DataParallel
from recogdrive.training.watch import MetricWatch, Threshold, ThresholdReached
from recogdrive.training.window import NonFiniteError


def trainer(steps=10, **options):
    defaults = {
        "optimizer": AdamW(Constant(0.05)),
        "sharding": DataParallel(1),
        "log_every": 4,
        "save_every": 3,
        "keep_last": 9,
    }
    return Trainer(steps, **{**defaults, **options})


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def same(left, right):
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def test_each_log_line_is_the_mean_loss_of_its_window_and_the_last_line_ends_the_run(linear, stream, tmp_path):
    trainer(10, log_every=1).fit(linear(), stream(), tmp_path / "single")
    losses = [line["loss"] for line in lines(tmp_path / "single")]
    trainer(10, log_every=4).fit(linear(), stream(), tmp_path / "windows")
    windows = lines(tmp_path / "windows")
    assert [line["step"] for line in windows] == [4, 8, 10]
    assert [line["loss"] for line in windows] == pytest.approx(
        [np.mean(losses[:4]), np.mean(losses[4:8]), np.mean(losses[8:])]
    )
    assert windows[0]["grad_norm"] == lines(tmp_path / "single")[3]["grad_norm"]
    assert set(windows[0]["perf"]) == {"samples_per_s", "step_time_s", "input_wait_s", "goodput"}


def test_training_lowers_the_loss(linear, stream, tmp_path):
    trainer(200, log_every=20, save_every=1000).fit(linear(), stream(), tmp_path)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert losses[-1] < 0.1 * losses[0]


def test_a_run_continued_from_a_checkpoint_equals_one_that_did_not_stop(linear, stream, tmp_path):
    options = {"ema_decay": 0.9, "accumulation_steps": 2}
    expected = trainer(11, **options).fit(linear(), stream(), tmp_path / "straight")
    trainer(6, **options).fit(linear(), stream(), tmp_path / "parts")
    # Cut back to step 3, in the middle of the first window, as a crash would.
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "6")
    continued = trainer(11, **options).fit(linear(), stream(), tmp_path / "parts")
    assert same(continued, expected)
    assert list(map(without_timings, lines(tmp_path / "parts"))) == list(
        map(without_timings, lines(tmp_path / "straight"))
    )


def test_a_damaged_newest_checkpoint_costs_steps_but_not_exactness(linear, stream, tmp_path):
    expected = trainer(9).fit(linear(), stream(), tmp_path / "straight")
    trainer(6).fit(linear(), stream(), tmp_path / "damaged")
    (tmp_path / "damaged" / "checkpoints" / "6" / manifest.MANIFEST).unlink()
    assert same(trainer(9).fit(linear(), stream(), tmp_path / "damaged"), expected)
    assert saved_steps(tmp_path / "damaged" / "checkpoints") == [3, 6, 9]


def test_a_finished_run_returns_its_state_at_once(linear, stream, tmp_path):
    expected = trainer(5).fit(linear(), stream(), tmp_path)
    written = (tmp_path / "metrics.jsonl").read_bytes()

    class Untouched(stream):
        def __next__(self):
            raise AssertionError("a finished run reads no data")

    assert same(trainer(5).fit(linear(), Untouched(), tmp_path), expected)
    assert (tmp_path / "metrics.jsonl").read_bytes() == written


def test_a_non_finite_loss_stops_the_run_and_names_the_first_step_and_metric(linear, stream, tmp_path):
    # Batch 7 belongs to step 8; the next log line and the next checkpoint are at 50, the one before at 5.
    with pytest.raises(NonFiniteError, match="loss is nan at step 8") as caught:
        trainer(50, log_every=50, save_every=5).fit(linear(), stream(poison=7), tmp_path)
    assert (caught.value.step, caught.value.metric) == (8, "loss")
    assert usable_steps(tmp_path / "checkpoints") == ([5], {})


def test_a_poisoned_state_is_neither_saved_nor_evaluated(linear, stream, tmp_path):
    evaluated = []

    def evaluate(params, step):
        evaluated.append(step)
        return {"score": 1.0}

    with pytest.raises(NonFiniteError, match="at step 6"):
        trainer(20, log_every=50, save_every=6, eval_every=3).fit(linear(), stream(poison=5), tmp_path, evaluate)
    assert evaluated == [3]
    assert saved_steps(tmp_path / "checkpoints") == []


def test_a_non_finite_evaluation_stops_the_run_by_name(linear, stream, tmp_path):
    with pytest.raises(NonFiniteError, match="fde is inf at step 4"):
        trainer(4).fit(linear(), stream(), tmp_path, lambda params, step: {"ade": 1.0, "fde": float("inf")})


def test_a_failed_save_surfaces_at_the_next_step(linear, stream, tmp_path, monkeypatch):
    def broken_disk(folder):
        raise OSError("disk on fire")

    source = stream()
    trainer(3).fit(linear(), source, tmp_path)
    monkeypatch.setattr(manifest, "seal", broken_disk)
    monkeypatch.setattr(loop.Checkpoints, "save", waiting(loop.Checkpoints.save))
    with pytest.raises(CheckpointError, match=r"saving step 6 .*disk on fire.* last good checkpoint is step 3"):
        trainer(100, log_every=100, save_every=6).fit(linear(), source, tmp_path)
    assert source.next_batch <= 6 + 1 + 2 + 1  # Step 7 is the last one, two batches wait, one is on its way.
    assert usable_steps(tmp_path / "checkpoints") == ([3], {})


def waiting(save):
    """Saves and lets the background work end, without looking at how it ended."""

    def save_and_wait(self, *args, **kwargs):
        save(self, *args, **kwargs)
        while self._orbax.is_saving_in_progress():
            pass

    return save_and_wait


def test_the_host_reads_no_device_value_between_log_lines(linear, stream, tmp_path, monkeypatch):
    reads = []
    value = type(jax.numpy.zeros(1))._value
    monkeypatch.setattr(
        type(jax.numpy.zeros(1)), "_value", property(lambda self: reads.append(source.next_batch) or value.fget(self))
    )
    fetches = []
    fetch = loop.Window.fetch
    monkeypatch.setattr(loop.Window, "fetch", lambda self: fetches.append(len(reads)) or fetch(self))
    source = stream()
    trainer(40, log_every=20, save_every=1000).fit(linear(), source, tmp_path)
    assert len(fetches) == 3  # Two log lines and the last checkpoint.
    before_first, per_window = fetches[0], fetches[1] - fetches[0]
    assert per_window == 20 * 4  # loss, noise_mean, grad_norm and lr of each step, all in the fetch of the first line.
    assert before_first <= 4  # Making the initial state.


def test_the_average_is_what_is_evaluated(linear, stream, tmp_path):
    seen = {}

    def evaluate(params, step):
        seen[step] = np.asarray(params["weight"])
        return {}

    state = trainer(6, ema_decay=0.9, eval_every=3).fit(linear(), stream(), tmp_path, evaluate)
    assert sorted(seen) == [3, 6]
    np.testing.assert_array_equal(seen[6], state.ema["weight"])
    assert not np.array_equal(seen[6], state.params["weight"])


def test_the_best_evaluation_is_saved_even_between_save_steps(linear, stream, tmp_path):
    scores = {2: 0.5, 4: 0.1, 6: 0.7, 8: 0.9}

    def evaluate(params, step):
        return {"fde": scores[step]}

    trainer(8, eval_every=2, save_every=100, keep_last=1, best_metric="fde").fit(linear(), stream(), tmp_path, evaluate)
    assert saved_steps(tmp_path / "checkpoints") == [4, 8]
    assert [line["eval/fde"] for line in lines(tmp_path) if "eval/fde" in line] == [0.5, 0.1, 0.7, 0.9]


def test_a_best_metric_that_nobody_reports_is_refused(linear, stream, tmp_path):
    with pytest.raises(ValueError, match="needs an evaluation"):
        trainer(best_metric="fde").fit(linear(), stream(), tmp_path)
    with pytest.raises(ValueError, match=r"'fde' is not among .*\['ade'\]"):
        trainer(1, best_metric="fde").fit(linear(), stream(), tmp_path, lambda params, step: {"ade": 1.0})


def test_initial_weights_are_used_and_not_consumed(linear, stream, tmp_path):
    mine = {"weight": jax.numpy.full((3, 2), 7.0), "bias": jax.numpy.zeros(2)}
    state = trainer(1, optimizer=AdamW(Constant(1e-6))).fit(linear(), stream(), tmp_path, init_params=mine)
    np.testing.assert_allclose(state.params["weight"], mine["weight"], atol=1e-4)


def test_initial_weights_of_another_shape_are_refused_with_all_differences(linear, stream, tmp_path):
    with pytest.raises(ValueError, match="weight: shape") as caught:
        trainer(1).fit(linear(), stream(), tmp_path, init_params={"weight": np.zeros((3, 9)), "other": np.zeros(1)})
    assert "bias" in str(caught.value)
    assert "other" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stream": {"batch_size": 16}}, "batch_size: 8 in the checkpoint, 16 here"),
        ({"stream": {"samples_per_epoch": 65}}, "samples_per_epoch: 64 in the checkpoint, 65 here"),
        ({"trainer": {"seed": 1}}, "seed: 0 in the checkpoint, 1 here"),
        ({"trainer": {"ema_decay": 0.9}}, "keeps_ema: False in the checkpoint, True here"),
        ({"linear": {"outputs": 1}}, r"params/weight: shape \(3, 2\) in the checkpoint, \(3, 1\) here"),
    ],
)
def test_resuming_with_another_configuration_is_refused(linear, stream, tmp_path, change, message):
    trainer(2).fit(linear(), stream(), tmp_path)
    with pytest.raises(ValueError, match=message):
        trainer(4, **change.get("trainer", {})).fit(
            linear(**change.get("linear", {})), stream(**change.get("stream", {})), tmp_path
        )


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_written(linear, stream, tmp_path):
    with pytest.raises(ValueError, match="batch_size=8 does not divide over 1 device x 3 accumulation steps"):
        trainer(accumulation_steps=3).fit(linear(), stream(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("log_every", 0), ("save_every", -1), ("eval_every", 0), ("accumulation_steps", 1.5), ("keep_last", True),
     ("prefetch", 0), ("ema_decay", 1.0), ("best_mode", "lowest")],
)  # fmt: skip
def test_arguments_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        Trainer(10, **{name: value})


def test_tensorboard_gets_curves_and_pictures_and_forgets_what_came_after_the_restored_step(linear, stream, tmp_path):
    def evaluate(params, step):
        return {"ade": step / 10, "trajectories": np.full((4, 6, 3), step, np.uint8)}

    trainer(6, log_every=1, eval_every=3).fit(linear(), stream(), tmp_path, evaluate)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    trainer(5, log_every=1, eval_every=3).fit(linear(), stream(), tmp_path, evaluate)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    loss = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert [step for step, _ in loss] == [1, 2, 3, 4, 5]
    assert [value for _, value in loss] == pytest.approx([line["loss"] for line in lines(tmp_path) if "loss" in line])
    assert [event.step for event in events.Scalars("eval/ade")] == [3, 5]
    picture = events.Images("eval/trajectories")[-1]
    assert (picture.width, picture.height) == (6, 4)
    assert {"perf/samples_per_s", "perf/step_time_s", "perf/input_wait_s"} <= set(events.Tags()["scalars"])


def test_the_trained_weights_can_be_loaded_from_the_run_folder(linear, stream, tmp_path):
    state = trainer(4, ema_decay=0.5).fit(linear(), stream(), tmp_path)
    assert same(load_params(tmp_path, state.params), state.ema)


@pytest.fixture
def anchored(linear):
    """Least squares that keeps near weights of the run's own, "reference.weight"."""

    class Anchored(linear):
        def loss(self, params, batch, key):
            loss, metrics = super().loss(params, batch, key)
            distance = jax.numpy.mean((params["weight"] - params["reference.weight"]) ** 2)
            return loss + distance, {**metrics, "distance": distance}

    return Anchored


def shapes(weights):
    return jax.eval_shape(lambda: weights)


def test_a_run_with_kept_weights_goes_on_from_their_checkpoint_given_shapes_only(anchored, stream, tmp_path):
    kept = {"reference.weight": jax.numpy.full((3, 2), 0.25)}
    mine = {"weight": jax.numpy.full((3, 2), 0.5), "bias": jax.numpy.zeros(2)}
    expected = trainer(7, ema_decay=0.9).fit(anchored(), stream(), tmp_path / "straight", init_params=mine, kept=kept)
    trainer(3, ema_decay=0.9).fit(anchored(), stream(), tmp_path / "parts", init_params=mine, kept=kept)
    continued = trainer(7, ema_decay=0.9).fit(
        anchored(), stream(), tmp_path / "parts", init_params=shapes(mine), kept=shapes(kept)
    )
    assert same(continued, expected)
    np.testing.assert_array_equal(continued.kept["reference.weight"], kept["reference.weight"])
    assert set(load_params(tmp_path / "parts")) == {"weight", "bias"}


def test_a_run_given_shapes_only_does_not_start_without_a_checkpoint(anchored, stream, tmp_path):
    kept = {"reference.weight": jax.ShapeDtypeStruct((3, 2), np.float32)}
    with pytest.raises(ValueError, match="no checkpoint to go on from, and kept of the run were given as shapes only"):
        trainer(1).fit(anchored(), stream(), tmp_path, kept=kept)


def test_kept_weights_with_the_name_of_another_kind_are_refused(linear, stream, tmp_path):
    with pytest.raises(ValueError, match="carry names of weights that train, e.g. 'bias'"):
        trainer(1).fit(linear(), stream(), tmp_path, kept={"bias": np.zeros(2)})
    with pytest.raises(ValueError, match=r"\['other'\] are both frozen and kept"):
        trainer(1).fit(linear(), stream(), tmp_path, kept={"other": np.zeros(2)}, frozen={"other": np.zeros(2)})


def test_a_watch_is_told_every_window_and_every_evaluation_by_kind(linear, stream, tmp_path):
    seen = []
    trainer(6, eval_every=3).fit(
        linear(),
        stream(),
        tmp_path,
        lambda params, step: {"ade": step / 10, "note": "text"},
        watch=lambda step, values: seen.append((step, values)),
    )
    train = [line for line in lines(tmp_path) if "loss" in line]
    assert [step for step, _ in seen] == [3, 4, 6, 6]
    assert seen[0][1] == {"eval/ade": 0.3}
    assert seen[1][1] == {f"train/{name}": train[0][name] for name in ("loss", "noise_mean", "grad_norm", "lr")}
    assert seen[3][1] == {"eval/ade": 0.6}


def test_a_run_that_a_threshold_stopped_is_saved_and_goes_on_as_if_it_had_not_been(linear, stream, tmp_path):
    def evaluate(params, step):
        return {"ade": step / 10}

    options = {"log_every": 2, "eval_every": 4, "save_every": 100}
    expected = trainer(9, **options).fit(linear(), stream(), tmp_path / "straight", evaluate)
    watch = MetricWatch([Threshold("train/lr", above=0.0, stop=True, patience=2)])
    with pytest.raises(ThresholdReached, match="stopped after step 4: train/lr is 0.05, above 0") as caught:
        trainer(9, **options).fit(linear(), stream(), tmp_path / "stopped", evaluate, watch=watch)
    assert caught.value.step == 4
    assert usable_steps(tmp_path / "stopped" / "checkpoints") == ([4], {})
    assert [line["eval/ade"] for line in lines(tmp_path / "stopped") if "eval/ade" in line] == [0.4]
    assert same(trainer(9, **options).fit(linear(), stream(), tmp_path / "stopped", evaluate), expected)
    assert list(map(without_timings, lines(tmp_path / "stopped"))) == list(
        map(without_timings, lines(tmp_path / "straight"))
    )


def test_the_start_is_evaluated_once_and_never_the_best(linear, stream, tmp_path):
    seen = []

    def evaluate(params, step):
        seen.append(step)
        return {"ade": step}

    settings = {"eval_every": 3, "eval_at_start": True, "save_every": 3, "best_metric": "ade"}
    # Left by a run that was killed before its first checkpoint.
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval/ade": 7}\n')
    trainer(3, **settings).fit(linear(), stream(), tmp_path, evaluate)
    trainer(6, **settings).fit(linear(), stream(), tmp_path, evaluate)
    assert seen == [0, 3, 6]
    assert [line["eval/ade"] for line in lines(tmp_path) if "eval/ade" in line] == [0, 3, 6]
    best, third = load_params(tmp_path), load_params(tmp_path / "checkpoints" / "3")
    np.testing.assert_array_equal(best["weight"], third["weight"])
