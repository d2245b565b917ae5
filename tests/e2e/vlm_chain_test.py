"""The VLM stages in a chain, from random weights: fine-tuning, cache, imitation on it, online mode, text planner."""

import json

import gin
import pytest

from recogdrive.composition import compose
from recogdrive.data.hidden_cache.reader import HiddenStateContainer
from recogdrive.data.vlm.tokenizer import VlmTokenizer
from recogdrive.data.vlm.weights_folder import find_weights_folder
from recogdrive.experiment import find_experiment
from recogdrive.models.vlm.weights import load_weights, save_original, weights_fingerprint
from recogdrive.stages import base

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shared_dir):
    """Folder with the run of every debug experiment of the chain, under its name."""
    folder = tmp_path_factory.mktemp("runs")
    sft = f"VLM_WEIGHTS='{folder / 'debug_sft'}'"
    chain = {
        "debug_sft": [f"TOKENIZER='{shared_dir / 'data' / 'tokenizer'}'"],
        "debug_vlm_eval": [sft],
        "debug_cache": [sft],
        "debug_cached_il": [f"HIDDEN_CACHE='{folder / 'debug_cache'}'"],
        "debug_online_eval": [sft, f"PARENT='{folder / 'debug_cached_il'}'"],
    }
    for name, bindings in chain.items():
        composition = compose(find_experiment(name), [], bindings)
        assert base.execute(composition, folder / name) == 0, name
        gin.clear_config()
    return folder


def summary(runs, name):
    return json.loads((runs / name / "summary.json").read_text())


def test_fine_tuning_lowers_the_loss_and_exports_both_layouts_of_the_same_weights(runs):
    lines = [json.loads(line) for line in (runs / "debug_sft" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert any("eval/loss" in line for line in lines)
    original, transformers = (runs / "debug_sft" / "export" / layout for layout in ("original", "transformers"))
    assert weights_fingerprint(original) == weights_fingerprint(transformers)
    assert VlmTokenizer.from_folder(find_weights_folder(runs / "debug_sft")).vocab_size == 151_682


def test_the_cache_holds_every_scene_of_both_splits(runs):
    counts = json.loads((runs / "debug_cache" / "cache_hidden_states.json").read_text())
    assert (counts["scenes"], counts["stored"], counts["failed"]) == (64, 64, 0)
    container = HiddenStateContainer(runs / "debug_cache" / "hidden_states")
    container.verify()
    states = container.read(container.tokens[0])
    assert states.tokens.shape == (512, 32) and 0 < states.mask.sum() < 512


def test_a_planner_trained_on_the_cache_plans_the_same_with_the_vlm_in_its_program(runs):
    cached, online = summary(runs, "debug_cached_il"), summary(runs, "debug_online_eval")
    for metric in ("ade", "fde", "heading_error"):
        # The states are the same bits; the planner's own products are rounded as another program has them.
        assert online["planner"][metric] == pytest.approx(cached["planner"][metric], rel=1e-4)
    assert online["planner"]["scenes"] == 16


def test_answers_that_state_no_trajectory_are_counted_and_score_nothing(runs):
    found = summary(runs, "debug_vlm_eval")["vlm_text"]
    answers = [json.loads(line) for line in (runs / "debug_vlm_eval" / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 8
    assert found["invalid"] == 8 and found["parse_rate"] == 0.0
    assert found["pdms"] == 0.0
    assert all(not answer["valid"] and answer["problem"] for answer in answers)


def test_a_planner_is_refused_on_the_states_of_other_weights(runs, tmp_path, capsys):
    exported = runs / "debug_sft" / "export" / "original"
    loaded = load_weights(exported)
    loaded.params["model.language_model.norm.weight"][0] += 1.0
    other = tmp_path / "other"
    save_original(other, loaded.config, loaded.params, VlmTokenizer.from_folder(exported), dtype="float32")
    bindings = [f"VLM_WEIGHTS='{other}'", f"PARENT='{runs / 'debug_cached_il'}'"]
    composition = compose(find_experiment("debug_online_eval"), [], bindings)
    assert base.execute(composition, tmp_path / "online") == base.FAILED_EXIT_CODE
    error = capsys.readouterr().err
    assert "was trained on the context" in error and "weights" in error
