"""Sweeps with stand-ins for runs: what is searched, told, pruned, continued and refused."""

import csv
import json
import re
import signal
import subprocess
import sys
import time

import optuna
import pytest

from recogdrive.experiment import ConfigurationError
from recogdrive.launch.study import distribution, read_objective
from recogdrive.launch.sweep import main
from recogdrive.launch.sweep_file import Knob, Objective, read_sweep

HEAD = 'experiment = "debug_il"\n'
OBJECTIVE = '[objective]\nmetric = "planner/pdms"\ndirection = "maximize"\n'
SPACE = "[space]\nLEARNING_RATE = { low = 1e-4, high = 1e-2, log = true }\n"

SCORING = """
import json, pathlib, sys
folder = next(a.split('=')[1] for a in sys.argv if a.startswith('--workdir='))
pathlib.Path(folder, 'summary.json').write_text(json.dumps({'planner': {'pdms': 0.5}}))
"""


@pytest.fixture
def sweep_file(launch_file, fake_command):
    """Function: lines before the tables, tables -> path of a sweep over stand-ins that are best at 0.003."""

    def write(head="", tables=OBJECTIVE + SPACE, behaviour="score"):
        command = f"command = {json.dumps(fake_command)}\nslots = ['cpu*2']\n"
        return launch_file(f"{HEAD}{command}bindings = {{ \"Fake.behaviour\" = '{behaviour}' }}\n{head}\n{tables}")

    return write


@pytest.fixture
def trials(tmp_path):
    """Function: rows of trials.csv."""

    def read():
        with (tmp_path / "runs" / "trials.csv").open() as file:
            return list(csv.DictReader(file))

    return read


def test_trials_run_in_parallel_slots_and_the_best_is_written(sweep_file, trials, tmp_path, capsys):
    assert main([str(sweep_file("trials = 5"))]) == 0
    printed = capsys.readouterr().out
    rows = trials()
    assert [row["state"] for row in rows] == ["complete"] * 5
    best = max(rows, key=lambda row: float(row["planner/pdms"]))
    assert f"LEARNING_RATE = {best['LEARNING_RATE']}" in (tmp_path / "runs" / "best.gin").read_text()
    assert f"of {int(best['trial']):04d} with LEARNING_RATE=" in printed
    assert all(float(r["planner/pdms"]) == 1 - (float(r["LEARNING_RATE"]) - 0.003) ** 2 * 1e4 for r in rows)
    assert re.search(r"trial_0000 +finished +cpu#1 .* [01]\.?\d*  LEARNING_RATE 0\.00", printed)


def test_the_same_command_goes_on_with_the_trials_that_are_there(sweep_file, trials):
    main([str(sweep_file("trials = 2"))])
    before = trials()
    assert main([str(sweep_file("trials = 4"))]) == 0
    assert trials()[:2] == before and len({row["LEARNING_RATE"] for row in trials()}) == 4


def test_an_interrupted_trial_is_continued_in_its_folder_with_its_values(sweep_file, trials, tmp_path):
    path = sweep_file("trials = 1", behaviour="wait")
    process = subprocess.Popen([sys.executable, "-m", "recogdrive.launch.sweep", str(path)], stdout=subprocess.PIPE)
    ready = tmp_path / "runs" / "trial_0000" / "ready"
    end = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert b"go on with: python -m recogdrive.launch.sweep" in process.communicate(timeout=30)[0]
    assert process.returncode == 75 and trials()[0]["state"] == "running"
    kept = trials()[0]["LEARNING_RATE"]
    # Same settings but for the stand-in, which is another program now.
    program = tmp_path / "score.py"
    program.write_text(SCORING)
    path.write_text(
        re.sub(r"command = .*", f"command = {json.dumps([sys.executable, str(program)])}", path.read_text())
    )
    assert main([str(path)]) == 0
    assert [(row["state"], row["LEARNING_RATE"]) for row in trials()] == [("complete", kept)]


def test_a_failed_trial_does_not_end_the_search_and_can_be_tried_again(sweep_file, trials, capsys):
    path = sweep_file("trials = 2", behaviour="fail")
    assert main([str(path)]) == 1
    assert "no trial gave planner/pdms" in capsys.readouterr().out
    assert [row["state"] for row in trials()] == ["fail", "fail"]
    assert main([str(path)]) == 1 and len(trials()) == 2
    main([str(path), "--retry_failed"])
    assert [row["LEARNING_RATE"] for row in trials()[2:]] == [row["LEARNING_RATE"] for row in trials()[:2]]


def test_a_finished_trial_without_its_figure_fails_and_says_what_there_is(sweep_file, trials, capsys):
    tables = OBJECTIVE.replace("planner/pdms", "planner/epdms") + SPACE
    assert main([str(sweep_file("trials = 1", tables))]) == 1
    assert "summary.json has no planner/epdms; it has planner/pdms" in capsys.readouterr().out


def test_a_study_of_other_settings_is_refused(sweep_file, capsys):
    main([str(sweep_file("trials = 1"))])
    assert main([str(sweep_file("trials = 2", behaviour="fail"))]) == 2
    assert "holds trials with another configuration" in capsys.readouterr().err
    assert main([str(sweep_file("trials = 2", OBJECTIVE.replace("max", "min") + SPACE))]) == 2


