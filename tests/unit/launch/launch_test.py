"""The launcher with stand-ins for runs: order, failures, what is skipped, what a stop does."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from recogdrive.experiment import ConfigurationError
from recogdrive.launch.__main__ import main
from recogdrive.launch.board import Board, duration, table
from recogdrive.launch.fleet import Fleet, Progress, State, StopRequests
from recogdrive.launch.schedule import PlannedWork, exit_code, work_through
from recogdrive.launch.slots import parse_slots


@pytest.fixture
def go(fake_command, tmp_path):
    """Function: runs, slots -> exit code, states by name, what was printed."""

    def launch(*runs, slots="cpu*2"):
        printed = io.StringIO()
        with Fleet(tmp_path, parse_slots([slots]), fake_command) as fleet:
            work = PlannedWork(runs, [slot.kind for slot in fleet.slots])
            code = work_through(work, fleet, Board(lambda row: "", printed), poll_s=0.01)
        return code, {row.run.name: row.state for row in work.rows}, printed.getvalue()

    return launch


def attempts(run):
    return attempts_in(run.workdir)


def attempts_in(workdir):
    return json.loads((workdir / "run.json").read_text())["attempts"]


def test_four_runs_over_two_slots_with_one_that_fails_end_with_a_summary_and_exit_code_1(
    launch_file, fake_command, tmp_path, capsys
):
    """The case that the launcher is for: the others go on, what needed the failed one is skipped with the reason."""
    experiment = '[[experiments]]\nexperiment = "baseline_stopped"\nname = '
    path = launch_file(
        f"command = {json.dumps(fake_command)}\nslots = ['cpu', 'cpu']\n"
        f"{experiment}'one'\n{experiment}'bad'\nbindings = {{ \"Fake.behaviour\" = 'fail' }}\n"
        f"{experiment}'two'\n{experiment}'three'\nafter = ['bad']\n"
    )
    assert main([str(path)]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"bad +FAILED +cpu#\d +\d:\d\d:\d\d +error: it is made to fail\n", printed)
    assert re.search(r"three +skipped +needs bad, which failed\n", printed)
    assert "4 runs: 2 finished, 1 FAILED, 1 skipped" in printed
    assert f"tail -n 40 {tmp_path / 'runs' / 'logs' / 'bad.log'}" in printed
    summary = json.loads((tmp_path / "runs" / "launch.json").read_text())
    assert summary["exit_code"] == 1
    assert {name: run["state"] for name, run in summary["runs"].items()} == {
        "one": "finished",
        "bad": "failed",
        "two": "finished",
        "three": "skipped",
    }
    assert not (tmp_path / "runs" / "three").exists()
    assert main([str(path)]) == 1
    assert "4 runs: 2 done before, 1 FAILED, 1 skipped" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "runs" / "one" / "run.json").read_text())["attempts"]) == 1


def test_runs_are_in_two_slots_at_once_each_with_its_environment(go, fake, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    first = fake("first", "meet", env={"OWN": "1", "XLA_FLAGS": "--xla_b=2"})
    second = fake("second", "meet", on="gpu")
    code, states, _ = go(first, second, slots="cpu:2,gpu:3")
    assert (code, set(states.values())) == (0, {State.FINISHED})
    assert attempts(first)[0]["env"] == {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=2 --xla_b=2",
        "OWN": "1",
    }
    assert (attempts(second)[0]["env"]["CUDA_VISIBLE_DEVICES"], attempts(second)[0]["env"]["OWN"]) == ("3", None)


def test_a_run_waits_for_those_it_comes_after(go, fake):
    late, early = fake("late", after=("early",)), fake("early")
    assert go(late, early)[0] == 0
    assert attempts(early)[0]["at"] <= attempts(late)[0]["began_at"]


def test_a_failure_skips_what_builds_on_it_however_far_and_nothing_else(go, fake):
    code, states, printed = go(fake("a", "fail"), fake("b", after=("a",)), fake("c", after=("b",)), fake("d"))
    assert code == 1
    assert states == {"a": State.FAILED, "b": State.SKIPPED, "c": State.SKIPPED, "d": State.FINISHED}
    assert "c: skipped (needs b, which was skipped)" in printed


def test_what_finished_with_the_same_configuration_is_done_and_with_another_is_not(go, fake):
    go(fake("a"))
    assert go(fake("a"))[1] == {"a": State.DONE_BEFORE}
    code, states, printed = go(fake("a", bindings=("VAL_SCENES=4",)))
    assert (code, states) == (0, {"a": State.FINISHED}) and "a: running in cpu#1 (continues)" in printed


def test_a_done_run_that_is_older_than_what_it_builds_on_says_so(go, fake):
    later = fake("b", after=("a",))
    go(fake("a"), later)
    record = json.loads((later.workdir / "run.json").read_text())
    record["attempts"][-1]["started"] = "2000-01-01T00:00:00"
    (later.workdir / "run.json").write_text(json.dumps(record))
    printed = go(fake("a"), later)[2]
    assert f"older than a; delete {later.workdir} to run it again" in printed


def test_a_run_that_cannot_be_started_has_failed(tmp_path, fake):
    with Fleet(tmp_path, parse_slots(["cpu"]), ["/nowhere/python"]) as fleet:
        work = PlannedWork([fake("a"), fake("b", after=("a",))], ["cpu"])
        assert work_through(work, fleet, Board(lambda row: "", io.StringIO()), 0.01) == 1
    assert work.rows[0].note == "/nowhere/python cannot be started: No such file or directory"
    assert work.rows[1].state is State.SKIPPED


def test_a_run_that_needs_a_kind_of_slot_that_is_not_there_is_refused(fake):
    with pytest.raises(ConfigurationError, match="a runs on tpu, and the slots are cpu"):
        PlannedWork([fake("a", on="tpu")], ["cpu"])


class Launch:
    """A launcher in a process of its own, with one slot and two runs."""

    def __init__(self, launch_file, fake_command, behaviour):
        experiment = '[[experiments]]\nexperiment = "baseline_stopped"\nname = '
        self.path = launch_file(
            f"command = {json.dumps(fake_command)}\nslots = ['cpu']\nbindings = {{ Fake.behaviour = '{behaviour}' }}\n"
            f"{experiment}'one'\n{experiment}'two'\n"
        )
        self.root = self.path.parent / "runs"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "recogdrive.launch", str(self.path)],
            stdout=subprocess.PIPE,
            text=True,
            # The launcher leaves signals alone that are ignored when it starts, as a shell's background jobs ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        until(lambda: (self.root / "one" / "ready").exists())


def can_be_entered(root):
    try:
        with Fleet(root, parse_slots(["cpu"])):
            return True
    except ConfigurationError:
        return False


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_passed_on_once_and_the_checkpoint_awaited(launch_file, fake_command, number):
    launch = Launch(launch_file, fake_command, "wait")
    launch.process.send_signal(number)
    printed, _ = launch.process.communicate(timeout=30)
    assert launch.process.returncode == 75
    assert "asked to stop: starting nothing more, waiting for checkpoints of one" in printed
    assert re.search(r"one +stopped +cpu +\S+ +saved; the same command continues it", printed)
    assert re.search(r"two +waiting +not started", printed)
    assert json.loads((launch.root / "one" / "run.json").read_text())["attempts"][-1]["status"] == "preempted"


def test_what_nohup_ignores_is_not_taken_for_a_stop():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequests() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.count == 1
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_third_signal_kills_what_does_not_stop(launch_file, fake_command):
    launch = Launch(launch_file, fake_command, "deaf")
    for _ in range(3):
        launch.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    printed, _ = launch.process.communicate(timeout=30)
    assert launch.process.returncode == 1
    assert "a third signal kills without saving" in printed and "killed by SIGKILL" in printed


def test_a_second_launcher_in_a_folder_is_refused_while_runs_of_a_killed_one_live(launch_file, fake_command, capsys):
    launch = Launch(launch_file, fake_command, "wait")
    launch.process.kill()
    launch.process.communicate()
    assert main([str(launch.path)]) == 2
    assert f"A launcher (process {launch.process.pid}), or a run that it started" in capsys.readouterr().err
    os.kill(int((launch.root / "one" / "ready").read_text()), signal.SIGTERM)
    until(lambda: attempts_in(launch.root / "one")[-1]["status"] == "preempted")
    until(lambda: can_be_entered(launch.root))


def test_print_only_prints_commands_and_runs_nothing(launch_file, tmp_path, capsys):
    text = '[[experiments]]\nexperiment = "baseline_stopped"\nenv = { A = "b c" }\nbindings.EGO_STATUS_MLP = "runs/m"\n'
    assert main([str(launch_file(text)), "--slots=cpu,gpu:1", "--print_only"]) == 0
    printed = capsys.readouterr().out
    assert "gpu:1: PYTHONUNBUFFERED=1 JAX_PLATFORMS=cuda,cpu CUDA_VISIBLE_DEVICES=1" in printed
    assert (
        f"A='b c' {sys.executable} -m recogdrive.main --experiment=baseline_stopped "
        f"--workdir={tmp_path / 'runs' / 'baseline_stopped'} --gin_bindings='EGO_STATUS_MLP=\"runs/m\"'\n"
    ) in printed
    assert not (tmp_path / "runs").exists()


def test_a_refused_file_exits_with_2(tmp_path, capsys):
    assert main([str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err.startswith("error: Cannot read ")


def test_the_exit_code_is_that_of_the_worst_run(fake):
    def code(*states):
        return exit_code([Progress(fake(str(i)), state) for i, state in enumerate(states)])

    assert code(State.FINISHED, State.DONE_BEFORE) == 0
    assert code(State.FINISHED, State.STOPPED) == code(State.WAITING) == 75
    assert code(State.STOPPED, State.FAILED) == code(State.SKIPPED) == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_the_table_is_drawn_over_the_one_before(fake, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "10")
    stream = Terminal()
    board = Board(lambda row: "step 3 " * 20, stream)
    rows = [Progress(fake(f"run{i}"), State.FINISHED) for i in range(20)]
    rows[15].state, rows[15].started = State.RUNNING, time.monotonic()
    board.draw(rows)
    first = stream.getvalue()
    lines = re.sub(r"\x1b\[\d*m", "", first).splitlines()
    assert max(map(len, lines)) <= 59 and len(lines) <= 10
    assert any(line.startswith("run15  running") for line in lines)
    assert lines[-1] == "20 runs: 1 running, 19 finished"
    board.draw(rows)
    assert stream.getvalue()[len(first) :].startswith(f"\x1b[{len(lines)}F\x1b[J")


def test_a_table_names_run_state_slot_time_and_reason(fake):
    row = Progress(fake("a"), State.FAILED, "cpu", 1.0, 3725.0, 1, "it broke")
    assert table([row], lambda row: "", None) == ["run  state   slot  time", "a    FAILED  cpu   1:02:05  it broke"]
    assert duration(59.9) == "0:00:59"
