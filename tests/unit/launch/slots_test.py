"""Device slots: how they are written, and what environment they give."""

import pytest

from recogdrive.experiment import ConfigurationError
from recogdrive.launch.slots import nvidia_libraries, parse_slots, visible_gpus


def names(*texts, gpus=None):
    return [slot.name for slot in parse_slots(texts, gpus)]


def environment(text, outer=(), libraries=(), index=0):
    return parse_slots([text])[index].environment(dict(outer), libraries)


def test_slots_are_read_from_lists_and_from_texts_with_commas():
    assert names("gpu:0", "gpu:1,cpu") == ["gpu:0", "gpu:1", "cpu"]
    assert names("cpu*2", "cpu:4") == ["cpu#1", "cpu#2", "cpu:4"]
    assert names("gpu:all", gpus=range(3)) == ["gpu:0", "gpu:1", "gpu:2"]
    assert [(s.kind, s.devices) for s in parse_slots(["gpu:2+3", "gpu", "tpu:1"])] == [
        ("gpu", (2, 3)),
        ("gpu", ()),
        ("tpu", (1,)),
    ]


@pytest.mark.parametrize("text", ["", "gpux", "gpu:a", "cpu:0", "cpu:1+2", "tpu:0+1", "cpu:all", "gpu:-1"])
def test_a_slot_that_cannot_be_read_is_refused_with_how_to_write_it(text):
    with pytest.raises(ConfigurationError, match=r"cpu|gpu|tpu"):
        parse_slots([text])


def test_all_gpus_of_a_machine_without_any_are_refused():
    with pytest.raises(ConfigurationError, match="finds no GPU"):
        parse_slots(["gpu:all"], gpus=[])


def test_gpus_that_a_batch_system_gave_are_those_there_are(monkeypatch, tmp_path):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2,5"}) == [2, 5]
    with pytest.raises(ConfigurationError, match="cannot divide CUDA_VISIBLE_DEVICES='GPU-1'"):
        visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-1"})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus({}) == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: H100'\necho 'GPU 1: H100'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_gpus({}) == [0, 1]


def test_two_slots_on_one_tpu_chip_are_refused():
    with pytest.raises(ConfigurationError, match="one process at a time"):
        parse_slots(["tpu", "tpu:1"])
    with pytest.raises(ConfigurationError, match="one process at a time"):
        parse_slots(["tpu:1*2"])
    assert names("tpu:0,tpu:1") == ["tpu:0", "tpu:1"]


def test_a_cpu_slot_hides_gpus_and_splits_the_cpu_whatever_was_set_outside():
    outer = {"XLA_FLAGS": "--xla_dump_to=d --xla_force_host_platform_device_count=8"}
    assert environment("cpu:4", outer) == {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "XLA_FLAGS": "--xla_dump_to=d --xla_force_host_platform_device_count=4",
    }


def test_a_gpu_slot_sees_its_gpus_and_pips_libraries_before_the_systems(tmp_path):
    assert environment("gpu:2+3", {"LD_LIBRARY_PATH": "/usr/local/cuda/lib64"}, [tmp_path / "a", tmp_path / "b"]) == {
        "JAX_PLATFORMS": "cuda,cpu",
        "CUDA_VISIBLE_DEVICES": "2,3",
        "LD_LIBRARY_PATH": f"{tmp_path / 'a'}:{tmp_path / 'b'}:/usr/local/cuda/lib64",
    }
    assert environment("gpu") == {"JAX_PLATFORMS": "cuda,cpu"}


def test_runs_that_share_a_gpu_share_its_memory():
    assert environment("gpu:0*2")["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.45"
    assert environment("gpu:0+1,gpu:1,gpu:1")["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.30"
    assert environment("gpu,gpu:1", index=1)["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.45"
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in environment("gpu:0,gpu:1")


def test_a_slot_of_one_tpu_chip_leaves_the_others_alone():
    assert environment("tpu") == {"JAX_PLATFORMS": "tpu,cpu"}
    chip = environment("tpu:2")
    assert (chip["TPU_VISIBLE_CHIPS"], chip["TPU_CHIPS_PER_PROCESS_BOUNDS"]) == ("2", "1,1,1")


def test_libraries_of_pips_nvidia_packages_are_found_by_folder(tmp_path):
    for name in ("cublas/lib/libcublas.so.13", "cu13/lib/libcudart.so", "cuda_nvcc/bin/ptxas", "cudnn/lib/__init__.py"):
        path = tmp_path / "nvidia" / name
        path.parent.mkdir(parents=True)
        path.touch()
    assert nvidia_libraries(tmp_path) == [tmp_path / "nvidia" / "cu13" / "lib", tmp_path / "nvidia" / "cublas" / "lib"]
    assert nvidia_libraries(tmp_path / "none") == []