def test_a_trial_that_does_worse_than_the_others_did_is_stopped(sweep_file, tmp_path):
    """Optuna's median rule on the curve; the stand-in of the last trial writes a low point and waits."""
    program = tmp_path / "curve.py"
    program.write_text(
        "import json, pathlib, signal, sys, time\n"
        "folder = pathlib.Path(next(a.split('=')[1] for a in sys.argv if a.startswith('--workdir=')))\n"
        "folder.mkdir(exist_ok=True)\n"
        "last = folder.name == 'trial_0002'\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "value = 0.1 if last else 0.8\n"
        "(folder / 'metrics.jsonl').write_text(json.dumps({'step': 7, 'eval/pdms': value}) + '\\n')\n"
        "(folder / 'summary.json').write_text(json.dumps({'planner': {'pdms': value}}))\n"
        "time.sleep(60 if last else 0)\n"
    )
    tables = OBJECTIVE + SPACE + '[pruning]\nmetric = "eval/pdms"\nstartup_trials = 2\n'
    path = sweep_file("trials = 3", tables)
    path.write_text(
        re.sub(r"command = .*", f"command = {json.dumps([sys.executable, str(program)])}", path.read_text()).replace(
            "cpu*2", "cpu"
        )
    )
    assert main([str(path)]) == 0
    summary = json.loads((tmp_path / "runs" / "launch.json").read_text())["runs"]
    assert [run["state"] for run in summary.values()] == ["finished", "finished", "pruned"]
    assert summary["trial_0002"]["note"].endswith("(at step 7)")


def test_print_only_shows_the_space_and_the_command(sweep_file, tmp_path, capsys):
    assert main([str(sweep_file()), "--print_only"]) == 0
    printed = capsys.readouterr().out
    assert "LEARNING_RATE: 0.0001 ... 0.01 by factors" in printed
    assert "for the most planner/pdms of summary.json" in printed
    assert printed.rstrip().endswith("--gin_bindings=LEARNING_RATE=...") and not (tmp_path / "runs").exists()


def test_a_knob_may_be_a_parameter(sweep_file):
    sweep = read_sweep(sweep_file("", OBJECTIVE + "[space]\nTrainer.ema_decay = [0.9, 0.99]\n"))
    assert sweep.space == {"Trainer.ema_decay": Knob(choices=(0.9, 0.99))}
    assert sweep.run(3, {"Trainer.ema_decay": 0.9}).bindings[-1] == "Trainer.ema_decay=0.9"


def test_knobs_are_ranges_of_numbers_or_choices():
    assert distribution(Knob(choices=(16, 32))) == optuna.distributions.CategoricalDistribution((16, 32))
    assert distribution(Knob(low=2, high=8, step=2)) == optuna.distributions.IntDistribution(2, 8, step=2)
    assert distribution(Knob(low=1, high=8.0)) == optuna.distributions.FloatDistribution(1, 8)
    assert distribution(Knob(low=1e-5, high=1e-3, log=True)).log


def test_the_figure_is_the_last_or_the_best_of_the_curve(tmp_path):
    points = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 2.0}, {"step": 3, "eval/x": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))

    def figure(metric, maximize, best):
        return read_objective(tmp_path, Objective(metric, "metrics.jsonl", maximize, best))

    assert [figure("loss", False, False), figure("loss", False, True), figure("loss", True, True)] == [2.0, 1.0, 3.0]
    with pytest.raises(ValueError, match="eval/x is None, no finite number"):
        figure("eval/x", True, False)
    with pytest.raises(ValueError, match=r"metrics.jsonl has no eval/pdms; it has eval/x, loss"):
        figure("eval/pdms", True, False)


@pytest.mark.parametrize(
    ("head", "tables", "message"),
    [
        ("", OBJECTIVE, "has no [space]"),
        ("trails = 3", OBJECTIVE + SPACE, "unknown key 'trails'. Did you mean 'trials'"),
        ("trials = 0", OBJECTIVE + SPACE, "trials=0 must be a whole number from 1 on"),
        ("sampler = 'grid'", OBJECTIVE + SPACE, "must be one of tpe, random"),
        ("on = 'npu'", OBJECTIVE + SPACE, "must be a kind of slot"),
        ("", OBJECTIVE + "[space]\nLEARNING_RAT = [1, 2]", "no macro 'LEARNING_RAT'. Did you mean 'LEARNING_RATE'"),
        ("", OBJECTIVE + "[space]\nBATCH_SIZE = [1]", "at least two choices"),
        ("", OBJECTIVE + "[space]\nBATCH_SIZE = 3", "must be a range"),
        ("", OBJECTIVE + "[space]\nBATCH_SIZE = [[1], [2]]", "must be numbers, texts, true or false"),
        ("", OBJECTIVE + "[space]\nBATCH_SIZE = { low = 1 }", "needs numbers low and high"),
        ("", OBJECTIVE + "[space]\nBATCH_SIZE = { low = 2, high = 1 }", "needs low < high"),
        ("", OBJECTIVE + "[space]\nBATCH_SIZE = { low = 0, high = 1, log = true }", "low > 0 where log"),
        ("", OBJECTIVE + "[space]\nBATCH_SIZE = { low = 1, high = 9, log = true, step = 2 }", "both log and step"),
        ("", OBJECTIVE.replace("planner/pdms", "pdms") + SPACE, "must name a figure"),
        ("", OBJECTIVE.replace("direction", "# direction") + SPACE, "must say 'maximize' or 'minimize'"),
        ("", OBJECTIVE + SPACE + "[pruning]\n", "pruning.metric must name"),
        ("space = 3", OBJECTIVE, "space must be a table"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(sweep_file, head, tables, message):
    with pytest.raises(ConfigurationError) as refusal:
        read_sweep(sweep_file(head, tables))
    assert message in str(refusal.value)


def test_a_sweep_without_optuna_says_how_to_install_it(sweep_file, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "recogdrive.launch.study")
    assert main([str(sweep_file())]) == 2
    assert "pip install 'recogdrive[sweep]'" in capsys.readouterr().err
