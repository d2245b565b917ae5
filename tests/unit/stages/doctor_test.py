"""The doctor: what it finds, what it says to do, and what it refuses."""

import json

import jax
import pytest
from packaging.requirements import Requirement

from recogdrive.composition import Composition
from recogdrive.experiment import find_experiment
from recogdrive.pdm.machine import MachineError
from recogdrive.run_folder import RunFolder
from recogdrive.stages import doctor_devices, doctor_machine, doctor_software
from recogdrive.stages.doctor import Doctor, UnfitMachineError
from recogdrive.stages.doctor_findings import Finding, Level, doctor_text

GIB = 2**30


def folder(path):
    return RunFolder(path, Composition(find_experiment("doctor"), "A = 1\n"), None)


def only(findings):
    (finding,) = findings
    return finding.level, finding.found, finding.remedy


def test_a_machine_that_runs_the_tests_can_run_experiments(navsim_mini, tmp_path, capsys):
    Doctor(data_root=str(navsim_mini)).run(folder(tmp_path), None)
    printed = capsys.readouterr().out
    assert printed.startswith("\nThis machine can run experiments.")
    record = json.loads((tmp_path / "doctor.json").read_text())
    assert record["runs_possible"] is True and record["versions"]["jax"] == jax.__version__
    by_area = {finding["area"] for finding in record["findings"]}
    assert by_area >= {"software", "torch, torchax, JAX", "devices", "linear algebra", "memory", "disk", "data"}
    found = " ".join(finding["found"] for finding in record["findings"])
    assert "a check broke" not in found
    assert "gives torch's outputs and gradients" in found and "cpu device" in found and "logs: mini 2" in found


def test_a_fatal_finding_fails_after_everything_was_printed_and_written(tmp_path, capsys, monkeypatch):
    fatal = Finding(Level.FATAL, "there is no memory", "Buy some.")
    monkeypatch.setattr(doctor_machine, "check_memory", lambda: [fatal])
    monkeypatch.setattr(doctor_software, "check_pairing", lambda: 1 / 0)
    with pytest.raises(UnfitMachineError, match=r"No experiment can run here: there is no memory\. What to do"):
        Doctor().run(folder(tmp_path), None)
    printed = capsys.readouterr().out
    assert "  FATAL    there is no memory\n           -> Buy some.\n" in printed
    assert "a check broke: ZeroDivisionError" in printed
    assert json.loads((tmp_path / "doctor.json").read_text())["runs_possible"] is False


def test_packages_that_are_missing_or_outside_their_range_are_named_with_the_command(capsys):
    needed = [Requirement("numpy>=1"), Requirement("jax>=99"), Requirement("no-such-package>=1,<2")]
    findings = doctor_software.check_packages(needed)
    assert [f.level for f in findings if f.level not in (Level.OK, Level.NOTE)] == [Level.WARNING, Level.FATAL]
    assert "1 of 3 packages within their tested ranges" in findings[1].found
    assert findings[-1].remedy.startswith("pip install 'no-such-package<2,>=1'")


def test_what_recogdrive_needs_is_read_from_its_own_declaration():
    assert {"torch", "torchax", "jax"} <= {requirement.name for requirement in doctor_software.requirements()}


def test_a_pair_that_computes_something_else_or_nothing_is_fatal(monkeypatch):
    def shifted(module):
        return lambda parameters, method, tokens: sum(p.sum() for p in parameters.values()) * 0 + tokens

    def broken(module):
        return lambda *arguments: module.no_such_name

    for replaced, words in ((shifted, "is off by"), (broken, "do not work together: AttributeError")):
        monkeypatch.setattr(doctor_software, "functional", replaced)
        level, found, remedy = only(doctor_software.check_pairing())
        assert level is Level.FATAL and words in found and "pip install -c constraints.txt" in remedy


def test_a_torchvision_that_does_not_import_is_to_be_removed(monkeypatch):
    monkeypatch.setattr(doctor_software.importlib.util, "find_spec", lambda name: object())

    def raising(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor_software.importlib, "import_module", raising)
    level, found, remedy = only(doctor_software.check_torchvision())
    assert level is Level.WARNING and "torchvision::nms" in found and remedy.startswith("pip uninstall torchvision")


