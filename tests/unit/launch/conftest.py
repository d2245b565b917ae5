"""A launch of stand-ins for runs: same flags, same files, fractions of a second."""

import sys
from pathlib import Path

import pytest

from recogdrive.launch.plan import Run

FAKE = Path(__file__).with_name("fake_run.py")


@pytest.fixture
def fake_command():
    """What starts a stand-in."""
    return [sys.executable, str(FAKE)]


@pytest.fixture
def fake(tmp_path):
    """Function: name, behaviour, fields -> run whose process behaves so."""

    def make(name, behaviour="finish", **fields):
        bindings = (f'Fake.behaviour="{behaviour}"', *fields.pop("bindings", ()))
        return Run(name, "baseline_stopped", tmp_path / name, bindings=bindings, **fields)

    return make


@pytest.fixture
def launch_file(tmp_path):
    """Function: text -> path of a launch file whose folder lies beside it."""

    def write(text, name="launch.toml"):
        path = tmp_path / name
        path.write_text(f'workdir = "{tmp_path / "runs"}"\n{text}')
        return path

    return write
