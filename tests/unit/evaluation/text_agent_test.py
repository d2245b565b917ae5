"""The VLM as a planner in words, with a model that repeats its prompt and prompts that say what the test wants said."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.data.vlm.driving_prompt import DrivingPrompt
from recogdrive.evaluation import text_agent
from recogdrive.evaluation.agents import AnsweringAgent
from recogdrive.evaluation.open_loop import evaluate_open_loop, summarise
from recogdrive.evaluation.text_agent import TextPlanner, read_answer
from recogdrive.models.vlm.loading import VlmWeights

PROMPT = DrivingPrompt("town")
NUM_TOKENS = 256


class Characters:
    """Ids are code points; 0 ends an answer."""

    eos_id, vocab_size = 0, 128

    def decode(self, ids):
        return "".join(map(chr, ids))


class ToldPrompts:
    """The row of a scene holds, left padded, what its metadata tells the model to say."""

    num_tokens, tokenizer, prompt = NUM_TOKENS, Characters(), PROMPT

    def with_tokenizer_of(self, weights):
        return self

    def inputs(self, scene):
        ids = np.array([ord(c) for c in scene.metadata["says"]], dtype=np.int32)
        padding = NUM_TOKENS - len(ids)
        return {
            "input_ids": np.pad(ids, (padding, 0)),
            "segment_ids": np.pad(np.ones_like(ids), (padding, 0)),
            "position_ids": np.pad(np.arange(len(ids), dtype=np.int32), (padding, 0)),
        }


class Echo:
    """Answers with its prompt, up to the limit of new tokens; notes the shapes it is compiled for."""

    config = SimpleNamespace(language=SimpleNamespace(vocab_size=128))

    def __init__(self):
        self.compiled = []

    def generate(self, params, batch, max_new_tokens, stop_ids):
        ids = batch["input_ids"]
        self.compiled.append((ids.shape, max_new_tokens, list(stop_ids), set(params)))
        lengths = jnp.minimum((batch["segment_ids"] > 0).sum(axis=1), max_new_tokens)
        starts = ids.shape[1] - (batch["segment_ids"] > 0).sum(axis=1)
        index = jnp.minimum(starts[:, None] + jnp.arange(max_new_tokens), ids.shape[1] - 1)
        return jnp.take_along_axis(ids, index, axis=1), lengths


@pytest.fixture
def vlm(monkeypatch):
    monkeypatch.setattr(text_agent, "load_vlm", lambda vlm, folder: VlmWeights({"weight": jnp.ones(1)}, "known"))
    return Echo()


def say(scene, number, text):
    return dataclasses.replace(scene, token=f"{number:016x}", metadata={"says": text})


def driven_text(scene):
    return PROMPT.answer_text(scene.future[:8])


def planner(vlm, **arguments):
    return TextPlanner(vlm, "weights", ToldPrompts(), **{"batch_size": 2, **arguments})


def test_a_plan_is_what_the_answer_says(vlm, straight_scene):
    agent = planner(vlm)

    planned = agent.plan([say(straight_scene, 0, driven_text(straight_scene))])

    assert planned.dtype == np.float32 and planned.shape == (1, 8, 3)
    np.testing.assert_allclose(planned[0], straight_scene.future[:8], atol=0.0151)
    assert agent.answers[f"{0:016x}"].text == driven_text(straight_scene)


def test_an_answer_that_cannot_be_read_is_a_plan_of_nan_with_text_and_reason(vlm, straight_scene):
    agent = planner(vlm)
    scenes = [say(straight_scene, 0, "Straight on."), say(straight_scene, 1, driven_text(straight_scene))]

    planned = agent.plan(scenes)

    assert np.isnan(planned[0]).all() and np.isfinite(planned[1]).all()
    answer = agent.answers[scenes[0].token]
    assert (answer.text, answer.poses, answer.problem) == ("Straight on.", None, "there is no [PT, ...]")


def test_an_answer_that_is_cut_off_states_no_trajectory(vlm, straight_scene):
    agent = planner(vlm, max_new_tokens=20)

    assert np.isnan(agent.plan([say(straight_scene, 0, driven_text(straight_scene))])).all()
    assert len(agent.answers[f"{0:016x}"].text) == 20
    assert "not closed" in agent.answers[f"{0:016x}"].problem


def test_any_number_of_scenes_is_planned_by_one_program_of_one_shape(vlm, straight_scene):
    agent = planner(vlm)
    scenes = [say(straight_scene, i, driven_text(straight_scene)) for i in range(5)]

    whole = agent.plan(scenes)

    assert vlm.compiled == [((2, NUM_TOKENS), 256, [0], {"weight"})]
    np.testing.assert_array_equal(agent.plan(scenes[3:]), whole[3:])
    assert len(vlm.compiled) == 1


def test_evaluation_knows_it_as_an_agent_that_answers(vlm, straight_scene):
    agent = planner(vlm)
    scenes = [say(straight_scene, 0, "Left!"), say(straight_scene, 1, driven_text(straight_scene))]

    evaluation = evaluate_open_loop([agent], [("val", scenes)])

    assert isinstance(agent, AnsweringAgent)
    summary = summarise(evaluation.rows)["vlm_text"]
    assert (summary["invalid"], summary["parse_rate"]) == (1, 0.5) and summary["ade"] < 0.01


def test_weights_are_read_once_and_not_before_a_scene_is_planned(vlm, straight_scene, monkeypatch):
    read = []
    monkeypatch.setattr(text_agent, "load_vlm", lambda vlm, folder: read.append(folder) or VlmWeights({}, ""))
    agent = planner(vlm)
    assert read == []

    for _ in range(2):
        agent.plan([say(straight_scene, 0, "Straight on.")])

    assert [str(folder) for folder in read] == ["weights"]


@pytest.mark.parametrize("argument", ["max_new_tokens", "batch_size"])
def test_numbers_that_are_not_positive_are_refused(vlm, argument):
    with pytest.raises(ValueError, match=f"TextPlanner.{argument}=0 must be a positive whole number"):
        planner(vlm, **{argument: 0})


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(vlm, monkeypatch):
    monkeypatch.setattr(Characters, "vocab_size", 129)
    with pytest.raises(ValueError, match="has 129 tokens, the VLM rows for 128"):
        planner(vlm).plan([])


def test_reading_an_answer_keeps_its_words():
    answer = read_answer("I do not know.", PROMPT)
    assert (answer.text, answer.poses, answer.problem) == ("I do not know.", None, "there is no [PT, ...]")
