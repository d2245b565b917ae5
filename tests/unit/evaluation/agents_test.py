import gin
import numpy as np
import pytest

from recogdrive.evaluation.agents import Agent, ConstantVelocity, Human, Stopped, recorded_trajectories


def test_constant_velocity_drives_straight_with_the_length_of_the_velocity(make_scene):
    planned = ConstantVelocity().plan([make_scene(velocity=(3.0, 4.0)), make_scene(velocity=(-2.0, 0.0))])

    assert planned.dtype == np.float32
    np.testing.assert_array_equal(planned[0, :, 0], [2.5, 5.0, 7.5, 10.0, 12.5, 15.0, 17.5, 20.0])
    np.testing.assert_array_equal(planned[1, :, 0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    np.testing.assert_array_equal(planned[:, :, 1:], 0.0)


def test_constant_velocity_reads_the_current_frame_of_the_history(make_scene):
    scene = make_scene()
    scene.ego.velocity[:3] = 99.0
    scene.ego.velocity[3] = (1.0, 0.0)

    assert ConstantVelocity().plan([scene])[0, -1, 0] == 4.0


def test_stopped_plans_the_origin_at_any_speed(make_scene):
    planned = Stopped().plan([make_scene(speed_mps=0.0), make_scene(speed_mps=20.0)])

    assert planned.shape == (2, 8, 3) and planned.dtype == np.float32
    np.testing.assert_array_equal(planned, 0.0)


def test_human_returns_the_first_eight_recorded_poses(make_scene):
    future = np.arange(30.0).reshape(10, 3)

    planned = Human().plan([make_scene(future=future)])

    assert planned.shape == (1, 8, 3) and planned.dtype == np.float32
    np.testing.assert_array_equal(planned[0], future[:8])


@pytest.mark.parametrize(
    ("future", "problem"),
    [
        (None, "no recorded future"),
        (np.zeros((7, 3)), "shorter than 8 poses"),
        (np.full((8, 3), np.nan), "non-finite values"),
    ],
)
def test_human_names_the_scene_whose_future_cannot_be_driven(make_scene, future, problem):
    scenes = [make_scene(1), make_scene(2, token="00000000deadbeef", future=future)]

    with pytest.raises(ValueError, match=f"1 of 2 scenes have .*{problem}: 00000000deadbeef"):
        Human().plan(scenes)


def test_a_long_list_of_scenes_without_future_is_cut_and_counted(make_scene):
    scenes = [make_scene(i, future=None) for i in range(8)]

    with pytest.raises(ValueError, match=r"8 of 8 scenes .* and 3 more"):
        recorded_trajectories(scenes)


@pytest.mark.parametrize("agent", [ConstantVelocity(), Stopped(), Human()])
def test_no_scenes_give_an_empty_plan_of_the_right_shape(agent):
    assert isinstance(agent, Agent)
    assert agent.plan([]).shape == (0, 8, 3)


def test_every_agent_can_be_named_in_a_gin_file():
    @gin.configurable(module="agents_test")
    def baseline_names(agents):
        return [agent.name for agent in agents]

    gin.parse_config("baseline_names.agents = [@ConstantVelocity(), @Stopped(), @Human()]")

    assert baseline_names() == ["constant_velocity", "stopped", "human"]
