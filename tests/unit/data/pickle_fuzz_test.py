"""1,600 damaged logs, metric caches, lists of caches and submissions: each is read right or refused by name.

Every seed is a case of its own; `pickle_fuzz_driver.py KIND SEED SEED+1 FOLDER` repeats one. RECOGDRIVE_FUZZ_CASES
multiplies the number of cases.
"""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("pickle_fuzz_driver.py")
CASES = {"logs": 700, "caches": 600, "lists": 200, "submissions": 100}
FACTOR = float(os.environ.get("RECOGDRIVE_FUZZ_CASES", "1"))
SECONDS = 300 * max(FACTOR, 1)
PEAK_BYTES = 2**30
REAL_LOGS = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "navsim_mini" / "navsim_logs" / "mini"
"""Damaged too where they are there."""

_spec = importlib.util.spec_from_file_location("pickle_mutations", Path(__file__).with_name("pickle_mutations.py"))
mutations = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mutations)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", CASES)
def test_damaged_files_are_read_right_or_refused_by_name_and_run_nothing(kind, tmp_path):
    originals = sorted(REAL_LOGS.glob("*.pkl"))
    count = max(1, round(CASES[kind] * FACTOR))
    command = [sys.executable, DRIVER, kind, "0", str(count), tmp_path, *originals]
    finished = subprocess.run(command, timeout=SECONDS, capture_output=True, text=True)
    seed = (tmp_path / "seed").read_text() if (tmp_path / "seed").exists() else "none"
    assert finished.returncode == 0, f"ended with {finished.returncode} at seed {seed}: {finished.stderr[-3000:]}"
    result = json.loads((tmp_path / "result.json").read_text())
    failures = [f"seed {failure['seed']}: {failure['what']}" for failure in result["failures"]]
    assert not failures, f"{len(failures)} cases failed, the first:\n" + "\n".join(failures[:3])
    counts = result["counts"]
    assert sum(counts.values()) == count
    # Most damage must be noticed, and some must do no harm, or the damage is not worth its name.
    assert FACTOR < 1 or (counts["refused"] > count / 2 and counts["read"] > count / 100)
    assert result["peak_bytes"] < PEAK_BYTES


def test_the_hostile_instructions_of_these_tests_do_execute_elsewhere(tmp_path):
    canary = tmp_path / "canary"
    for instructions in mutations.calls(canary):
        pickle.loads(instructions + b".")
        assert canary.exists(), instructions
        canary.unlink()
