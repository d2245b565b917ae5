"""Launch files: what they may say, and how they are refused."""

from pathlib import Path

import pytest

from recogdrive.experiment import ConfigurationError
from recogdrive.launch.plan import gin_value, read_plan
from recogdrive.launch.sweep_file import read_sweep

ONE = '[[experiments]]\nexperiment = "baseline_stopped"\n'
EXAMPLES = Path(__file__).parents[3] / "launch" / "examples"


def test_shared_settings_come_before_a_runs_own(launch_file, tmp_path):
    plan = read_plan(
        launch_file(
            'slots = ["cpu*2"]\nbindings = { VAL_SCENES = 4 }\nenv = { A = 1, B = "b" }\n'
            + ONE
            + 'name = "x"\non = "cpu"\nbindings = ["VAL_SCENES=8"]\nenv = { B = "c" }\n'
        )
    )
    (run,) = plan.runs
    assert plan.slots == ("cpu*2",) and plan.root == tmp_path / "runs"
    assert run.arguments() == [
        "--experiment=baseline_stopped",
        f"--workdir={tmp_path / 'runs' / 'x'}",
        "--gin_bindings=VAL_SCENES=4",
        "--gin_bindings=VAL_SCENES=8",
    ]
    assert dict(run.env) == {"A": "1", "B": "c"} and run.on == "cpu"


def test_toml_values_become_values_of_gin():
    values = [True, 32, 1e-4, 'runs/a "b"', [1, "x"], {"a": 0.5}]
    assert [gin_value(v, "f") for v in values] == [
        "True",
        "32",
        "0.0001",
        '"runs/a \\"b\\""',
        '[1, "x"]',
        '{"a": 0.5}',
    ]


def test_a_parameter_with_a_dot_needs_no_quotes(launch_file):
    (run,) = read_plan(launch_file(ONE + "bindings = { Trainer.seed = 1, VAL_SCENES = 4 }\n")).runs
    assert run.bindings == ("Trainer.seed=1", "VAL_SCENES=4")


def test_naming_another_runs_folder_waits_for_it(launch_file, tmp_path):
    plan = read_plan(
        launch_file(
            '[[experiments]]\nname = "eval"\nexperiment = "debug_eval"\nbindings = { PARENT = "{run:il}" }\n'
            '[[experiments]]\nname = "il"\nexperiment = "debug_il"\n'
        )
    )
    assert plan.runs[0].after == ("il",)
    assert plan.runs[0].bindings == (f'PARENT="{tmp_path / "runs" / "il"}"',)


def test_the_configuration_of_a_run_is_the_one_it_would_keep(launch_file):
    (run,) = read_plan(launch_file(ONE + "bindings = { VAL_SCENES = 4 }\n")).runs
    text = run.configuration()
    assert "run.stage = @EvaluateAgents()" in text and text.rstrip().endswith("VAL_SCENES=4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no experiments"),
        ("experiment = [", "is no TOML"),
        ("slotz = []\n" + ONE, "unknown key 'slotz'. Did you mean 'slots'"),
        (ONE + "afer = []", "unknown key 'afer'. Did you mean 'after'"),
        (ONE + 'after = ["baseline_stoped"]', "comes after 'baseline_stoped'. Did you mean 'baseline_stopped'"),
        (ONE + 'after = ["baseline_stopped"]', "in a circle: baseline_stopped"),
        (ONE + ONE, "two experiments are called 'baseline_stopped'"),
        (ONE + ONE + 'name = "b"\nworkdir = "RUNS/baseline_stopped"', "share the folder"),
        (ONE + 'on = "npu"', "must be a kind of slot"),
        (ONE + 'name = "a/b"', "must be letters"),
        (ONE + 'name = "logs"', "and not logs"),
        (ONE + 'bindings = { VAL_SCENES = "{run:y}" }', "reads {run:y}. "),
        (ONE + "bindings = { X = 2026-01-01 }", "has no form in gin"),
        (ONE + "bindings = { 'X =' = 1 }", "is no macro"),
        (ONE + "bindings = { VAL_SCENE = 3 }", "no file of it defines 'VAL_SCENE'. Did you mean 'VAL_SCENES'"),
        (ONE + "env = 3", "env must be a table"),
        (ONE + "bindings = 3", "bindings=3 must be a list of texts"),
        ('[[experiments]]\nexperiment = "baseline_stoped"', "Did you mean 'baseline_stopped'"),
        ('[[experiments]]\nname = "x"\n', "Nothing to run"),
        (ONE + 'gin_files = ["gin/option/emma.gin"]', "gin/option/ema.gin"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(launch_file, tmp_path, text, message):
    path = launch_file(text.replace("RUNS", str(tmp_path / "runs")))
    with pytest.raises(ConfigurationError) as refusal:
        read_plan(path)
    assert message in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="Cannot read .*nowhere.toml: No such file"):
        read_plan(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda p: p.stem)
def test_an_example_is_a_launch_file_or_a_sweep_that_reads(path):
    if "[space" in path.read_text():
        assert read_sweep(path).space
    else:
        assert len(read_plan(path).runs) >= 4
