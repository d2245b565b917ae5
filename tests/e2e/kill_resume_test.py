"""A run killed with SIGKILL at random moments and restarted ends exactly as one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recogdrive.training import manifest
from recogdrive.training.metrics_file import without_timings
from recogdrive.training.preemption import PREEMPTED_EXIT_CODE
from recogdrive.training.saved import usable_steps

pytestmark = pytest.mark.heavy

DRIVER = Path(__file__).with_name("kill_resume_driver.py")
REPOSITORY = DRIVER.parent.parent.parent
MLP_STEPS, PLANNER_STEPS, VLM_STEPS = 100, 12, 12

# What the signal is tied to, how often that happens in a run before it, and the longest wait after it: a step takes
# about 2 ms, a save about 50 ms, of which sealing, renaming and deleting the oldest are the end.
MOMENTS = [
    ("start", 1, 1.5),  # Anywhere from starting JAX to the first steps.
    ("batch", 15, 0.004),  # Inside a step, or between two.
    ("save", 2, 0.1),  # Inside a save.
    ("seal", 2, 0.03),  # Between the last file and the checkpoint's final name, or while an older one is deleted.
    ("log", 4, 0.002),  # Inside a write to metrics.jsonl.
]


class Driver:
    """The process that starts, and kills, one training process at a time."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert json.loads(self.process.stdout.readline())["ready"]

    def run(self, workdir, objective="mlp", steps=MLP_STEPS, **signal_at):
        request = {"workdir": str(workdir), "objective": objective, "steps": steps, **signal_at}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def driver():
    driver = Driver()
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def undisturbed(driver, tmp_path_factory):
    """Run folder of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("kill_resume") / "undisturbed"
    assert driver.run(workdir) == {"exit": 0, "sent": False}
    return workdir


def final_arrays(workdir):
    with np.load(workdir / "final.npz") as arrays:
        return {name: arrays[name].tobytes() for name in arrays.files}


def loss_curve(workdir):
    return [without_timings(json.loads(line)) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def sample_order(workdir):
    """Samples of each step; a step that ran again must have used the same ones."""
    order = {}
    for line in (workdir / "order.jsonl").read_text().splitlines():
        step, indices = json.loads(line)
        assert order.setdefault(step, indices) == indices
    return order


def assert_same_run(workdir, reference):
    assert final_arrays(workdir) == final_arrays(reference)
    assert loss_curve(workdir) == loss_curve(reference)
    assert sample_order(workdir) == sample_order(reference)
    assert usable_steps(workdir / "checkpoints") == usable_steps(reference / "checkpoints")


def kill_and_restart(driver, reference, folder, kills, seed, objective="mlp", steps=MLP_STEPS):
    """Starts runs over and over, killing each start at a drawn moment, until `kills` were; finishes every run."""
    rng = random.Random(seed)
    delivered = dict.fromkeys((event for event, _, _ in MOMENTS), 0)
    while sum(delivered.values()) < kills:
        workdir = folder / f"run_{sum(delivered.values())}"
        finished = False
        while not finished:
            if sum(delivered.values()) < kills:
                event, most, longest_s = rng.choice(MOMENTS)
                moment = {"event": event, "count": rng.randint(1, most), "delay_s": rng.uniform(0, longest_s)}
                answer = driver.run(workdir, objective, steps, signal=signal.SIGKILL, **moment)
                delivered[event] += answer["exit"] == -signal.SIGKILL
            else:
                answer = driver.run(workdir, objective, steps)
            assert answer["exit"] in (0, -signal.SIGKILL)
            finished = answer["exit"] == 0
        assert_same_run(workdir, reference)
    return delivered


def test_a_run_killed_twenty_times_ends_bit_equal_to_an_undisturbed_one(driver, undisturbed, tmp_path):
    delivered = kill_and_restart(driver, undisturbed, undisturbed.parent, kills=20, seed=0)
    assert sum(delivered.values()) == 20
    assert min(delivered.values()) >= 1, f"every kind of moment must occur: {delivered}"


@pytest.mark.parametrize(
    ("objective", "steps", "delay_s"),
    [
        ("planner", PLANNER_STEPS, 0.001),
        # Policy, reference policy and optimiser in one checkpoint; scenes without reward and groups of equal ones.
        ("grpo", PLANNER_STEPS, 0.005),
        # Rows packed from conversations, adapters' dropout, stochastic depth, frozen weights handed in anew.
        ("vlm", VLM_STEPS, 0.005),
    ],
)
def test_a_model_killed_and_restarted_ends_bit_equal_to_an_undisturbed_run(driver, tmp_path, objective, steps, delay_s):
    reference = tmp_path / "undisturbed"
    assert driver.run(reference, objective, steps)["exit"] == 0
    killed = tmp_path / "killed"
    for moment in (
        {"event": "seal", "count": 1, "delay_s": 0.0},
        {"event": "batch", "count": 4, "delay_s": delay_s},
    ):
        assert driver.run(killed, objective, steps, signal=signal.SIGKILL, **moment)["sent"]
    assert driver.run(killed, objective, steps)["exit"] == 0
    assert_same_run(killed, reference)


@pytest.mark.soak
def test_runs_killed_two_hundred_times_end_bit_equal_to_an_undisturbed_one(driver, undisturbed, tmp_path):
    kills = int(os.environ.get("RECOGDRIVE_KILLS", "200"))
    delivered = kill_and_restart(driver, undisturbed, undisturbed.parent / "soak", kills=kills, seed=1)
    assert sum(delivered.values()) == kills


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_stop_saves_the_current_step_and_exits_with_the_preemption_status(
    driver, undisturbed, number, request
):
    workdir = undisturbed.parent / f"stopped_{number.name}"
    answer = driver.run(workdir, signal=number, event="batch", count=10, delay_s=0.0)
    assert answer == {"exit": PREEMPTED_EXIT_CODE, "sent": True}
    last_executed = max(sample_order(workdir)) + 1
    usable, unusable = usable_steps(workdir / "checkpoints")
    assert (usable[-1], unusable) == (last_executed, {})
    assert last_executed >= 9  # The tenth batch had been asked for.
    assert driver.run(workdir)["exit"] == 0
    assert_same_run(workdir, undisturbed)


def test_a_checkpoint_has_its_seal_from_the_moment_it_has_its_name(driver, undisturbed):
    # Killed right when sealing starts: the files are complete, the checkpoint must still not count.
    workdir = undisturbed.parent / "killed_while_sealing"
    driver.run(workdir, signal=signal.SIGKILL, event="seal", count=1, delay_s=0.0)
    finished = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    assert all((path / manifest.MANIFEST).is_file() for path in finished)
