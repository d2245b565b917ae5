"""Loss and answers on held-out conversations."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from recogdrive.data.vlm.conversations import Conversation, Turn
from recogdrive.data.vlm.stream import BatchesOnce
from recogdrive.evaluation.held_out import HeldOutEvaluation, HeldOutLoss, SampleAnswers, evenly_spaced
from recogdrive.training.sharding import DataParallel


@pytest.fixture(scope="module")
def held_out(tiny_sft, tmp_path_factory):
    """Samples of eight conversations, and their sizes."""
    data = tiny_sft.data()
    return data.samples(data.open_train(), tiny_sft.tokenizer, 1, 0, tmp_path_factory.mktemp("survey"))


def batches(tiny_sft, held_out, reduction):
    return BatchesOnce(*held_out, tiny_sft.data().layout, batch_size=2, loss_reduction=reduction)


@pytest.fixture(scope="module")
def model(tiny_sft):
    """A model and weights that guess something: the head is drawn wide."""
    vlm = tiny_sft.vlm()
    params = dict(jax.jit(vlm.init)(jax.random.key(4)))
    return vlm, params | {"lm_head.weight": 30 * params["lm_head.weight"]}


def by_hand(vlm, params, held_out, weigh):
    """Weighted mean over all labels of each conversation run alone, and the share of labels guessed."""
    samples, survey = held_out
    forward = jax.jit(lambda batch: vlm.logits(params, vlm.hidden_states(params, batch)))
    loss = weight = right = count = 0.0
    for index in survey.usable:
        sample = samples[int(index)]
        length = len(sample.input_ids)
        batch = {
            "input_ids": np.zeros((1, 160), np.int32),
            "segment_ids": np.zeros((1, 160), np.int32),
            "position_ids": np.arange(160, dtype=np.int32)[None],
            "tiles": np.zeros((1, 1, 28, 28, 3), np.uint8),
            "num_tiles": np.array([len(sample.tiles)], np.int32),
        }
        batch["input_ids"][0, :length] = sample.input_ids
        batch["segment_ids"][0, :length] = 1
        batch["tiles"][0, : len(sample.tiles)] = sample.tiles
        logits = np.asarray(forward(batch), np.float64)[0, : length - 1]
        labels = sample.labels[1:]
        at = np.flatnonzero(labels >= 0)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        own = weigh(len(at))
        loss -= own * log_probs[at, labels[at]].sum()
        weight += own * len(at)
        right += (logits[at].argmax(axis=1) == labels[at]).sum()
        count += len(at)
    return {"loss": loss / weight, "accuracy": right / count}


@pytest.mark.parametrize("reduction, weigh", [("token", lambda n: 1.0), ("sample", lambda n: 1 / n)])
def test_the_loss_is_the_weighted_mean_over_all_labels(tiny_sft, held_out, model, reduction, weigh):
    vlm, params = model
    chosen = batches(tiny_sft, held_out, reduction)
    assert len(chosen) > 1
    found = HeldOutLoss(vlm, chosen, range(len(chosen)), DataParallel(1), 2)(params)
    assert found == pytest.approx(by_hand(vlm, params, held_out, weigh), rel=1e-4)


class Sums:
    """A model whose sums are those of the batch's own numbers."""

    def loss_rows(self, params, batch):
        return batch["loss"], batch["weight"], batch["right"], batch["supervised"]


class Numbered:
    """Batches by number; notes which were made."""

    def __init__(self):
        self.made = []

    def __getitem__(self, index):
        self.made.append(index)
        rows = np.array([index, 1.0], np.float32)
        return {"loss": rows, "weight": 0 * rows + 1, "right": rows, "supervised": 0 * rows + 2}


def test_only_chosen_batches_are_made_and_anew_each_time():
    source = Numbered()
    held_out = HeldOutLoss(Sums(), source, [1, 5], DataParallel(1), 2)
    assert source.made == []
    # (1 + 1 + 5 + 1) / 4 and (1 + 1 + 5 + 1) / 8.
    assert held_out({}) == {"loss": 2.0, "accuracy": 1.0}
    held_out({})
    assert source.made == [1, 5, 1, 5]


