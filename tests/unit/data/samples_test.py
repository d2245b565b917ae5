"""From a scene to a row of a batch."""

import dataclasses
import pickle

import ml_dtypes
import numpy as np
import pytest

from recogdrive.data.context import SceneTokens
from recogdrive.data.samples import (
    PlannerSamples,
    filled_batches,
    planner_inputs,
    planner_sample,
    planner_samples,
    stack_samples,
    status_feature,
)
from recogdrive.data.types import Context


class OneScene:
    """A split of `size` scenes that differ in their first future x, and counts how often each is built."""

    name = "fake"
    report = {}

    def __init__(self, scene, size):
        self.scene, self.size, self.built = scene, size, []
        self.tokens = tuple(f"{i:016x}" for i in range(size))

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.built.append(index)
        future = self.scene.future.copy()
        future[0, 0] = index
        return dataclasses.replace(self.scene, future=future)

    def log_of(self, index):
        return "log_a"


def test_status_is_command_then_velocity_then_acceleration(straight_scene):
    np.testing.assert_allclose(status_feature(straight_scene), [0, 1, 0, 0, 10.0, 0.1, -0.5, 0.2], rtol=1e-6)


def test_a_sample_has_the_shapes_and_types_of_the_contract(straight_scene):
    context = SceneTokens(num_map_tokens=5, num_agent_tokens=3)
    sample = planner_sample(straight_scene, context, index=7)
    assert {k: (v.shape, v.dtype.name) for k, v in sample.items()} == {
        "context": ((8, context.width), "float32"),
        "context_mask": ((8,), "bool"),
        "history_trajectory": ((4, 3), "float32"),
        "status_feature": ((8,), "float32"),
        "trajectory": ((8, 3), "float32"),
        "index": ((), "int32"),
    }


def test_the_target_is_the_first_four_seconds(straight_scene):
    sample = planner_sample(straight_scene, SceneTokens(), index=0)
    np.testing.assert_allclose(sample["trajectory"][:, 0], 4.5 * np.arange(1, 9), rtol=1e-6)
    np.testing.assert_allclose(sample["history_trajectory"][:, 0], [-15, -10, -5, 0], atol=1e-6)


@pytest.mark.parametrize("future, known", [(None, 0), (np.zeros((7, 3)), 7)])
def test_a_scene_without_four_seconds_of_future_is_refused(straight_scene, future, known):
    scene = dataclasses.replace(straight_scene, future=future)
    with pytest.raises(ValueError, match=f"{scene.token} of log log_a has {known} future poses; imitation needs 8"):
        planner_sample(scene, SceneTokens(), index=0)


def test_a_number_that_is_not_finite_is_refused_with_its_place(straight_scene):
    future = straight_scene.future.copy()
    future[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"00000000000000aa of log log_a: trajectory\[2, 1\] is not finite"):
        planner_sample(dataclasses.replace(straight_scene, future=future), SceneTokens(), index=0)


def test_inputs_need_no_future_and_hold_no_target(straight_scene):
    inputs = planner_inputs(dataclasses.replace(straight_scene, future=None), SceneTokens())
    assert set(inputs) == {"context", "context_mask", "history_trajectory", "status_feature"}


def test_samples_are_made_once_when_kept(straight_scene):
    source = OneScene(straight_scene, 3)
    samples = PlannerSamples(source, SceneTokens())
    assert samples[1] is samples[1]
    assert source.built == [1]


def test_samples_are_made_anew_when_not_kept(straight_scene):
    source = OneScene(straight_scene, 3)
    samples = PlannerSamples(source, SceneTokens(), keep=False)
    np.testing.assert_array_equal(samples[1]["trajectory"], samples[1]["trajectory"])
    assert source.built == [1, 1]


def test_a_worker_process_receives_no_kept_samples(straight_scene):
    samples = PlannerSamples(OneScene(straight_scene, 3), SceneTokens())
    kept = samples[0]
    copy = pickle.loads(pickle.dumps(samples))
    assert copy.source.built == [0]
    np.testing.assert_array_equal(copy[0]["context"], kept["context"])
    assert copy.source.built == [0, 0]


def test_filled_batches_give_every_sample_once_and_fill_the_last(straight_scene):
    samples = PlannerSamples(OneScene(straight_scene, 5), SceneTokens())
    batches = list(filled_batches((samples[i] for i in range(5)), 2))
    assert [rows for _, rows in batches] == [2, 2, 1]
    assert [batch["index"].tolist() for batch, _ in batches] == [[0, 1], [2, 3], [4, 4]]
    assert np.concatenate([b["trajectory"][:n, 0, 0] for b, n in batches]).tolist() == [0, 1, 2, 3, 4]


def test_stacking_adds_a_leading_axis():
    rows = [{"a": np.array([1, 2])}, {"a": np.array([3, 4])}]
    assert stack_samples(rows)["a"].tolist() == [[1, 2], [3, 4]]


def test_bfloat16_tokens_stay_so_and_others_become_float32(straight_scene):
    for given, kept in ((ml_dtypes.bfloat16, ml_dtypes.bfloat16), (np.float64, np.float32), (np.float16, np.float32)):
        made = planner_inputs(
            straight_scene, lambda scene, given=given: Context(np.ones((2, 3), given), np.ones(2, bool))
        )
        assert made["context"].dtype == kept


def test_bfloat16_tokens_that_are_not_finite_are_refused(straight_scene):
    tokens = np.array([[1.0, np.nan]], ml_dtypes.bfloat16)
    with pytest.raises(ValueError, match=r"context\[0, 1\] is not finite"):
        planner_inputs(straight_scene, lambda scene: Context(tokens, np.ones(1, bool)))


def test_samples_are_the_context_sources_own_where_it_has_them(straight_scene):
    class Whole(SceneTokens):
        def samples(self, source):
            return [source.name]

    source = OneScene(straight_scene, 3)
    assert planner_samples(source, Whole()) == ["fake"]
    made = planner_samples(source, SceneTokens(), keep=False)
    assert isinstance(made, PlannerSamples) and not made.keep
