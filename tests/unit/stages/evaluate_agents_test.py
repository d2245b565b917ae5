"""Evaluation of agents that need no weights of the run."""

import json

import numpy as np
import pytest

from recogdrive.composition import Composition
from recogdrive.data.splits import PlanningSplits
from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.evaluation.agents import ConstantVelocity, Human, Stopped
from recogdrive.experiment import find_experiment
from recogdrive.run_folder import RunFolder
from recogdrive.stages.evaluate_agents import EvaluateAgents
from recogdrive.stages.open_loop import OpenLoop

SPLITS = PlanningSplits(evaluate=[("val", lambda: SyntheticTown(num_scenes=2, seed=5, name="town_val"))])


def folder(path):
    return RunFolder(path, Composition(find_experiment("baseline_constant_velocity"), "A = 1\n"), None)


def test_every_agent_is_a_row_and_the_first_is_the_reports_subject(tmp_path):
    figures = EvaluateAgents([ConstantVelocity()], SPLITS, OpenLoop()).run(folder(tmp_path), None)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary) == ["constant_velocity", "stopped", "human"]
    assert figures["human/fde"] == 0.0 and figures["stopped/fde"] == summary["stopped"]["fde"]
    town = SyntheticTown(num_scenes=2, seed=5, name="town_val")
    ends = [np.linalg.norm(town[i].future[7, :2].astype(np.float32)) for i in range(2)]
    assert summary["stopped"]["fde"] == pytest.approx(np.mean(ends), rel=1e-6)
    assert "constant_velocity" in (tmp_path / "report" / "index.html").read_text()
    assert json.loads((tmp_path / "run.json").read_text())["data"]["evaluate val"].startswith("2 scenes of town_val")


def test_several_agents_stand_before_the_baselines_that_are_left(tmp_path):
    stage = EvaluateAgents([Human(), ConstantVelocity()], SPLITS, OpenLoop(baselines=[Stopped(), Human()]))
    stage.run(folder(tmp_path), None)
    assert list(json.loads((tmp_path / "summary.json").read_text())) == ["human", "constant_velocity", "stopped"]


@pytest.mark.parametrize("agents", [[], [Stopped(), Stopped()]])
def test_no_agent_and_two_of_a_name_are_refused(agents):
    with pytest.raises(ValueError, match="name at least one, each once"):
        EvaluateAgents(agents, SPLITS, OpenLoop())


def test_a_parent_whose_weights_nobody_would_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match="would not be read: stopped start from no run"):
        EvaluateAgents([Stopped()], SPLITS, OpenLoop()).run(folder(tmp_path / "run"), tmp_path)


def test_the_description_names_splits_and_agents():
    description = EvaluateAgents([Stopped(), Human()], SPLITS, OpenLoop()).describe()
    assert description.data["evaluate val"].startswith("2 scenes of town_val")
    assert description.notes == ["evaluated: stopped, human"]
