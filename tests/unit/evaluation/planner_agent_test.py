"""The planner as an agent: noise by scene, batches of one shape."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.data.context import NoContext, SceneTokens
from recogdrive.evaluation.planner_agent import PlannerAgent, planning_batches
from recogdrive.models.planner.planner import DiffusionPlanner

CONTEXT = SceneTokens(num_map_tokens=8, num_agent_tokens=4)


SIZES = {"heads": 1, "head_dim": 8, "layers": 2, "output_dim": 8, "hidden_dim": 16, "denoising_steps": 2}


@pytest.fixture(scope="module")
def planner():
    return DiffusionPlanner(CONTEXT.width, **SIZES)


@pytest.fixture(scope="module")
def params(planner):
    return planner.init(jax.random.key(0))


@pytest.fixture(scope="module")
def compiled(planner, params):
    return PlannerAgent(planner, params, CONTEXT, batch_size=2, seed=3)


@pytest.fixture
def agent(compiled, params):
    compiled.params = params
    return compiled


@pytest.fixture
def scenes(straight_scene):
    return [dataclasses.replace(straight_scene, token=f"{i:016x}") for i in range(5)]


def test_a_plan_does_not_depend_on_batch_size_or_neighbours_but_on_the_seed(planner, params, agent, scenes):
    whole = agent.plan(scenes)
    assert whole.shape == (5, 8, 3)
    np.testing.assert_allclose(agent.plan(scenes[3:]), whole[3:], atol=1e-5)
    larger = PlannerAgent(planner, params, CONTEXT, batch_size=3, seed=3)
    np.testing.assert_allclose(larger.plan(scenes), whole, atol=1e-5)
    other_seed = larger.with_seed(4)
    assert np.abs(other_seed.plan(scenes) - whole).max() > 1e-3
    np.testing.assert_array_equal(other_seed.with_seed(3).plan(scenes), larger.plan(scenes))


def test_scenes_that_differ_in_their_token_alone_get_different_noise(agent, scenes):
    assert len({tuple(plan.ravel()) for plan in agent.plan(scenes)}) == 5


def test_the_plan_is_the_planners_own_sample_with_the_scenes_noise(planner, params, agent, scenes):
    ((batch, _),) = planning_batches(scenes[:1], CONTEXT, 1)
    key = jax.random.fold_in(jax.random.key(3), batch["scene_id"][0])
    np.testing.assert_allclose(agent.plan(scenes[:1]), jax.jit(planner.sample)(params, batch, key), atol=1e-5)


def test_weights_may_change_between_plans(planner, agent, scenes):
    before = agent.plan(scenes)
    agent.params = planner.init(jax.random.key(1))
    assert np.abs(agent.plan(scenes) - before).max() > 1e-3


def test_a_scene_needs_no_recorded_future(agent, scenes):
    blind = [dataclasses.replace(scene, future=None) for scene in scenes]
    np.testing.assert_array_equal(agent.plan(blind), agent.plan(scenes))


def test_a_batch_size_that_is_not_positive_is_refused(planner, params):
    with pytest.raises(ValueError, match="batch_size=0 must be positive"):
        PlannerAgent(planner, params, CONTEXT, batch_size=0)


def test_weights_that_do_not_train_are_asked_for_once_and_join_the_others(straight_scene):
    class Frozen:
        name, context_width, asked = "frozen", 0, 0

        def frozen(self):
            self.asked += 1
            return {"height": np.float32(2.0), "length": np.float32(0.0)}

        def plan(self, params, batch, keys):
            return jnp.full((1, 8, 3), params["height"] * params["length"])

    planner = Frozen()
    agent = PlannerAgent(planner, {"length": np.float32(3.0)}, NoContext(), batch_size=1)

    assert {float(agent.plan([straight_scene]).max()) for _ in range(2)} == {6.0}
    assert planner.asked == 1
