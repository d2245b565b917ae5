"""Supervisors of small commands: how they find together, and how the end of one ends all."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
from functools import partial
from pathlib import Path
from recogdrive.experiment import ConfigurationError
from recogdrive.hosts.settings import detect
from recogdrive.hosts import supervisor
from recogdrive.run_folder import end_attempt
supervisor._TIME_FOR_OWN_ERROR_S = 0.5
flags, environment, command, workdir, arguments = json.loads(sys.argv[1])
try:
    sys.exit(supervisor.supervise(detect(flags, environment), command, partial(end_attempt, Path(workdir)), arguments))
except ConfigurationError as error:
    sys.stderr.write(f"error: {error}\\n")
    sys.exit(2)
"""
REASON = (
    "import json, os; os.write(int(os.environ['RECOGDRIVE_REASON_FD']), json.dumps('no such log').encode() + b'\\n')"
)
WAITS = "import time; time.sleep(60)"


class Group:
    """Supervisors on this machine."""

    def __init__(self, folder, port):
        self.folder, self.port, self.started = folder, port, []

    def start(self, number, program, count=2, arguments=(), **durations):
        flags = {"coordinator_address": f"localhost:{self.port}", "num_processes": count, "process_id": number}
        environment = {f"RECOGDRIVE_{name.upper()}": str(value) for name, value in durations.items()}
        text = json.dumps([flags, environment, [sys.executable, "-c", program], str(self.folder), list(arguments)])
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, text], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.started.append(process)
        return process

    def close(self):
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def group(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        free_port = free.getsockname()[1] & ~1  # The one above is used too.
    (tmp_path / "run.json").write_text(json.dumps({"attempts": [{"status": "running"}]}))
    group = Group(tmp_path, free_port)
    yield group
    group.close()


def ends(*processes):
    """(exit code, what it said) of each."""
    return [(process.returncode, said) for process in processes for _, said in [process.communicate(timeout=30)]]


def status(group):
    return json.loads((group.folder / "run.json").read_text())["attempts"][-1]["status"]


def connected(port):
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("localhost", port))
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def child_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 20
    while not (found := children.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(found[0])


def test_processes_that_end_in_order_keep_their_exit_code(group):
    processes = [group.start(i, "import sys; sys.exit(75)") for i in range(2)]
    assert [code for code, _ in ends(*processes)] == [75, 75]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_supervisor_ends_the_other_and_its_own_child(group, victim):
    processes = [group.start(i, WAITS) for i in range(2)]
    children = [child_of(process) for process in processes]
    processes[victim].kill()
    ((code, said),) = ends(processes[1 - victim])
    assert code == 76
    assert f"lost process {victim} of 2" in said and "run the same command again on all hosts" in said
    assert f"lost process {victim}" in status(group)
    for child in children:
        assert not Path(f"/proc/{child}").exists() or "Z (zombie)" in Path(f"/proc/{child}/status").read_text()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_child_ends_the_other_process_which_says_how_it_died(group, victim):
    processes = [group.start(i, WAITS) for i in range(2)]
    children = [child_of(process) for process in processes]
    os.kill(children[victim], signal.SIGKILL)
    (own, own_said), (other, said) = (ends(processes[i])[0] for i in (victim, 1 - victim))
    assert (own, other) == (137, 76)
    assert "SIGKILL" in own_said and f"lost process {victim}" in said and "SIGKILL" in said


def test_an_error_of_one_process_is_told_by_the_others(group):
    processes = [group.start(0, WAITS), group.start(1, f"{REASON}; raise SystemExit(1)")]
    (code, said), (own, _) = ends(*processes)
    assert (code, own) == (76, 1)
    assert "process 1 of 2" in said and "failed: no such log" in said
    assert status(group).endswith("no such log")


def test_an_error_that_all_have_is_each_ones_own(group):
    processes = [group.start(i, f"import time; time.sleep({i} / 5); raise SystemExit(2)") for i in range(2)]
    assert [code for code, _ in ends(*processes)] == [2, 2]


def test_what_an_abort_followed_is_what_is_told(group):
    """JAX aborts a process as soon as process 0 is gone."""
    processes = [group.start(0, WAITS), group.start(1, "import os, time; time.sleep(0.5); os.abort()")]
    child_of(processes[1])
    time.sleep(1)
    processes[0].kill()
    ((code, said),) = ends(processes[1])
    assert code == 76 and "lost process 0" in said


def test_three_processes_end_when_the_middle_one_is_killed(group):
    processes = [group.start(i, WAITS, count=3) for i in range(3)]
    os.kill(child_of(processes[1]), signal.SIGKILL)
    assert [code for code, _ in ends(*processes)] == [76, 137, 76]


def test_a_process_that_falls_silent_is_lost(group):
    processes = [group.start(i, WAITS, lost_after_s=2) for i in range(2)]
    child_of(processes[0])
    processes[1].send_signal(signal.SIGSTOP)
    ((code, said),) = ends(processes[0])
    assert code == 76 and "no sign of life for 2 s" in said


def test_strangers_that_connect_disturb_nobody(group):
    processes = [group.start(0, "import time; time.sleep(1)")]
    for said in (b"GET / HTTP/1.1\r\n\r\n", b'{"hello": 1}\n', b"[]\n", b""):
        stranger = connected(group.port + 1)
        stranger.sendall(said)
    processes.append(group.start(1, "import time; time.sleep(1)"))
    assert [code for code, _ in ends(*processes)] == [0, 0]


def test_sigterm_reaches_the_child(group):
    program = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); open('READY', 'w'); time.sleep(60)"
    programs = [program.replace("READY", str(group.folder / f"ready.{i}")) for i in range(2)]
    processes = [group.start(i, programs[i]) for i in range(2)]
    while not all((group.folder / f"ready.{i}").exists() for i in range(2)):
        time.sleep(0.05)
    for process in processes:
        process.terminate()
    assert [code for code, _ in ends(*processes)] == [75, 75]


def test_a_process_that_does_not_come_is_named(group):
    ((code, said),) = ends(group.start(0, WAITS, count=3, start_timeout_s=2))
    assert code == 2 and "2 did not come within 2 s: 1, 2" in said


def test_a_coordinator_that_is_not_there_is_named_in_bounded_time(group):
    ((code, said),) = ends(group.start(1, WAITS, start_timeout_s=2))
    assert code == 2 and "cannot reach process 0 at localhost" in said and "firewall" in said


def test_another_command_on_one_host_is_refused_on_both(group):
    processes = [group.start(i, WAITS, arguments=[f"--gin_bindings=BATCH_SIZE={8 * (i + 1)}"]) for i in range(2)]
    for code, said in ends(*processes):
        assert code == 2 and "BATCH_SIZE=8" in said and "BATCH_SIZE=16" in said


def test_two_processes_with_one_number_are_refused(group):
    processes = [group.start(number, WAITS, count=3) for number in (0, 1, 1)]
    for code, said in ends(*processes):
        assert code == 2 and "say that they are process 1" in said
