"""What a run folder records, and when it refuses."""

import json
import subprocess

import gin
import pytest

from recogdrive import run_folder
from recogdrive.composition import Composition
from recogdrive.experiment import ConfigurationError, Experiment
from recogdrive.hosts import member
from recogdrive.run_folder import RunFolder, device, end_attempt, write_text

EXPERIMENT = Experiment("debug_x", "A run.", starts_from="debug_il")


def composition(text="A = 1\n", experiment=EXPERIMENT):
    return Composition(experiment, text)


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_new_folder_holds_configuration_and_record_from_the_start(tmp_path):
    RunFolder(tmp_path / "a" / "run", composition(), parent="runs/il")
    found = record(tmp_path / "a" / "run")
    assert (tmp_path / "a" / "run" / "config.gin").read_text() == "A = 1\n"
    assert (found["experiment"], found["starts_from"], found["parent"]) == ("debug_x", "debug_il", "runs/il")
    assert found["attempts"][0]["status"] == "running"


def test_versions_and_device_are_those_of_this_process(tmp_path):
    import jax
    import numpy

    RunFolder(tmp_path, composition(), None)
    found = record(tmp_path)
    assert found["versions"]["jax"] == jax.__version__ and found["versions"]["numpy"] == numpy.__version__
    assert found["device"]["count"] == jax.device_count()


def test_closing_writes_the_operative_configuration_and_how_it_ended(tmp_path):
    folder = RunFolder(tmp_path, composition(), None)
    folder.update(data={"train": "3 scenes"})
    folder.close("finished")
    assert record(tmp_path)["data"] == {"train": "3 scenes"}
    assert record(tmp_path)["attempts"][0]["status"] == "finished"
    assert (tmp_path / "operative_config.gin").read_text() == gin.operative_config_str()


def test_another_than_the_first_process_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(member, "is_lead", lambda: False)
    folder = RunFolder(tmp_path, composition(), None)
    folder.update(seed=1)
    folder.close("finished")
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_that_could_not_end_itself_is_ended_once(tmp_path):
    RunFolder(tmp_path, composition(), None)
    end_attempt(tmp_path, "lost process 1 (b): SIGKILL")
    end_attempt(tmp_path, "later")
    assert record(tmp_path)["attempts"][0]["status"] == "lost process 1 (b): SIGKILL"
    assert "finished" in record(tmp_path)["attempts"][0]


def test_every_start_of_a_run_is_kept(tmp_path):
    RunFolder(tmp_path, composition(), None).close("preempted")
    RunFolder(tmp_path, composition(), None).close("finished")
    assert [attempt["status"] for attempt in record(tmp_path)["attempts"]] == ["preempted", "finished"]


def test_every_attempt_gets_the_account_of_the_training_that_began_in_it_a_killed_one_too(tmp_path, monkeypatch):
    times = iter(["2026-11-26T08:00:00+00:00", "2026-11-26T09:00:00+00:00", "2026-11-26T09:30:00+00:00"])
    monkeypatch.setattr(run_folder, "_now", lambda: next(times))
    RunFolder(tmp_path, composition(), None)  # Killed.
    folder = RunFolder(tmp_path, composition(), None)
    accounts = [
        {"started": "2026-11-26T08:00:07+00:00", "to_step": 5},
        {"started": "2026-11-26T09:00:07+00:00", "to_step": 9},
    ]
    (tmp_path / "goodput.json").write_text(json.dumps(accounts))
    folder.close("finished")
    found = [(attempt["status"], attempt["goodput"]) for attempt in record(tmp_path)["attempts"]]
    assert found == [("running", {"to_step": 5}), ("finished", {"to_step": 9})]


def test_an_unreadable_account_of_the_time_does_not_spoil_the_end_of_a_run(tmp_path):
    folder = RunFolder(tmp_path, composition(), None)
    (tmp_path / "goodput.json").write_text("[{")
    folder.close("finished")
    assert "goodput" not in record(tmp_path)["attempts"][0]


def test_a_changed_configuration_keeps_the_earlier_one_and_logs_the_difference(tmp_path, caplog):
    RunFolder(tmp_path, composition("STEPS = 1\n"), None)
    with caplog.at_level("WARNING"):
        RunFolder(tmp_path, composition("STEPS = 2\n"), None)
    assert (tmp_path / "config.gin").read_text() == "STEPS = 2\n"
    assert (tmp_path / "config.0.gin").read_text() == "STEPS = 1\n"
    assert "-STEPS = 1" in caplog.text and "+STEPS = 2" in caplog.text


def test_an_unchanged_configuration_leaves_one_file(tmp_path):
    RunFolder(tmp_path, composition(), None)
    RunFolder(tmp_path, composition(), None)
    assert [p.name for p in tmp_path.glob("config*.gin")] == ["config.gin"]


def test_a_folder_of_another_experiment_is_refused(tmp_path):
    RunFolder(tmp_path, composition(experiment=None), None)
    with pytest.raises(ConfigurationError, match=r"holds a run of custom, not of debug_x; choose another --workdir"):
        RunFolder(tmp_path, composition(), None)


def test_a_damaged_record_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"run.json is not readable as JSON"):
        RunFolder(tmp_path, composition(), None)
    assert (tmp_path / "run.json").read_text() == "{"


def test_a_folder_that_cannot_be_made_is_refused_with_the_cause(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"Cannot write the run folder .*file/run: Not a directory"):
        RunFolder(tmp_path / "file" / "run", composition(), None)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_text(path, "old")
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_the_commit_is_that_of_the_checkout_with_a_mark_for_changes(tmp_path, monkeypatch):
    (tmp_path / "recogdrive").mkdir()
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "recogdrive" / "run_folder.py"))
    assert run_folder.commit_of_checkout() is None

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD").stdout.decode().strip()
    assert run_folder.commit_of_checkout() == commit
    (tmp_path / "file").write_text("two")
    assert run_folder.commit_of_checkout() == commit + "+changes"


def test_a_machine_without_the_device_asked_for_is_recorded_with_the_reason(monkeypatch):
    def none():
        raise AssertionError

    monkeypatch.setattr("jax.devices", none)
    assert device()["platform"] is None
    assert device()["problem"] == "none of the platforms asked for is there"
