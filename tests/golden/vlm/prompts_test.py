"""Prompts and answers against the exact texts that upstream writes."""

import json
import math

import numpy as np
import pytest

from recogdrive.data.types import FUTURE_FRAMES, Command
from recogdrive.data.vlm import wire_text
from recogdrive.data.vlm.driving_prompt import DrivingPrompt, command_of, number_text


@pytest.fixture(scope="module")
def prompts(golden_dir):
    return json.loads((golden_dir / "vlm" / "prompts.json").read_text())


@pytest.fixture(scope="module")
def planner_prompts(golden_dir):
    return json.loads((golden_dir / "planner" / "prompts.json").read_text())


def test_the_system_text_is_upstreams(prompts):
    for style in ("sft", "inference"):
        assert DrivingPrompt(style).system == prompts["system_message"]


def test_commands_are_upstreams_in_upper_case(prompts):
    assert list(wire_text.COMMANDS[:3]) == [name.upper() for name in prompts["navigation_commands"]]


@pytest.mark.parametrize("style", ["sft", "inference"])
def test_questions_equal_every_example(prompts, style):
    assert prompts["examples"]
    prompt = DrivingPrompt(style)
    for example in prompts["examples"]:
        command = command_of(np.array(example["driving_command_one_hot"], dtype=np.float32))
        assert prompt.question(np.array(example["history"]), command) == example[f"{style}_question"]


def test_answers_equal_every_example(prompts):
    prompt = DrivingPrompt("sft")
    for example in prompts["examples"]:
        assert prompt.answer_text(np.array(example["future"])) == example["sft_answer"]


def test_every_example_answer_parses_to_its_trajectory(prompts):
    prompt = DrivingPrompt("inference")
    for example in prompts["examples"]:
        parsed = prompt.parse(example["sft_answer"])
        assert parsed.shape == (FUTURE_FRAMES, 3)
        np.testing.assert_allclose(parsed, example["future"], atol=0.015)


def test_questions_equal_what_upstreams_caching_asks(planner_prompts):
    """Samples on which upstream fails, or which hold numbers that are not finite, have tests of their own."""
    prompt, compared = DrivingPrompt("inference"), 0
    for sample in planner_prompts["samples"]:
        history = np.array(sample["history"], dtype=np.float64)
        if isinstance(sample["user_prompt"], str) and np.isfinite(history).all():
            command = command_of(np.array(sample["command_one_hot"]))
            assert prompt.question(history, command) == sample["user_prompt"], sample["name"]
            compared += 1
    assert compared


def test_numbers_that_are_not_finite_are_refused_where_upstream_writes_them(planner_prompts):
    prompt = DrivingPrompt("inference")
    for sample in planner_prompts["samples"]:
        history = np.array(sample["history"], dtype=np.float64)
        if not np.isfinite(history).all():
            with pytest.raises(ValueError, match="has no place in a prompt"):
                prompt.question(history, Command.STRAIGHT)


def test_numbers_are_rounded_by_their_float32_value(planner_prompts):
    for case in planner_prompts["number_rendering"]:
        if math.isfinite(case["value"]):
            assert number_text(case["value"]) == case["after_float32"], case


def test_the_training_question_and_answer_equal_upstreams(planner_prompts):
    prompt, training = DrivingPrompt("sft"), planner_prompts["stage1_training_text"]
    sample = next(s for s in planner_prompts["samples"] if s["name"] == training["sample"])
    command = command_of(np.array(sample["command_one_hot"]))
    assert prompt.question(np.array(sample["history"], dtype=np.float64), command) == training["user_prompt"]
    assert prompt.answer_text(np.array(training["future"])) == training["answer"]
