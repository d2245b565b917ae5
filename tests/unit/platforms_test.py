"""Platforms that JAX looks for, with file systems made up."""

import importlib.util
import os

import pytest

from recogdrive.platforms import give_virtual_devices_threads, leave_out_absent_tpu


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


@pytest.mark.parametrize(
    ("flags", "threads"),
    [
        ("", None),
        ("--xla_force_host_platform_device_count=1", None),
        ("--xla_a=1 --xla_force_host_platform_device_count=64", "256"),
    ],
)
def test_virtual_devices_have_threads_to_wait_for_each_other(flags, threads, monkeypatch):
    monkeypatch.setenv("PJRT_NPROC", "so that it is put back")
    monkeypatch.delenv("PJRT_NPROC")
    monkeypatch.setenv("XLA_FLAGS", flags)
    give_virtual_devices_threads()
    assert os.environ.get("PJRT_NPROC") == threads


def test_threads_that_were_asked_for_stay(monkeypatch):
    monkeypatch.setenv("PJRT_NPROC", "3")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    give_virtual_devices_threads()
    assert os.environ["PJRT_NPROC"] == "3"
