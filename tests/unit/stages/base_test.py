"""Running and describing a composed stage."""

import json
from pathlib import Path

import gin
import jax
import pytest

from recogdrive.composition import Composition
from recogdrive.experiment import ConfigurationError, Experiment, find_experiment
from recogdrive.hosts import member
from recogdrive.stages import base
from recogdrive.stages.base import Description, Parameter
from recogdrive.training import goodput, profiling
from recogdrive.training.checkpoint import CheckpointError
from recogdrive.training.preemption import Preempted
from recogdrive.training.time_account import TimeAccount
from recogdrive.training.watch import STOPPED_EXIT_CODE, ThresholdReached


class FakeStage:
    """Does what it is told, and notes it for all its copies: gin hands out deep copies of bound objects."""

    saw = []

    def __init__(self, does):
        self.does = does
        self.saw.clear()

    def run(self, folder, parent):
        self.saw.append((folder.path, parent))
        return self.does(folder, parent)

    def describe(self):
        return Description(
            data={"train": "5 scenes", "evaluate val": "2 scenes"},
            parameters=[Parameter("a.weight", (3, 4), "float32", 12), Parameter("scale", (), "float32", 1)],
            memory_bytes={"weights": 52, "step": 3 * 2**20},
        )


def stage_that(does):
    stage = FakeStage(does)
    gin.bind_parameter("run.stage", stage)
    return stage


def raises(error):
    def does(folder, parent):
        raise error

    return does


def composition(name="debug_il"):
    return Composition(find_experiment(name), "A = 1\n")


def status(folder):
    return json.loads((folder / "run.json").read_text())["attempts"][-1]["status"]


def test_a_stage_runs_in_its_folder_and_ends_finished(tmp_path, capsys):
    def does(folder, parent):
        (folder.path / "report").mkdir()
        (folder.path / "report" / "index.html").write_text("")
        return {}

    stage = stage_that(does)
    assert base.execute(composition(), tmp_path / "run") == 0
    assert stage.saw == [(tmp_path / "run", None)]
    assert status(tmp_path / "run") == "finished"
    shown = capsys.readouterr().out
    assert str(tmp_path / "run/report/index.html") in shown and "tensorboard" not in shown


def trains(folder, parent, ends_with=None):
    """As a training stage leaves its account and a trace."""
    account = goodput.GoodputFile(folder.path, TimeAccount(), 0)
    account.note(5)
    (folder.path / "tensorboard" / "plugins" / "profile" / "steps_2_to_4").mkdir(parents=True)
    if ends_with is not None:
        raise ends_with
    return {}


def test_a_run_that_trained_ends_with_where_its_time_went_and_where_its_traces_are(tmp_path, capsys):
    stage_that(trains)
    assert base.execute(composition(), tmp_path) == 0
    shown = capsys.readouterr().out
    assert "time of training " in shown and "5 steps, " in shown and "before and after: data" in shown
    (place,) = [number for number, line in enumerate(shown.splitlines()) if line.startswith("profile ")]
    assert shown.splitlines()[place].endswith("plugins/profile/steps_2_to_4")
    assert f"--logdir {tmp_path}/tensorboard  # tab Profile, run steps_2_to_4" in shown.splitlines()[place + 1]
    assert json.loads((tmp_path / "run.json").read_text())["attempts"][0]["goodput"]["to_step"] == 5


def test_the_command_that_shows_a_trace_installs_what_it_needs(tmp_path, capsys, monkeypatch):
    stage_that(trains)
    for found, shown in ((None, True), ("spec", False)):
        monkeypatch.setattr(base, "find_spec", lambda name, found=found: found)
        base.execute(composition(), tmp_path / str(shown))
        assert ("pip install 'recogdrive[profile]' && " in capsys.readouterr().out) is shown


def test_a_run_that_trained_nothing_this_time_tells_of_no_time(tmp_path, capsys):
    stage_that(trains)
    base.execute(composition(), tmp_path)
    capsys.readouterr()
    stage_that(lambda folder, parent: {})
    base.execute(composition(), tmp_path)
    assert "time of training" not in capsys.readouterr().out


def test_a_preempted_run_shows_where_its_time_went(tmp_path, capsys):
    stage_that(lambda folder, parent: trains(folder, parent, Preempted(5)))
    assert base.execute(composition(), tmp_path) == 75
    assert "time of training" in capsys.readouterr().out


def test_steps_to_trace_are_refused_where_nothing_trains(tmp_path):
    stage_that(lambda folder, parent: {})
    with pytest.raises(ConfigurationError, match="--profile_steps traces training steps, and debug_il trains nothing"):
        base.execute(composition(), tmp_path / "run", profiling.StepRange(1, 3))
    assert not (tmp_path / "run").exists()


def test_steps_to_trace_reach_the_training_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeStage, "step_shapes", None, raising=False)
    monkeypatch.setattr(profiling, "_is_loaded", lambda library: False)
    seen = []
    stage_that(lambda folder, parent: seen.append(profiling.requested_steps(9)) or {})
    base.execute(composition(), tmp_path, profiling.StepRange(1, 3))
    assert seen == [profiling.StepRange(1, 3)]


