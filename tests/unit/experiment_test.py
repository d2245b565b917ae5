"""The registry: what is found, what is refused and how."""

import subprocess
import sys

import pytest

from recogdrive import experiment
from recogdrive.experiment import ConfigurationError, Experiment


def test_the_whole_family_is_registered():
    sizes = {f"{size}_{stage}" for size in ("2b", "8b") for stage in ("sft", "cache", "il", "il_ema", "rl", "eval")}
    registry = experiment.load_registry()
    assert sizes | {
        "quickstart",
        "quickstart_rl",
        "mini_il",
        "mini_rl",
        "debug_rl",
        "debug_il",
        "debug_il_ema",
        "debug_eval",
    } <= set(registry)


def test_files_and_registry_match_both_ways():
    files = {p.stem for p in (experiment.config_root() / "experiments").glob("*.gin")}
    assert files == set(experiment.load_registry())


def test_the_lineage_of_reinforcement_learning_begins_with_fine_tuning():
    chain = experiment.lineage(experiment.find_experiment("8b_rl"))
    assert [e.name for e in chain] == ["8b_sft", "8b_cache", "8b_il", "8b_rl"]


def test_published_scores_are_those_of_the_paper():
    registry = experiment.load_registry()
    scores = {name: registry[name].reference.pdms for name in ("2b_sft", "2b_il", "2b_rl", "8b_sft", "8b_il", "8b_rl")}
    assert scores == {"2b_sft": 84.1, "2b_il": 86.5, "2b_rl": 90.8, "8b_sft": 86.4, "8b_il": 86.5, "8b_rl": 90.4}


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match=r"no experiment '2b_ill'\. Did you mean '2b_il'"):
        experiment.find_experiment("2b_ill")


def test_a_name_unlike_any_other_is_answered_with_what_there_is():
    with pytest.raises(
        ConfigurationError, match=r"no experiment 'zzzzzz'\. There is: quickstart_sft, .* --list shows all"
    ):
        experiment.find_experiment("zzzzzz")


def test_what_this_version_lacks_is_said_in_a_sentence():
    with pytest.raises(ConfigurationError, match="later cannot run in this version: it needs a simulator"):
        Experiment("later", "Waits.", missing="a simulator").require_runnable()
    experiment.find_experiment("quickstart").require_runnable()


def _registry_at(tmp_path, monkeypatch, entries):
    (tmp_path / "experiments").mkdir()
    source = f"from recogdrive.experiment import Experiment\nEXPERIMENTS = [{entries}]\n"
    (tmp_path / "experiments" / "registry.py").write_text(source)
    monkeypatch.setattr(experiment, "config_root", lambda: tmp_path)


def test_two_entries_of_one_name_are_refused(tmp_path, monkeypatch):
    _registry_at(tmp_path, monkeypatch, "Experiment('a', 'x'), Experiment('a', 'y')")
    with pytest.raises(ConfigurationError, match="registers a twice"):
        experiment.load_registry()


def test_an_entry_that_starts_from_nothing_known_is_refused(tmp_path, monkeypatch):
    _registry_at(tmp_path, monkeypatch, "Experiment('a', 'x', starts_from='b')")
    with pytest.raises(ConfigurationError, match="a builds on b, which"):
        experiment.load_registry()


def test_the_table_shows_what_is_missing_beside_each_name():
    table = experiment.format_registry(
        {
            "ready": Experiment("ready", "Runs."),
            "later": Experiment("later", "Waits.", starts_from="ready", missing="a simulator"),
        }
    )
    before, after = table.split("Known, and not in this version")
    assert "ready" in before and "later" not in before
    assert "starts from ready" in after and "needs a simulator" in after


def _modules_and_answer(*arguments):
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "recogdrive.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    modules = {
        line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time:")
    }
    return modules, result


@pytest.mark.parametrize("arguments", [["--list"], ["--experiment=2b_ill"]])
def test_listing_and_unknown_names_are_answered_without_torch_or_jax(arguments):
    modules, result = _modules_and_answer(*arguments)
    assert "recogdrive.experiment" in modules
    assert not modules & {"torch", "jax", "torchax", "orbax", "grain"}
    assert result.returncode == (0 if arguments == ["--list"] else 2)


def test_the_list_is_on_standard_output_and_the_refusal_on_standard_error():
    _, listed = _modules_and_answer("--list")
    assert all(name in listed.stdout for name in experiment.load_registry())
    _, refused = _modules_and_answer("--experiment=debug_rll")
    assert refused.stdout == "" and "error: There is no experiment 'debug_rll'" in refused.stderr
