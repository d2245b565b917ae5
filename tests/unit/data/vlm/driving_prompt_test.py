"""Trajectories as text and back."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.data.types import Command
from recogdrive.data.vlm.driving_prompt import STYLES, AnswerError, DrivingPrompt, command_of, number_text

PLAN = np.stack([np.arange(1, 9) * 2.5, np.linspace(0.1, -4.0, 8), np.linspace(0.0, -0.5, 8)], axis=-1)
POINTS = ", ".join(f"(+{k}.00, 0.0, -0.10)" for k in range(1, 9))


@pytest.fixture(scope="module")
def scene():
    return SyntheticTown(num_scenes=1, seed=2)[0]


def trajectories():
    """Eight poses as far as anything drives in 4 s."""
    value = st.floats(-400, 400, allow_nan=False)
    heading = st.floats(-np.pi, np.pi)
    return st.builds(
        lambda xy, h: np.concatenate([xy, h], axis=-1),
        st_numpy.arrays(np.float64, (8, 2), elements=value),
        st_numpy.arrays(np.float64, (8, 1), elements=heading),
    )


@pytest.mark.parametrize("style", STYLES)
@given(plan=trajectories())
def test_an_answer_parses_to_its_trajectory_up_to_rounding(style, plan):
    prompt = DrivingPrompt(style)
    parsed = prompt.parse(prompt.answer_text(plan))
    assert parsed.dtype == np.float64
    lost = np.abs(parsed - plan)
    in_dead_zone = np.abs(plan) < 0.0151
    assert lost[~in_dead_zone].max(initial=0.0) <= 0.005 + 1e-4  # poses are rounded through float32
    assert lost[in_dead_zone].max(initial=0.0) <= 0.0151


@given(text=st.text(alphabet="[]PT, ()+-.0123456789naifx\n", max_size=200))
def test_any_text_is_a_complete_trajectory_or_an_error(text):
    try:
        plan = DrivingPrompt("town").parse(text)
    except AnswerError as error:
        assert str(error)
    else:
        assert plan.shape == (8, 3)
        assert np.isfinite(plan).all()


def test_text_around_the_trajectory_and_blanks_within_do_not_matter():
    spread = POINTS.replace(",", " , ").replace("(", "( ").replace("+", "+ ").replace(")", " )")
    text = f"I see a car [left lane].\nHere: [ PT ,{spread} ] and so on, use [PT, ...]."
    np.testing.assert_array_equal(DrivingPrompt("town").parse(text), DrivingPrompt("town").parse(f"[PT, {POINTS}]"))


def test_an_answer_of_another_style_parses_too():
    answer = DrivingPrompt("sft").answer_text(PLAN)
    np.testing.assert_array_equal(
        DrivingPrompt("town").parse(answer), DrivingPrompt("sft").parse(DrivingPrompt("town").answer_text(PLAN))
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no"),
        ("I will go straight on.", "there is no"),
        (POINTS, "there is no"),
        (f"[PT, {POINTS}", "not closed"),
        (f"Use [PT, ...]: [PT, {POINTS[:60]}", "not closed"),
        ("[PT]", "0 points"),
        ("[PT, ...]", "between the points"),
        (f"[PT, {POINTS}, (+9.00, 0.0, 0.0)]", "9 points"),
        (f"[PT, {POINTS[: POINTS.rindex(', (')]}]", "7 points"),
        (f"[PT, {POINTS}] [PT, {POINTS}]", "2 trajectories"),
        (f"[PT, {POINTS} then stop]", "'then stop' between"),
        (f"[PT, {POINTS.replace('(+3.00, 0.0, -0.10)', '(+3.00, 0.0)')}]", "2 numbers"),
        (f"[PT, {POINTS.replace('(+3.00, 0.0', '(+3.00, 0.0, 0.0')}]", "4 numbers"),
        (f"[PT, {POINTS.replace('+3.00', 'three')}]", "'three' in point"),
        (f"[PT, {POINTS.replace('+3.00', '')}]", "'' in point"),
        (f"[PT, {POINTS.replace('+3.00', '+3.0.0')}]", "not a number"),
        (f"[PT, {POINTS.replace('+3.00', '3 4')}]", "not a number"),
        (f"[PT, {POINTS.replace('+3.00', '1e3')}]", "not a number"),
        (f"[PT, {POINTS.replace('+3.00', '٣')}]", "not a number"),
        (f"[PT, {POINTS.replace('+3.00', 'nan')}]", "not finite"),
        (f"[PT, {POINTS.replace('+3.00', '-inf')}]", "not finite"),
        (f"[PT, {POINTS.replace('+3.00', '9' * 400)}]", "not finite"),
        (f"[PT, {POINTS.replace('+3.00', '+1000.01')}]", "x of point 3 is 1000.01"),
        (f"[PT, {POINTS.replace('+3.00, 0.0, -0.10', '+3.00, 0.0, -7.00')}]", "heading of point 3 is -7"),
    ],
)
def test_what_is_no_trajectory_is_refused_with_the_reason(text, reason):
    with pytest.raises(AnswerError, match=reason):
        DrivingPrompt("inference").parse(text)


def test_a_prompt_is_a_system_turn_and_a_question_with_one_image(scene):
    for style in STYLES:
        system, human = DrivingPrompt(style).prompt(scene)
        assert (system.role, human.role) == ("system", "human")
        assert human.text.count("<image>") == 1
        assert human.text.startswith("<image>\n")


def test_a_scenes_question_tells_its_history_and_command(scene):
    expected = DrivingPrompt("inference").question(scene.ego.poses, Command(int(scene.ego.command[-1].argmax())))
    assert DrivingPrompt("inference").prompt(scene)[1].text == expected


def test_the_towns_question_tells_every_number_of_the_history_that_is_not_zero_by_definition(scene):
    text = DrivingPrompt("town").prompt(scene)[1].text
    history = np.round(scene.ego.poses[:3], 2)
    items = [part.strip("()") for part in text[text.index("(") :].replace(") (", ")|(").split("|")]
    told = np.array([[float(number) for number in item.split(",")] for item in items])
    np.testing.assert_allclose(told, history, atol=0.0151)


def test_the_towns_prompt_is_short(scene):
    system, human = DrivingPrompt("town").prompt(scene)
    assert len(system.text) + len(human.text) < 140
    assert len(DrivingPrompt("town").answer(scene)) < len(DrivingPrompt("sft").answer(scene))


def test_an_answer_is_the_first_four_seconds_of_the_driven_future(scene):
    longer = dataclasses.replace(scene, future=np.concatenate([scene.future[:8], np.full((4, 3), 500.0)]))
    prompt = DrivingPrompt("sft")
    np.testing.assert_allclose(prompt.parse(prompt.answer(longer)), scene.future[:8], atol=0.0151)


@pytest.mark.parametrize("future", [None, np.zeros((5, 3))])
def test_a_scene_without_a_full_future_has_no_answer(scene, future):
    with pytest.raises(ValueError, match=f"Scene {scene.token} .* future poses"):
        DrivingPrompt("sft").answer(dataclasses.replace(scene, future=future))


def test_poses_that_are_not_finite_are_refused_naming_the_scene(scene):
    broken = dataclasses.replace(scene, future=np.where(np.eye(8, 3) > 0, np.nan, scene.future[:8]))
    with pytest.raises(ValueError, match=f"Scene {scene.token} .*future: nan"):
        DrivingPrompt("sft").answer(broken)
    ego = dataclasses.replace(scene.ego, poses=np.full((4, 3), np.inf))
    with pytest.raises(ValueError, match=f"Scene {scene.token} .*history: inf"):
        DrivingPrompt("sft").prompt(dataclasses.replace(scene, ego=ego))


@pytest.mark.parametrize(
    ("one_hot", "command"),
    [
        ([1, 0, 0, 0], Command.LEFT),
        ([0, 1, 0, 0], Command.STRAIGHT),
        ([0, 0, 1, 0], Command.RIGHT),
        ([0, 0, 0, 1], Command.UNKNOWN),
        ([0, 0, 0, 0], Command.UNKNOWN),
        ([0.2, 0.7, 0.1, 0], Command.UNKNOWN),
        ([0, 1, 1, 0], Command.STRAIGHT),
    ],
)
def test_the_command_is_the_first_that_is_set_else_unknown(one_hot, command):
    assert command_of(np.array(one_hot, dtype=np.float32)) == command


@pytest.mark.parametrize(
    ("value", "text"), [(0.0149, "0.0"), (-0.0, "0.0"), (0.016, "+0.02"), (-0.45, "-0.45"), (12.345, "+12.35")]
)
def test_numbers_have_a_sign_and_two_decimals_except_near_zero(value, text):
    assert number_text(value) == text


def test_fingerprints_differ_between_styles_and_are_the_same_every_time():
    fingerprints = {style: DrivingPrompt(style).fingerprint for style in STYLES}
    assert len(set(fingerprints.values())) == len(STYLES)
    assert DrivingPrompt("sft").fingerprint == fingerprints["sft"]


def test_an_unknown_style_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'inference'"):
        DrivingPrompt("inferense")