def test_no_device_at_all_is_fatal_and_says_which_extra_brings_it(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    nothing = {"platform": None, "problem": "none of the platforms asked for is there"}
    monkeypatch.setattr(doctor_devices, "device", lambda: nothing)
    monkeypatch.setattr(doctor_software, "device", lambda: nothing)
    level, found, remedy = only(doctor_devices.check_devices())
    assert level is Level.FATAL and "JAX_PLATFORMS='tpu'" in found and "'.[tpu]'" in remedy
    assert doctor_software.check_pairing() == []


def test_a_device_that_multiplies_wrong_is_fatal(monkeypatch):
    monkeypatch.setattr(doctor_devices, "_multiplies", lambda device: False)
    assert doctor_devices.check_devices()[-1].level is Level.FATAL


def test_an_accelerator_that_jax_does_not_use_is_a_warning_unless_it_is_hidden_on_purpose(monkeypatch, tmp_path):
    gpus = ["NVIDIA H100, 580.65.06", "NVIDIA H100, 580.65.06"]
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    level, found, remedy = only(doctor_devices.check_unused_devices("cpu", gpus, tmp_path))
    assert (level, found) == (Level.WARNING, "2 x NVIDIA H100: there, but JAX computes on cpu") and "[cuda]" in remedy
    assert doctor_devices.check_unused_devices("gpu", gpus, tmp_path) == []
    (tmp_path / "accel0").touch()
    assert "[tpu]" in only(doctor_devices.check_unused_devices("cpu", [], tmp_path))[2]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    level, _, remedy = only(doctor_devices.check_unused_devices("cpu", gpus, tmp_path / "none"))
    assert level is Level.NOTE and "launch/gpu" in remedy


def test_an_old_nvidia_driver_is_a_warning(tmp_path):
    level, found, _ = only(doctor_devices.check_unused_devices("gpu", ["NVIDIA A100, 535.1"], tmp_path))
    assert level is Level.WARNING and "driver 535.1 is older than CUDA 13 asks for" in found


def test_another_cuda_before_pips_is_a_warning(tmp_path):
    own, other = tmp_path / "nvidia" / "cu13" / "lib", tmp_path / "cuda" / "lib64"
    for path in (own, other):
        path.mkdir(parents=True)
        (path / "libcublas.so.13").touch()
    variables = {"LD_LIBRARY_PATH": f"{own}:{other}:/nowhere"}
    level, found, _ = only(doctor_devices.check_cuda_libraries(variables, tmp_path))
    assert level is Level.WARNING and f"{other} with libcublas.so.13" in found
    assert doctor_devices.check_cuda_libraries({"LD_LIBRARY_PATH": str(own)}, tmp_path) == []


def test_variables_that_change_numbers_are_warnings_and_others_are_shown():
    findings = doctor_devices.check_variables({"JAX_ENABLE_X64": "1", "JAX_DISABLE_JIT": "0", "XLA_FLAGS": "--x"})
    assert [(f.level, f.found.split(":")[0]) for f in findings] == [
        (Level.WARNING, "JAX_ENABLE_X64=1"),
        (Level.NOTE, "set"),
    ]
    assert doctor_devices.check_variables({}) == []


def test_wrong_linear_algebra_is_fatal_with_what_to_install(monkeypatch):
    def wrong():
        raise MachineError("This machine computes a product wrong: NumPy 1.23. Nothing was written. Install another.")

    monkeypatch.setattr(doctor_machine, "check_linear_algebra", wrong)
    assert only(doctor_machine.check_blas()) == (
        Level.FATAL,
        "This machine computes a product wrong: NumPy 1.23.",
        "Install another.",
    )


def test_the_limit_of_a_container_or_batch_job_counts_as_memory(tmp_path):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: {64 * 2**20} kB\nMemAvailable: {32 * 2**20} kB\n")
    assert doctor_machine.memory_bytes(tmp_path) == (64 * GIB, 32 * GIB)
    job = tmp_path / "sys" / "fs" / "cgroup" / "slurm" / "job_1"
    job.mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/slurm/job_1\n")
    (job / "memory.max").write_text("max\n")
    (job.parent / "memory.max").write_text(f"{8 * GIB}\n")
    (job.parent / "memory.current").write_text(f"{3 * GIB}\n")
    assert doctor_machine.memory_bytes(tmp_path) == (8 * GIB, 5 * GIB)


@pytest.mark.parametrize(("free_gib", "level"), [(0.5, Level.FATAL), (3, Level.WARNING), (16, Level.OK)])
def test_memory_is_judged_by_what_is_free(free_gib, level):
    assert only(doctor_machine.check_memory((32 * GIB, int(free_gib * GIB))))[0] is level


@pytest.mark.parametrize(("free_gib", "level"), [(0.1, Level.FATAL), (20, Level.NOTE), (500, Level.OK)])
def test_disk_is_judged_by_what_is_free(tmp_path, free_gib, level):
    assert doctor_machine.check_disk(tmp_path, int(free_gib * GIB))[0].level is level


def test_a_folder_that_cannot_be_written_is_fatal(tmp_path, monkeypatch):
    def refused(**arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor_machine.tempfile, "NamedTemporaryFile", refused)
    finding = doctor_machine.check_disk(tmp_path, 500 * GIB)[1]
    assert finding.level is Level.FATAL and "cannot write in" in finding.found and "Permission denied" in finding.found


def test_few_open_files_and_programs_that_are_not_kept_are_noted(tmp_path):
    assert only(doctor_machine.check_open_files(256))[2].startswith("ulimit -n ")
    assert doctor_machine.check_open_files(4096) == []
    assert "JAX_COMPILATION_CACHE_DIR" in only(doctor_machine.check_compile_cache(""))[2]
    assert only(doctor_machine.check_compile_cache(str(tmp_path)))[0] is Level.OK


def test_data_roots_that_are_not_set_not_there_or_empty_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENSCENE_DATA_ROOT", raising=False)
    level, found, remedy = only(doctor_machine.check_data(None, None))
    assert level is Level.NOTE and "synthetic town run" in found and "export OPENSCENE_DATA_ROOT" in remedy
    assert only(doctor_machine.check_data(str(tmp_path / "x"), None))[0] is Level.WARNING
    findings = doctor_machine.check_data(str(tmp_path), None)
    assert any(f.level is Level.WARNING and "navsim_logs" in f.found for f in findings)
    assert "--experiment=data_check" in findings[-1].remedy


def test_the_report_begins_with_the_verdict_and_wraps_what_is_long():
    findings = [
        Finding(Level.OK, "word " * 40, area="one"),
        Finding(Level.WARNING, "slow", "first line\nsecond line", area="two"),
    ]
    lines = doctor_text(findings).splitlines()
    assert lines[0] == "This machine can run experiments. 1 warning: look at what is marked so."
    assert max(map(len, lines)) <= 110 and lines[3].startswith("  ok       word")
    assert lines[-3:] == ["  WARNING  slow", "           -> first line", "           -> second line"]