@pytest.mark.parametrize(
    "length, count, expected",
    [(10, 3, [0, 4, 9]), (3, 10, [0, 1, 2]), (5, 1, [0]), (4, 0, []), (0, 3, [])],
)
def test_numbers_are_evenly_spaced(length, count, expected):
    assert evenly_spaced(length, count).tolist() == expected


class Parrot:
    """Answers every prompt with the same text; keeps the prompts."""

    def __init__(self, tokenizer, text):
        self.ids = [*tokenizer.encode(text), tokenizer.eos_id]

    def generate(self, params, batch, max_new_tokens, stop_ids):
        self.batch, self.stop_ids = batch, stop_ids
        ids = np.zeros((len(batch["num_tiles"]), max_new_tokens), np.int32)
        ids[:, : len(self.ids)] = self.ids[:max_new_tokens]
        return ids, np.full(len(ids), min(len(self.ids), max_new_tokens), np.int32)


def answers_of(samples, model, chosen=(0, 1)):
    return SampleAnswers(model, samples, chosen, 20, DataParallel(1))


def test_questions_and_both_answers_are_shown_as_markdown(tiny_sft, held_out):
    samples, _ = held_out
    text = answers_of(samples, Parrot(tiny_sft.tokenizer, "No."))({})
    shown = text.split("\n\n---\n\n")
    assert len(shown) == 2
    for part, conversation in zip(shown, (samples.conversations[0], samples.conversations[1]), strict=True):
        question = next(turn.text for turn in conversation.turns if turn.role == "human")
        answer = next(turn.text for turn in conversation.turns if turn.role == "gpt")
        sections = ["**Question**", indented(question), "**Data**", indented(answer), "**Model**", indented("No.")]
        assert part == "\n\n".join(sections)


def indented(text):
    return "\n".join(f"    {line}" for line in text.splitlines())


def test_prompts_end_where_the_first_answer_begins_and_are_padded_left(tiny_sft, held_out):
    samples, _ = held_out
    seen = []
    parrot = Parrot(tiny_sft.tokenizer, "No.")
    answers = answers_of(samples, parrot)
    for row in range(2):
        ids = answers._batch["input_ids"][row][answers._batch["segment_ids"][row] == 1].tolist()
        sample = samples[row].input_ids.tolist()
        assert ids == sample[: len(ids)] and answers._batch["input_ids"][row][-len(ids) :].tolist() == ids
        assert tiny_sft.tokenizer.decode(ids).endswith("<|im_start|>assistant\n")
        assert answers._batch["position_ids"][row][-len(ids) :].tolist() == list(range(len(ids)))
        seen.append(len(ids))
    assert max(seen) == answers._batch["input_ids"].shape[1] and min(seen) < max(seen)


def test_generation_stops_at_the_turns_end(tiny_sft, held_out):
    parrot = Parrot(tiny_sft.tokenizer, "No.")
    answers_of(held_out[0], parrot)({})
    assert parrot.stop_ids == [tiny_sft.tokenizer.eos_id]


def test_only_images_of_the_first_question_are_shown(tiny_sft, held_out):
    samples, _ = held_out
    picture = samples.conversations[0].pictures[0]
    turns = (Turn("human", "a <image>"), Turn("gpt", "1"), Turn("human", "b <image>"), Turn("gpt", "2"))
    two = [Conversation("two", turns, (picture, picture), "here")]
    own = SimpleNamespace(**vars(samples) | {"conversations": two, "tiles_of": samples.tiles_of})
    batch = answers_of(own, Parrot(tiny_sft.tokenizer, "No."), [0])._batch
    assert batch["num_tiles"].tolist() == [1] and batch["tiles"].shape[1] == 1
    assert (batch["input_ids"] == tiny_sft.tokenizer.img_context_id).sum() == 1


def test_an_evaluation_joins_frozen_weights_and_keeps_its_last_results():
    seen = []

    def loss(params):
        seen.append(params)
        return {"loss": 1.0}

    evaluation = HeldOutEvaluation({"a": 1}, loss, lambda params: f"{len(params)} weights")
    assert evaluation.latest is None
    assert evaluation({"b": 2}, 7) == {"loss": 1.0, "answers": "2 weights"} == evaluation.latest
    assert seen == [{"a": 1, "b": 2}]
    assert HeldOutEvaluation({}, loss, None)({}, 0) == {"loss": 1.0}