def test_a_preempted_stage_exits_with_its_own_code_and_says_how_to_continue(tmp_path, capsys):
    stage_that(raises(Preempted(7)))
    assert base.execute(composition(), tmp_path) == 75
    assert status(tmp_path) == "preempted"
    assert "stopped after step 7, which is saved" in capsys.readouterr().err


def test_a_stage_that_a_threshold_stopped_exits_with_its_own_code_and_says_why(tmp_path, capsys):
    stage_that(raises(ThresholdReached(40, "train/kl is 0.9, above 0.5")))
    assert base.execute(composition(), tmp_path) == STOPPED_EXIT_CODE == 3
    assert status(tmp_path) == "stopped after step 40: train/kl is 0.9, above 0.5"
    assert capsys.readouterr().err.startswith("stopped after step 40: train/kl is 0.9, above 0.5\n")


@pytest.mark.parametrize("error", [ValueError("bad value"), OSError("disk"), CheckpointError("no step")])
def test_an_explained_failure_is_one_line_and_keeps_its_traceback_in_a_file(tmp_path, capsys, error):
    stage_that(raises(error))
    assert base.execute(composition(), tmp_path) == 1
    assert capsys.readouterr().err.startswith(f"error: {error}\n")
    assert "Traceback" in (tmp_path / "error.txt").read_text()
    assert status(tmp_path) == f"failed: {type(error).__name__}: {error}"


def test_any_other_failure_is_raised_and_noted(tmp_path):
    stage_that(raises(ZeroDivisionError("defect")))
    with pytest.raises(ZeroDivisionError):
        base.execute(composition(), tmp_path)
    assert status(tmp_path) == "failed: ZeroDivisionError: defect"


def test_an_experiment_with_a_parent_asks_for_it(tmp_path):
    stage_that(lambda folder, parent: {})
    with pytest.raises(ConfigurationError, match="debug_eval starts from the weights of debug_il"):
        base.execute(composition("debug_eval"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_parent_is_handed_on_as_a_path_and_recorded(tmp_path):
    stage = stage_that(lambda folder, parent: {})
    gin.bind_parameter("run.parent", str(tmp_path))
    base.execute(composition("debug_eval"), tmp_path / "run")
    assert stage.saw[0][1] == Path(tmp_path)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["parent"] == str(tmp_path)


def test_a_parent_that_is_not_there_is_refused(tmp_path):
    stage_that(lambda folder, parent: {})
    gin.bind_parameter("run.parent", str(tmp_path / "gone"))
    with pytest.raises(ConfigurationError, match="gone' does not exist"):
        base.execute(composition("debug_eval"), tmp_path / "run")


def test_a_component_that_refuses_its_parameters_is_a_configuration_error():
    gin.parse_config("import recogdrive.data.context\nrun.stage = @SceneTokens()\nSceneTokens.radius_m = -1")
    with pytest.raises(ConfigurationError, match="cannot be built: SceneTokens.radius_m=-1 must be positive"):
        base.build()


def test_a_missing_parameter_is_a_configuration_error():
    gin.parse_config("import recogdrive.data.context\nrun.stage = @ContextShape()")
    with pytest.raises(ConfigurationError, match="cannot be built: .*num_tokens"):
        base.build()


def test_a_description_shows_every_section_with_totals():
    stage_that(lambda folder, parent: {})
    text = base.describe(composition())
    headings = [line for line in text.splitlines() if line.startswith("# ") and "===" not in line]
    assert headings[0] == "# Configuration of debug_il"
    assert [h for h in headings if h in ("# Lineage", "# Data", "# Parameters", "# Memory on each device")] == [
        "# Lineage",
        "# Data",
        "# Parameters",
        "# Memory on each device",
    ]
    lines = [line.split() for line in text.splitlines()]
    assert ["a.weight", "3", "x", "4", "float32", "12"] in lines
    assert ["scale", "scalar", "float32", "1"] in lines
    assert ["total", "2", "tensors", "13"] in lines
    assert ["total", "3.0", "MiB"] in lines


def test_the_description_of_an_experiment_without_stage_says_what_is_missing():
    later = Experiment("later", "Waits.", missing="a stage of its own")
    text = base.describe(Composition(later, "A = 1\n"))
    assert "# Not in this version\n\nlater needs a stage of its own" in text
    assert "# Parameters" not in text


def test_a_stage_that_could_not_run_on_these_devices_is_refused_when_described(monkeypatch):
    def refuses(self):
        raise ValueError("batch_size=3 does not divide")

    stage_that(lambda folder, parent: {})
    monkeypatch.setattr(FakeStage, "describe", refuses)
    with pytest.raises(ConfigurationError, match="batch_size=3 does not divide"):
        base.describe(composition())


def test_a_stage_for_one_process_is_refused_to_several(tmp_path, monkeypatch):
    monkeypatch.setattr(member, "is_several", lambda: True)
    stage_that(lambda folder, parent: {})
    with pytest.raises(ConfigurationError, match="runs in one process"):
        base.execute(Composition(None, ""), tmp_path)
    assert not FakeStage.saw


def test_an_error_of_another_than_the_first_process_has_a_file_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(member, "is_lead", lambda: False)
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    stage_that(raises(ValueError("log 17 is damaged")))
    assert base.execute(Composition(None, ""), tmp_path) == base.FAILED_EXIT_CODE
    assert "log 17 is damaged" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["error.3.txt"]
