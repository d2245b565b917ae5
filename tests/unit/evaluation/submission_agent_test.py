"""A submission as an agent: its plans by token, nothing for scenes it has none for."""

import numpy as np
import pytest

from recogdrive.evaluation.agents import Agent
from recogdrive.evaluation.open_loop import evaluate_open_loop
from recogdrive.evaluation.submission import Team, write_submission
from recogdrive.evaluation.submission_agent import SubmissionAgent

TEAM = Team("T", "A", "e", "I", "C")


def shifted(scene, metres):
    """The driven trajectory, so many metres to the left."""
    return np.add(scene.future[:8], [0, metres, 0]).astype(np.float32)


@pytest.fixture
def scenes(make_scene):
    return [make_scene(i) for i in range(3)]


@pytest.fixture
def submission(tmp_path, scenes):
    """Plans that are the driven trajectory, shifted by the seed's number of metres to the left."""
    seeds = [{s.token: shifted(s, seed) for s in scenes} for seed in range(3)]
    return write_submission(tmp_path / "submission.pkl", seeds, TEAM, tokens=[s.token for s in scenes]).path


def test_plans_come_by_token_whatever_the_order(submission, scenes):
    agent = SubmissionAgent(submission, seed=1)
    assert isinstance(agent, Agent) and agent.name == "submission"
    planned = agent.plan(scenes[::-1])
    assert planned.shape == (3, 8, 3) and planned.dtype == np.float32
    for plan, scene in zip(planned, scenes[::-1], strict=True):
        np.testing.assert_array_equal(plan, shifted(scene, 1))


def test_it_is_evaluated_like_any_agent(submission, scenes):
    agents = [SubmissionAgent(submission), SubmissionAgent(submission, seed=2, name="third seed")]
    evaluation = evaluate_open_loop(agents, [("val", scenes)])
    assert [row.ade for row in evaluation.rows_of("val", "submission")] == [0.0] * 3
    assert [row.ade for row in evaluation.rows_of("val", "third seed")] == pytest.approx([2.0] * 3, rel=1e-6)


def test_scenes_without_a_plan_are_named_and_counted(submission, make_scene, scenes):
    strangers = [make_scene(i) for i in (7, 8)]
    with pytest.raises(ValueError, match=f"no plan for 2 of the 5 .*: {strangers[0].token}, {strangers[1].token}. "):
        SubmissionAgent(submission).plan([*scenes, *strangers])


def test_plans_of_both_stages_are_found(tmp_path, make_scene):
    first, second = make_scene(1), make_scene(2)
    path = write_submission(
        tmp_path / "submission.pkl",
        [{first.token: np.zeros((8, 3))}],
        TEAM,
        tokens=[first.token],
        second_stage=[{second.token: np.ones((8, 3))}],
        second_stage_tokens=[second.token],
    ).path
    np.testing.assert_array_equal(SubmissionAgent(path).plan([second, first])[:, 0, 0], [1.0, 0.0])


def test_a_seed_that_is_not_there_is_refused(submission):
    with pytest.raises(ValueError, match="no seed 3: it holds 3, counted from 0"):
        SubmissionAgent(submission, seed=3)


def test_a_file_that_is_not_there_yet_is_asked_for_when_plans_are(submission, tmp_path, scenes):
    agent = SubmissionAgent(tmp_path / "later.pkl", seed=2)
    with pytest.raises(FileNotFoundError, match=r"no submission at .*later\.pkl: .* or set SUBMISSION"):
        agent.plan(scenes)
    submission.rename(tmp_path / "later.pkl")
    np.testing.assert_array_equal(agent.plan(scenes[:1])[0], shifted(scenes[0], 2))


def test_no_file_and_a_damaged_one_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="set SUBMISSION to the path"):
        SubmissionAgent(None)
    (tmp_path / "submission.pkl").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"submission\.pkl"):
        SubmissionAgent(tmp_path / "submission.pkl")
