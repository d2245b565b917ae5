"""Fine-tuning of a tiny VLM on the town: what it leaves, what starts from it, what stays as it was."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from recogdrive.composition import Composition
from recogdrive.data.vlm.tokenizer import VlmTokenizer
from recogdrive.data.vlm.weights_folder import find_weights_folder
from recogdrive.experiment import ConfigurationError, find_experiment
from recogdrive.models.vlm.lora import Lora
from recogdrive.models.vlm.trainable import TrainableSet
from recogdrive.models.vlm.weights import load_weights, save_original
from recogdrive.run_folder import RunFolder
from recogdrive.stages import vlm_sft
from recogdrive.stages.vlm_sft import ANSWERS_FILE, VlmSft, updates_of
from recogdrive.training.checkpoint import load_params
from recogdrive.training.loop import Trainer
from recogdrive.training.optim import AdamW, Constant

STEPS = 4
LAYER = "model.vision_tower.encoder.layer.*."


def open_folder(path):
    return RunFolder(path, Composition(find_experiment("quickstart_sft"), "A = 1\n"), None)


def trainer(steps=STEPS, **settings):
    optimizer = AdamW(Constant(0.01), weight_decay=0.1)
    return Trainer(steps, optimizer=optimizer, seed=3, log_every=1, save_every=2, **settings)


class Untrained(Trainer):
    """Hands back what it was given to train, changed by `change`."""

    def __init__(self, change=lambda name, value: value):
        super().__init__(1)
        self.change = change

    def fit(self, objective, stream, workdir, evaluate, init_params, frozen, identity):
        self.frozen = frozen
        params = init_params or objective.init(jax.random.key(0))
        return SimpleNamespace(weights={name: self.change(name, value) for name, value in params.items()})


def stage(tiny_sft, own_trainer=None, *, vlm=None, data=None, **settings):
    defaults = {"batch_size": 2, "export_dtype": "float32", "export": ["original"]}
    return VlmSft(vlm or tiny_sft.vlm(), data or tiny_sft.data(), own_trainer or Untrained(), **defaults | settings)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(value), err_msg=name)


def from_random_weights(tiny_sft, steps=STEPS):
    return stage(
        tiny_sft,
        trainer(steps, best_metric="loss"),
        data=tiny_sft.data(held_out=lambda: tiny_sft.conversations(2, seed=2)),
        from_scratch=True,
        answers=2,
        max_new_tokens=3,
        export=["original", "transformers"],
    )


@pytest.fixture(scope="module")
def trained(tiny_sft, tmp_path_factory):
    path = tmp_path_factory.mktemp("sft") / "trained"
    return path, from_random_weights(tiny_sft).run(open_folder(path), None)


@pytest.fixture(scope="module")
def weights(trained):
    """The final ones."""
    return load_params(trained[0], which="latest")


@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_the_final_weights_are_exported_in_both_layouts(trained, weights, layout):
    assert_equal(load_weights(trained[0] / "export" / layout).params, weights)


def test_the_run_folder_stands_for_its_export(trained):
    assert find_weights_folder(trained[0]) == trained[0] / "export" / "original"


def test_the_tokenizer_lies_beside_the_weights(tiny_sft, trained):
    for layout in ("original", "transformers"):
        read = VlmTokenizer.from_folder(trained[0] / "export" / layout)
        assert read.fingerprint == tiny_sft.tokenizer.fingerprint


def test_the_loss_falls_and_every_step_is_logged(trained):
    lines = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert steps[-1]["loss"] < 0.95 * steps[0]["loss"]
    assert all(line["supervised_tokens"] > 0 for line in steps)


def test_run_json_says_what_the_data_and_the_weights_were(trained):
    record = json.loads((trained[0] / "run.json").read_text())
    assert record["data"]["train"].startswith("town_1: 8 of 8 samples usable")
    assert record["data"]["held out"] == "4 conversations of town_2"
    assert (record["weights"], record["steps"]) == ("random, seed 3", STEPS)
    assert record["held_out"] == trained[1] and set(trained[1]) == {"loss", "accuracy"}


def test_answers_to_held_out_questions_are_written_beside_the_datas(tiny_sft, trained):
    text = (trained[0] / ANSWERS_FILE).read_text()
    assert text.count("**Question**") == text.count("**Model**") == 2
    assert tiny_sft.conversations(2, seed=2)[0].turns[-1].text in text


def test_an_interrupted_run_ends_with_the_same_weights_to_the_bit(tiny_sft, trained, weights, tmp_path):
    from_random_weights(tiny_sft, steps=STEPS - 1).run(open_folder(tmp_path), None)
    # The export of the shorter run is there already.
    from_random_weights(tiny_sft).run(open_folder(tmp_path), None)
    assert_equal(load_params(tmp_path, which="latest"), weights)
    assert_equal(load_weights(tmp_path / "export" / "original").params, weights)


def test_a_finished_run_started_again_says_the_same(tiny_sft, trained):
    path, figures = trained
    assert from_random_weights(tiny_sft).run(open_folder(path), None) == pytest.approx(figures, rel=1e-5)


@pytest.mark.parametrize("place", ["", "export/original", "export/transformers"])
def test_a_run_starts_from_a_runs_weights_in_either_layout(tiny_sft, trained, weights, tmp_path, place):
    stage(tiny_sft).run(open_folder(tmp_path), trained[0] / place)
    assert_equal(load_weights(find_weights_folder(tmp_path)).params, weights)


def test_frozen_parts_stay_as_they_were_and_are_in_no_checkpoint(tiny_sft, trained, weights, tmp_path):
    chosen = TrainableSet(freeze_backbone=True, freeze_llm=True, unfreeze_vit_layers=-1)
    stage(tiny_sft, trainer(2), trainable=chosen).run(open_folder(tmp_path), trained[0])
    saved = load_params(tmp_path, which="latest")
    assert {name.split(".")[1] for name in saved} == {"vision_tower", "multi_modal_projector"}
    assert all(name.startswith((LAYER, "model.multi_modal_projector.")) for name in saved)
    after = load_weights(tmp_path / "export" / "original").params
    assert_equal(
        {n: v for n, v in after.items() if n not in saved}, {n: v for n, v in weights.items() if n not in saved}
    )
    for name in saved:
        changed = after[name] != np.asarray(weights[name])
        if name.startswith(LAYER):  # The first of two layers is as it was, though weight decay would move it.
            assert not changed[0].any()
            changed = changed[1]
        assert changed.any(), name


def test_adapters_train_alone_and_are_merged_into_the_export(tiny_sft, trained, weights, tmp_path):
    vlm = tiny_sft.vlm(lora=Lora(rank=2, dropout=0.1))
    chosen = TrainableSet(freeze_backbone=True, freeze_mlp=True)
    stage(tiny_sft, trainer(2), vlm=vlm, trainable=chosen).run(open_folder(tmp_path), trained[0])
    saved = load_params(tmp_path, which="latest")
    assert {name.rpartition(".")[2] for name in saved} == {"lora_a", "lora_b"}
    after = load_weights(tmp_path / "export" / "original").params
    assert after.keys() == weights.keys()
    for name, value in weights.items():
        linear = name.removesuffix(".weight")
        change = 0.0
        if f"{linear}.lora_a" in saved:
            change = 2 * np.asarray(saved[f"{linear}.lora_b"]) @ np.asarray(saved[f"{linear}.lora_a"])
            assert np.abs(change).max() > 0
        np.testing.assert_allclose(after[name], np.asarray(value) + change, atol=1e-6, err_msg=name)


def test_merged_weights_compute_what_adapters_compute(tiny_sft, trained, weights, tmp_path):
    with_adapters, kept = tiny_sft.vlm(lora=Lora(rank=2, part="both")), {}

    def change(name, value):
        kept[name] = 0.2 * np.random.default_rng(len(name)).normal(size=value.shape).astype(np.float32)
        return kept[name]

    own = Untrained(change)
    chosen = TrainableSet(freeze_mlp=True)
    stage(tiny_sft, own, vlm=with_adapters, trainable=chosen).run(open_folder(tmp_path), trained[0])
    merged = load_weights(tmp_path / "export" / "original").params
    batch = one_row(tiny_sft)
    found = logits_of(tiny_sft.vlm(), merged, batch)
    expected = logits_of(with_adapters, {**own.frozen, **kept}, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(found - logits_of(tiny_sft.vlm(), weights, batch)).max() > 0.1


def logits_of(vlm, params, batch):
    return jax.jit(lambda p: vlm.logits(p, vlm.hidden_states(p, batch)))(params)


def one_row(tiny_sft):
    rng = np.random.default_rng(0)
    ids = rng.integers(20, 500, (1, 12)).astype(np.int32)
    ids[0, 2] = tiny_sft.tokenizer.img_context_id
    return {
        "input_ids": ids,
        "segment_ids": np.ones((1, 12), np.int32),
        "position_ids": np.arange(12, dtype=np.int32)[None],
        "tiles": rng.integers(0, 256, (1, 1, 28, 28, 3)).astype(np.uint8),
        "num_tiles": np.ones(1, np.int32),
    }


def test_weights_of_another_size_are_refused_by_name_of_the_sizes(tiny_sft, trained, tmp_path):
    other = stage(tiny_sft, vlm=tiny_sft.vlm(width=32))
    with pytest.raises(ConfigurationError, match=r"language.width is 16, configured 32"):
        other.run(open_folder(tmp_path), trained[0])


def test_a_tokenizer_that_the_model_has_no_rows_for_is_refused(tiny_sft, tmp_path):
    larger = SimpleNamespace(vocab_size=769, img_context_id=tiny_sft.tokenizer.img_context_id)
    data = tiny_sft.data(tokenizer=SimpleNamespace(open=lambda weights: larger))
    with pytest.raises(ConfigurationError, match="769 tokens.*Set VOCAB_SIZE"):
        stage(tiny_sft, data=data, from_scratch=True).run(open_folder(tmp_path), None)


def test_a_run_without_weights_is_refused_unless_random_ones_are_meant(tiny_sft, tmp_path):
    with pytest.raises(ValueError, match="set VLM_WEIGHTS"):
        stage(tiny_sft).run(open_folder(tmp_path), None)


def test_a_folder_without_weights_is_refused(tiny_sft, tmp_path):
    with pytest.raises(ValueError, match="holds no VLM weights"):
        stage(tiny_sft).run(open_folder(tmp_path / "run"), tmp_path)


def test_rows_are_added_for_tokens_that_the_weights_lack(tiny_sft, trained, tmp_path):
    smaller = load_weights(find_weights_folder(trained[0]))
    vocabulary = ("model.language_model.embed_tokens.weight", "lm_head.weight")
    cut = {n: v[:760] if n in vocabulary else v for n, v in smaller.params.items()}
    config = smaller.config
    language = type(config.language)(**vars(config.language) | {"vocab_size": 760})
    save_original(tmp_path / "weights", type(config)(**vars(config) | {"language": language}), cut, dtype="float32")
    stage(tiny_sft).run(open_folder(tmp_path / "run"), tmp_path / "weights")
    after = load_weights(find_weights_folder(tmp_path / "run")).params
    np.testing.assert_array_equal(after["lm_head.weight"][:760], cut["lm_head.weight"])
    np.testing.assert_allclose(after["lm_head.weight"][760:], np.tile(cut["lm_head.weight"].mean(0), (8, 1)), atol=1e-6)


@pytest.mark.parametrize(
    "epochs, rows, batch_size, updates",
    [(3, 100, 8, 36), (0.5, 100, 8, 6), (1, 5, 8, 1), (2.5, 5, 8, 3), (3, 649_058, 128, 15_210)],
)
def test_epochs_are_whole_batches_and_round_up(epochs, rows, batch_size, updates):
    assert updates_of(epochs, rows, batch_size) == updates


def test_epochs_decide_the_length_of_the_run(tiny_sft, tmp_path):
    own = Untrained()
    stage(tiny_sft, own, from_scratch=True, epochs=2.5).run(open_folder(tmp_path), None)
    rows = 5  # Four conversations of 148 tokens fill a row of 160 each; the four short ones share one or two.
    steps = json.loads((tmp_path / "run.json").read_text())["steps"]
    assert steps in {updates_of(2.5, rows, 2), updates_of(2.5, rows + 1, 2)} and own.steps == 1


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epochs": 0}, "epochs=0"),
        ({"export": ["hugging_face"]}, "'hugging_face'; layouts are original, transformers"),
        ({"export_dtype": "float16"}, "export_dtype='float16'"),
        ({"answers": -1}, "answers=-1"),
        ({"held_out_batches": 0}, "held_out_batches=0"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_sft, settings, message):
    with pytest.raises(ValueError, match=message):
        stage(tiny_sft, **settings)


def test_tiles_of_another_side_than_the_models_are_refused(tiny_sft):
    data = tiny_sft.data()
    data.tiling = type(data.tiling)(56)
    with pytest.raises(ValueError, match=r"image_size=56.*28 pixels"):
        stage(tiny_sft, data=data)


def test_groups_that_do_not_divide_a_micro_batch_are_refused(tiny_sft):
    with pytest.raises(ValueError, match="rows_per_group=2 does not divide"):
        stage(tiny_sft, trainer(accumulation_steps=2), vlm=tiny_sft.vlm(rows_per_group=2))


def test_the_description_tells_weights_and_frozen_ones_without_data(tiny_sft, monkeypatch):
    def absent():
        raise OSError("no such file: annotations")

    monkeypatch.setattr(vlm_sft, "training_memory", lambda shapes: {"asked for": (shapes.batch, shapes.frozen)})
    description = stage(tiny_sft, data=tiny_sft.data(train=absent), trainable=TrainableSet(freeze_llm=True)).describe()
    assert description.data == {"train": "not available: no such file: annotations", "held out": "none"}
    batch, frozen = description.memory_bytes["asked for"]
    shapes = {row.name: row.shape for row in description.parameters}
    language = {n: s for n, s in shapes.items() if "language_model" in n or n == "lm_head.weight"}
    assert {name: leaf.shape for name, leaf in frozen.items()} == language
    assert (batch["tiles"].shape, batch["loss_weight"].shape) == ((2, 3, 28, 28, 3), (2, 160))
