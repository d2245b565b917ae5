"""Platforms that JAX looks for, with file systems made up."""

import importlib.util
import os

import pytest

from recogdrive.platforms import leave_out_absent_tpu


@pytest.fixture(autouse=True)
def with_libtpu(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu" or None)


def pci_device(root, vendor):
    folder = root / "sys" / "bus" / "pci" / "devices" / f"0000:00:{vendor[-2:]}.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")


def test_libtpu_without_a_tpu_is_left_alone(tmp_path):
    pci_device(tmp_path, "0x8086")
    leave_out_absent_tpu(tmp_path)
    assert os.environ["JAX_PLATFORMS"] == "cpu"


def test_a_tpu_is_looked_for_where_one_may_be(tmp_path):
    pci_device(tmp_path, "0x1ae0")
    leave_out_absent_tpu(tmp_path)
    assert "JAX_PLATFORMS" not in os.environ


@pytest.mark.parametrize("device", ["nvidia0", "kfd"])
def test_a_gpu_is_still_found(tmp_path, device):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / device).touch()
    leave_out_absent_tpu(tmp_path)
    assert "JAX_PLATFORMS" not in os.environ


def test_platforms_that_were_asked_for_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    leave_out_absent_tpu(tmp_path)
    assert os.environ["JAX_PLATFORMS"] == "tpu,cpu"


def test_nothing_changes_without_libtpu(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    leave_out_absent_tpu(tmp_path)
    assert "JAX_PLATFORMS" not in os.environ
