"""The trained ego-status MLP as a baseline: where its weights come from, and that it sees the current frame only."""

import gin
import jax
import numpy as np
import pytest

from recogdrive.data.types import Command
from recogdrive.evaluation.agents import Agent
from recogdrive.evaluation.ego_status_agent import EgoStatusMLPAgent
from recogdrive.models.ego_status_mlp import EgoStatusMLP
from recogdrive.models.planner.official_checkpoint import save_official

MODEL = EgoStatusMLP(hidden_dim=4)
PARAMS = MODEL.init(jax.random.key(0))


@pytest.fixture
def weights(tmp_path):
    save_official(tmp_path / "mlp.ckpt", PARAMS, MODEL)
    return tmp_path / "mlp.ckpt"


def test_it_plans_with_the_weights_of_an_official_file(weights, make_scene):
    agent = EgoStatusMLPAgent(weights, model=MODEL)
    planned = agent.plan([make_scene(speed_mps=7.0, command=Command.LEFT)])
    assert isinstance(agent, Agent) and agent.name == "ego_status_mlp"
    status = np.array([[1, 0, 0, 0, 7.0, 0.0, 0.0, 0.0]], np.float32)
    wanted = MODEL.plan(PARAMS, {"status_feature": status}, jax.random.key(0))
    np.testing.assert_allclose(planned, wanted, rtol=1e-5, atol=1e-6)


def test_a_plan_depends_on_the_current_frame_alone(weights, make_scene):
    agent = EgoStatusMLPAgent(weights, model=MODEL, batch_size=2)
    scene = make_scene(1, speed_mps=7.0)
    alone = agent.plan([scene])
    scene.ego.velocity[:3] = 99.0
    scene.ego.poses[:3] = 99.0
    among_others = agent.plan([make_scene(2), make_scene(3), scene])
    np.testing.assert_array_equal(among_others[2], alone[0])


def test_weights_that_are_not_there_are_refused_by_their_path(tmp_path):
    for name in ("nowhere", "nowhere.ckpt"):
        with pytest.raises(ValueError, match=rf"No ego-status MLP can be read from .*{name}'"):
            EgoStatusMLPAgent(tmp_path / name)


def test_weights_of_another_width_are_refused_by_their_shapes(weights):
    with pytest.raises(ValueError, match=r"(?s)No ego-status MLP.*_mlp.0.bias is \(4,\), expected \(512,\)"):
        EgoStatusMLPAgent(weights)


def test_it_can_be_named_in_a_gin_file(weights):
    @gin.configurable(module="ego_status_agent_test")
    def names(agents):
        return [agent.name for agent in agents]

    gin.parse_config(f"""
        names.agents = [@EgoStatusMLPAgent()]
        EgoStatusMLPAgent.weights = '{weights}'
        EgoStatusMLPAgent.model = @EgoStatusMLP()
        EgoStatusMLP.hidden_dim = 4
    """)
    assert names() == ["ego_status_mlp"]
