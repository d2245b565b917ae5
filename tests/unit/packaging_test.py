"""Dependencies: what is installed, what is pinned and what is allowed agree, and nothing drags CUDA along."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = [Requirement(r) for r in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]]
PINNED = {
    canonicalize_name(line.split("==")[0]): line.split("==")[1].strip()
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line
}
# torchvision and timm require a torch of their own choice; nvidia-* come with its CUDA build.
UNWANTED = ("torchvision", "torchaudio", "timm", "nvidia-", "triton")


@pytest.mark.parametrize("requirement", REQUIRED, ids=lambda r: r.name)
def test_a_dependency_has_a_range_that_holds_its_tested_version(requirement):
    pinned = PINNED[canonicalize_name(requirement.name)]
    assert requirement.specifier, f"{requirement.name} has no range"
    assert requirement.specifier.contains(pinned, prereleases=True)


@pytest.mark.parametrize("requirement", REQUIRED, ids=lambda r: r.name)
def test_the_tests_run_with_the_pinned_version(requirement):
    installed = importlib.metadata.version(requirement.name).split("+")[0]
    assert installed == PINNED[canonicalize_name(requirement.name)]


def test_nothing_pinned_or_installed_drags_cuda_along():
    installed = {canonicalize_name(d.metadata["Name"]) for d in importlib.metadata.distributions()}
    assert [name for name in sorted(installed | set(PINNED)) if name.startswith(UNWANTED)] == []


def test_torchax_is_imported_by_the_bridge_alone():
    importers = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "recogdrive").rglob("*.py")
        if any(line.strip().startswith(("import torchax", "from torchax")) for line in path.read_text().splitlines())
    ]
    assert importers == ["recogdrive/models/bridge.py"]
