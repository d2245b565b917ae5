"""The wheel alone, in a fresh environment and a hostile working folder, describes every experiment."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from recogdrive.experiment import load_registry

ROOT = Path(__file__).resolve().parents[2]
DESCRIBE_ALL = """
import recogdrive
from recogdrive.composition import compose
from recogdrive.experiment import config_root, load_registry
from recogdrive.stages import base, diffgrpo, imitation, vlm_sft
print("PACKAGE", recogdrive.__file__)
print("CONFIGS", config_root())
# Compiling every network to ask for its memory takes minutes; tests/unit/training/memory_test.py and those of
# recogdrive/ahead_of_time do it. Here files have to be found.
imitation.training_memory = diffgrpo.training_memory = vlm_sft.training_memory = lambda *_, **__: {}
for name, experiment in load_registry().items():
    print("DESCRIBED", name, len(base.describe(compose(experiment, [], []))))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A fresh virtual environment that holds the wheel, and reads the libraries from the one the tests run in."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    site = next((folder / "lib").glob("python*/site-packages"))
    # A path in a .pth file adds the libraries, but not the .pth files among them: the editable install stays unseen.
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
        timeout=120,
    )
    return folder / "bin" / "python"


def run(python, *arguments, cwd, timeout=300):
    return subprocess.run(
        [str(python), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={"PATH": "/usr/bin:/bin"},
    )


def test_the_wheel_carries_configurations_and_templates_and_no_gin_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "recogdrive/_configs/experiments/registry.py" in names
    assert "recogdrive/evaluation/report.html.j2" in names
    on_disk = {str(p.relative_to(ROOT)) for folder in ("gin", "experiments") for p in (ROOT / folder).rglob("*.gin")}
    packed = {n.removeprefix("recogdrive/_configs/") for n in names if n.endswith(".gin")}
    assert packed == on_disk
    assert not any(n.endswith("gin/__init__.py") for n in names)


@pytest.mark.heavy
def test_every_experiment_is_described_from_the_wheel_alone(environment, tmp_path):
    decoy = tmp_path / "gin" / "planner"
    decoy.mkdir(parents=True)
    (decoy / "dit_small.gin").write_text("this is not gin")
    (tmp_path / "describe.py").write_text(DESCRIBE_ALL)
    result = run(environment, "describe.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert {line[1] for line in lines if line[0] == "DESCRIBED"} == set(load_registry())
    for word in ("PACKAGE", "CONFIGS"):
        (path,) = [line[1] for line in lines if line[0] == word]
        assert str(environment.parent.parent) in path


def test_the_entry_point_of_the_wheel_lists_experiments(environment, tmp_path):
    result = run(
        environment, "-c", "from recogdrive.main import console_entry; console_entry()", "--list", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert "quickstart" in result.stdout
