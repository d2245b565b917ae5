"""The command line as a person uses it: a run, its folder, its continuation, its evaluation, its refusals."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ["DiffusionPlanner.layers=2", "DiffusionPlanner.heads=1"]
SHORT = [*TINY, "TRAIN_STEPS=12", "TRAIN_SCENES=24", "VAL_SCENES=6", "LOG_EVERY=2", "SAVE_EVERY=4", "EVAL_EVERY=6"]


def recogdrive(*flags, cwd, bindings=(), environment=(), timeout=240):
    command = [sys.executable, "-m", "recogdrive.main", *flags, *(f"--gin_bindings={b}" for b in bindings)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=os.environ | dict(environment)
    )


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "debug"
    result = recogdrive(
        "--experiment=debug_il_ema",
        f"--workdir={folder}",
        "--profile_steps=3:6",
        cwd=folder.parent,
        bindings=SHORT,
        environment={"JAX_PLATFORMS": "cpu"},  # Where libtpu is installed, the profiler would want its own release.
    )
    assert result.returncode == 0, result.stderr
    return folder, result


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "perf"} for row in rows]


@pytest.mark.heavy
def test_a_run_leaves_every_file_the_readme_names(finished_run):
    folder, _ = finished_run
    names = [
        *["config.gin", "operative_config.gin", "run.json", "metrics.jsonl", "tensorboard", "checkpoints"],
        *["summary.json", "scenes.parquet", "scenes.csv", "report/index.html", "export/planner.ckpt"],
    ]
    assert [name for name in names if not (folder / name).exists()] == []
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.heavy
def test_a_run_ends_by_saying_where_to_look_and_how(finished_run):
    folder, result = finished_run
    for place in ("report/index.html", "checkpoints", "tensorboard"):
        assert str(folder / place) in result.stdout
    assert "tensorboard.main --logdir" in result.stdout and "webbrowser" in result.stdout


@pytest.mark.heavy
def test_a_run_ends_by_saying_where_its_time_went_and_keeps_it(finished_run):
    folder, result = finished_run
    rows = {line[:22].strip(): line[22:].split() for line in result.stdout.splitlines() if " s " in line}
    named = ["start-up, restore", "compile", "input wait", "steps", "checkpoints (blocking)", "evaluation", "other"]
    total = float(rows["time of training"][0])
    assert sum(float(rows[name][0]) for name in named) == pytest.approx(total, abs=0.06 * len(named))
    (attempt,) = json.loads((folder / "run.json").read_text())["attempts"]
    assert attempt["goodput"]["wall_s"] == pytest.approx(total, abs=0.06)
    assert (attempt["goodput"]["from_step"], attempt["goodput"]["to_step"]) == (0, 12)


@pytest.mark.heavy
def test_steps_asked_for_are_traced_for_tensorboard(finished_run):
    folder, result = finished_run
    trace = folder / "tensorboard" / "plugins" / "profile" / "steps_3_to_5"
    assert [path.suffix for path in sorted(trace.iterdir())] == [".gz", ".pb"]
    assert str(trace) in result.stdout


@pytest.mark.heavy
def test_the_record_says_what_ran_on_what_and_how_it_ended(finished_run):
    record = json.loads((finished_run[0] / "run.json").read_text())
    assert record["experiment"] == "debug_il_ema" and record["parent"] is None
    assert record["device"]["platform"] == "cpu" and record["versions"]["jax"] and record["versions"]["torchax"]
    assert [attempt["status"] for attempt in record["attempts"]] == ["finished"]
    assert record["data"]["train"].startswith("24 scenes of town_train")


@pytest.mark.heavy
def test_summary_and_tables_agree(finished_run):
    folder, _ = finished_run
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) == {"planner", "constant_velocity", "stopped", "human"}
    assert summary["human"]["fde"] == 0.0 and summary["planner"]["scenes"] == 6
    rows = list(csv.DictReader((folder / "scenes.csv").open()))
    assert len(rows) == 24
    for agent, metrics in summary.items():
        mean = sum(float(row["fde"]) for row in rows if row["agent"] == agent) / 6
        assert mean == pytest.approx(metrics["fde"], rel=1e-9)
    table = pyarrow.parquet.read_table(folder / "scenes.parquet").to_pylist()
    assert [row["token"] for row in table] == [row["token"] for row in rows]


@pytest.mark.heavy
def test_the_same_command_on_a_finished_run_trains_nothing_and_reports_the_same(finished_run):
    folder, _ = finished_run
    before = (folder / "summary.json").read_text(), losses(folder)
    result = recogdrive("--experiment=debug_il_ema", f"--workdir={folder}", cwd=folder.parent, bindings=SHORT)
    assert result.returncode == 0, result.stderr
    assert ((folder / "summary.json").read_text(), losses(folder)) == before


@pytest.mark.heavy
def test_a_run_stopped_by_sigterm_continues_to_the_same_curve_and_weights(finished_run):
    reference, _ = finished_run
    folder = reference.parent / "stopped"
    flags = ["--experiment=debug_il_ema", f"--workdir={folder}"]
    command = [sys.executable, "-m", "recogdrive.main", *flags, *(f"--gin_bindings={b}" for b in SHORT)]
    process = subprocess.Popen(command, cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 180
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "run the same command again" in errors
    result = recogdrive(*flags, cwd=folder.parent, bindings=SHORT)
    assert result.returncode == 0, result.stderr
    assert losses(folder) == losses(reference)
    assert json.loads((folder / "summary.json").read_text()) == json.loads((reference / "summary.json").read_text())
    attempts = json.loads((folder / "run.json").read_text())["attempts"]
    assert [attempt["status"] for attempt in attempts] == ["preempted", "finished"]


@pytest.mark.heavy
@pytest.mark.parametrize("parent", ["", "export/planner.ckpt"])
def test_a_run_and_its_export_evaluate_to_the_same_figures(finished_run, tmp_path, parent, forked_command):
    folder, _ = finished_run
    bindings = [*TINY, f"PARENT='{folder / parent}'", "VAL_SCENES=6"]
    result = forked_command(
        "--experiment=debug_eval", f"--workdir={tmp_path / 'eval'}", cwd=tmp_path, bindings=bindings
    )
    assert result.returncode == 0, result.stderr
    evaluated = json.loads((tmp_path / "eval" / "summary.json").read_text())
    if parent:  # The export holds the final weights, which the run itself evaluated; a folder stands for its best step.
        trained = json.loads((folder / "summary.json").read_text())
        assert evaluated["planner"]["fde"] == pytest.approx(trained["planner"]["fde"], rel=1e-5)
    else:
        best = min(row["eval/fde"] for row in losses(folder) if "eval/fde" in row)
        assert evaluated["planner"]["fde"] == pytest.approx(best, rel=1e-5)


@pytest.mark.heavy
def test_a_dry_run_prints_what_would_run_and_writes_nothing(tmp_path):
    gone = {"OPENSCENE_DATA_ROOT": "/gone"}
    result = recogdrive("--experiment=mini_il", "--dry_run", cwd=tmp_path, environment=gone, bindings=TINY)
    assert result.returncode == 0, result.stderr
    sections = [line.removeprefix("# ") for line in result.stdout.splitlines() if line.startswith("# ")]
    assert sections[0] == "Configuration of mini_il"
    assert {"Lineage", "Data", "Parameters", "Memory on each device"} <= set(sections)
    assert "TRAIN_STEPS = " in result.stdout and "model.transformer_blocks.0.attn.to_q.weight" in result.stdout
    assert "not available: " in result.stdout and "/gone" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_the_scenes_of_every_split(tmp_path, navsim_mini, forked_command):
    there = {"OPENSCENE_DATA_ROOT": str(navsim_mini)}
    result = forked_command("--experiment=mini_il", "--dry_run", cwd=tmp_path, environment=there, bindings=TINY)
    assert "evaluate train      17 scenes" in result.stdout, result.stdout + result.stderr
    assert "evaluate other_log  18 scenes" in result.stdout


@pytest.mark.parametrize(
    "flags, bindings, message",
    [
        (["--experiment=quikstart"], [], "Did you mean 'quickstart'"),
        (["--experiment=8b_rl"], [], "8b_rl starts from the weights of 8b_il: pass --gin_bindings"),
        (["--experiment=debug_il", "extra"], [], "Unexpected argument 'extra'"),
        ([], [], "pass --experiment=NAME"),
        (["--experiment=debug_il"], ["BATCHSIZE=3"], "Did you mean 'BATCH_SIZE'"),
        (["--experiment=debug_il"], ["Trainer.step=3"], "Trainer has no parameter 'step'. Did you mean 'steps'"),
        (["--experiment=debug_il"], ["TRAIN_STEPS=-1"], "steps=-1 must be"),
        (["--experiment=debug_il"], ["CONTEXT_WIDTH=7"], "makes tokens of width 52, the planner reads 7"),
        (["--experiment=debug_eval"], [], "debug_eval starts from the weights of debug_il"),
        (["--experiment=debug_eval"], ["PARENT='/gone'"], "PARENT='/gone' does not exist"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence_without_traceback(tmp_path, flags, bindings, message, forked_command):
    result = forked_command(*flags, f"--workdir={tmp_path / 'run'}", cwd=tmp_path, bindings=bindings)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_missing_data_root_is_answered_in_a_sentence(tmp_path, forked_command):
    environment = {"OPENSCENE_DATA_ROOT": str(tmp_path / "nowhere")}
    result = forked_command(
        "--experiment=mini_il", f"--workdir={tmp_path / 'run'}", cwd=tmp_path, environment=environment
    )
    assert result.returncode == 1
    assert "error: " in result.stderr and str(tmp_path / "nowhere") in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in (tmp_path / "run" / "error.txt").read_text()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["attempts"][0]["status"].startswith("failed")


def test_a_batch_that_does_not_divide_over_the_devices_is_refused_with_sizes_that_do(tmp_path, forked_command):
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    bindings = ["BATCH_SIZE=30", "TRAIN_SCENES=2", "VAL_SCENES=2"]
    flags = ["--experiment=debug_il", f"--workdir={tmp_path / 'run'}"]
    result = forked_command(*flags, cwd=tmp_path, bindings=bindings, environment=devices)
    assert result.returncode == 1
    assert "batch_size=30 does not divide over 8 devices" in result.stderr and "24 or 32" in result.stderr


def test_a_folder_of_another_experiment_is_not_touched(tmp_path, forked_command):
    (tmp_path / "run.json").write_text(json.dumps({"experiment": "quickstart", "attempts": []}))
    result = forked_command("--experiment=debug_il", f"--workdir={tmp_path}", cwd=tmp_path)
    assert result.returncode == 2
    assert "holds a run of quickstart, not of debug_il" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
