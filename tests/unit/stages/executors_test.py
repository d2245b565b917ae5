"""Tests of stages/executors.py; work of other processes is in executor_work.py, which they can import."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from recogdrive.stages.executors import InProcess, ProcessPool, RayPool, WorkerError

HERE = Path(__file__).parent
CORES = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def importable_work(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    # Spawned processes and actors take the path from here.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def work():
    import executor_work

    return executor_work


def test_in_process_tasks_are_done_in_order_by_one_worker(work):
    results = list(InProcess().run(work.make_square, range(5)))
    assert results == [(n**2, os.getpid(), n + 1) for n in range(5)]


@pytest.mark.heavy
def test_a_pool_does_every_task_once_in_processes_that_make_their_work_once(work):
    results = list(ProcessPool(2).run(work.make_square, range(12)))
    assert sorted(square for square, _, _ in results) == [n**2 for n in range(12)]
    processes = {pid for _, pid, _ in results}
    assert os.getpid() not in processes and 1 <= len(processes) <= 2
    for process in processes:
        counts = [count for _, pid, count in results if pid == process]
        assert sorted(counts) == list(range(1, len(counts) + 1))


@pytest.mark.heavy
def test_a_worker_computes_on_the_cpu_and_may_use_every_core(work, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    ((threads, backend, cores),) = ProcessPool(1).run(work.make_environment, ["OMP_NUM_THREADS"])
    assert (threads, backend, cores) == ("1", "cpu", CORES)
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.heavy
def test_an_error_of_a_task_is_raised_as_it_is(work):
    with pytest.raises(ValueError, match="task 3 is refused"):
        list(ProcessPool(1).run(work.make_failure, range(6)))


@pytest.mark.heavy
def test_a_dead_worker_is_reported_with_what_to_do(work):
    with pytest.raises(WorkerError, match="One of 1 worker processes died.*run the same command again.*WORKERS=N"):
        list(ProcessPool(1).run(work.make_death, range(6)))


def test_no_tasks_need_no_workers(work):
    assert list(ProcessPool().run(work.make_death, [])) == []


def test_numbers_of_workers_that_cannot_be_are_refused():
    for pool in (ProcessPool, RayPool):
        with pytest.raises(ValueError, match=f"{pool.__name__}.workers=0 must be positive"):
            pool(workers=0)


@pytest.mark.heavy
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """A pool's processes would wait for tasks for ever."""
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from executor_work import make_square
            from recogdrive.stages.executors import ProcessPool

            if __name__ == "__main__":
                running = ProcessPool(1).run(make_square, range(3))
                print(next(running)[1], flush=True)
                sys.stdin.read()
            """
        )
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    worker = int(parent.stdout.readline())
    assert Path(f"/proc/{worker}").exists()
    parent.kill()
    parent.wait()
    until = time.monotonic() + 20
    while is_running(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(worker)


def is_running(pid):
    """Whether a process is there and no zombie that nobody has collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.heavy
def test_ray_does_every_task_once_in_actors_that_make_their_work_once(work):
    results = list(RayPool(workers=2).run(work.make_square, list(range(8))))
    assert sorted(square for square, _, _ in results) == [n**2 for n in range(8)]
    processes = {pid for _, pid, _ in results}
    assert len(processes) == 2 and os.getpid() not in processes
    for process in processes:
        counts = [count for _, pid, count in results if pid == process]
        assert counts == list(range(1, len(counts) + 1))


@pytest.mark.heavy
def test_a_dead_actor_is_reported_with_what_to_do(work):
    with pytest.raises(WorkerError, match=r"A Ray actor died: [^\n]*run the same command again"):
        list(RayPool(workers=1).run(work.make_death, list(range(4))))


def test_ray_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'recogdrive\[ray\]'"):
        RayPool()
