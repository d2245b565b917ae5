"""Conversations made from the town's scenes."""

import dataclasses
import pickle

import numpy as np
import pytest

from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.data.vlm.cameras import FileCamera, TownCamera
from recogdrive.data.vlm.chat import tokenise, tokenise_prompt
from recogdrive.data.vlm.conversations import Cause, ConversationError, check_turns
from recogdrive.data.vlm.driving_prompt import DrivingPrompt
from recogdrive.data.vlm.scene_conversations import QUESTIONS, SceneConversations, training_texts
from recogdrive.data.vlm.tokenizer import train_tokenizer

SCENES = 12


class Listed:
    """Scenes that are there already."""

    name = "listed"
    report: dict[str, int] = {}

    def __init__(self, scenes):
        self.scenes = list(scenes)
        self.tokens = tuple(scene.token for scene in self.scenes)

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        return self.scenes[index]

    def log_of(self, index):
        return self.scenes[index].log_name


@pytest.fixture(scope="module")
def town():
    town = SyntheticTown(num_scenes=SCENES, seed=4)
    return Listed(town[k] for k in range(SCENES))


def conversations_of(town, **choice):
    return SceneConversations(town, DrivingPrompt("town"), TownCamera(96, 54), **choice)


@pytest.fixture(scope="module")
def all_kinds(town):
    return conversations_of(town, questions_per_scene=len(QUESTIONS))


def all_of(source):
    return [source[k] for k in range(len(source))]


def test_every_conversation_is_well_formed(all_kinds):
    for conversation in all_of(all_kinds):
        check_turns(conversation.turns, len(conversation.pictures), conversation.origin)
        assert conversation.turns[0].role == "system"
        assert conversation.turns[-1].role == "gpt"


def test_every_scene_has_its_trajectory_first_then_each_kind_once(town, all_kinds):
    step = 1 + len(QUESTIONS)
    prompt = DrivingPrompt("town")
    for number, scene in enumerate(town.scenes):
        first = all_kinds[step * number]
        assert first.turns[-1].text == prompt.answer(scene)
        assert len(first.pictures) == 1
        leading = [all_kinds.kinds_of(step * number + slot)[0] for slot in range(1, step)]
        assert sorted(leading) == sorted(QUESTIONS)


def test_text_alone_multi_turn_and_single_turn_are_all_there(all_kinds):
    made = all_of(all_kinds)
    assert any(not conversation.pictures for conversation in made)
    assert {len(conversation.turns) for conversation in made} == {3, 5}


def test_answers_say_what_is_so(town, all_kinds):
    for index in range(len(all_kinds)):
        scene = town.scenes[index // (1 + len(QUESTIONS))]
        answers = [turn.text for turn in all_kinds[index].turns if turn.role == "gpt"]
        for kind, answer in zip(all_kinds.kinds_of(index), answers, strict=True):
            if kind != "trajectory":
                assert answer == QUESTIONS[kind].answer(scene)


def test_answers_differ_between_scenes(town):
    for kind in QUESTIONS:
        assert len({QUESTIONS[kind].answer(scene) for scene in town.scenes}) > 1, kind


def test_a_distance_is_told_by_the_bucket_it_falls_into(town, monkeypatch):
    from recogdrive.data.vlm import scene_facts

    told = {}
    for gap in (0.0, 9.9, 10.0, 10.1, 39.0, None):
        monkeypatch.setattr(scene_facts, "gap_ahead_m", lambda scene, gap=gap: gap)
        told[gap] = QUESTIONS["lead_vehicle"].answer(town.scenes[0])
    assert told[0.0] == told[9.9] == told[10.0] == "Yes, 0 to 10 m away."
    assert told[10.1] == "Yes, 10 to 20 m away."
    assert told[39.0] == "Yes, 20 to 40 m away."
    assert told[None] == "No."


def test_conversations_are_the_same_in_any_order_and_in_another_process(town):
    first, second = conversations_of(town), pickle.loads(pickle.dumps(conversations_of(town, keep=False)))
    forwards = [(c.id, c.turns) for c in all_of(first)]
    backwards = [(second[k].id, second[k].turns) for k in reversed(range(len(second)))]
    assert forwards == backwards[::-1]


def test_another_seed_asks_other_questions(town):
    kinds = [
        [source.kinds_of(k) for k in range(len(source))]
        for source in (conversations_of(town), conversations_of(town, seed=1))
    ]
    assert kinds[0] != kinds[1]


def test_without_questions_there_are_trajectories_only(town):
    source = conversations_of(town, questions_per_scene=0)
    assert len(source) == SCENES
    assert {source.kinds_of(k) for k in range(SCENES)} == {("trajectory",)}


def test_only_the_named_questions_are_asked(town):
    source = conversations_of(town, questions=["light", "speed"], questions_per_scene=2)
    assert {kind for k in range(len(source)) for kind in source.kinds_of(k)} == {"trajectory", "light", "speed"}


def test_the_description_counts_conversations_by_kind(town):
    text = conversations_of(town, questions=["light"]).describe()
    assert f"{2 * SCENES} conversations of {SCENES} scenes of listed: {SCENES} trajectory, {SCENES} light" in text


def test_fingerprints_change_with_what_decides_the_conversations(town):
    others = [
        conversations_of(town),
        conversations_of(town, seed=1),
        conversations_of(town, questions_per_scene=2),
        conversations_of(town, questions=["light"]),
        conversations_of(Listed(town.scenes[:5])),
        SceneConversations(town, DrivingPrompt("sft"), TownCamera(96, 54)),
        SceneConversations(town, DrivingPrompt("town"), TownCamera(96, 55)),
    ]
    assert len({source.fingerprint for source in others}) == len(others)
    assert conversations_of(town).fingerprint == others[0].fingerprint


def test_a_scene_without_future_is_a_bad_record_that_names_it(town):
    scene = dataclasses.replace(town.scenes[0], future=None)
    with pytest.raises(ConversationError, match=f"scene {scene.token} .* 0 future poses") as caught:
        conversations_of(Listed([scene]))[0]
    assert caught.value.cause == Cause.BAD_RECORD


def test_a_scene_without_a_camera_is_counted_as_a_missing_image(town):
    source = SceneConversations(town, DrivingPrompt("town"), FileCamera())
    with pytest.raises(ConversationError, match="has no camera cam_f0") as caught:
        source[0]
    assert caught.value.cause == Cause.MISSING_IMAGE


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"questions": ["lights"]}, "Did you mean 'light'"),
        ({"questions": "light"}, "must be a list"),
        ({"questions": ["light", "light"]}, "names one twice"),
        ({"questions_per_scene": 9}, "questions_per_scene=9"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_choices_that_do_not_exist_are_refused(town, wrong, message):
    with pytest.raises(ValueError, match=message):
        conversations_of(town, **wrong)


def test_an_index_outside_is_an_index_error(town):
    with pytest.raises(IndexError):
        conversations_of(town)[2 * SCENES]


def test_a_tokenizer_trained_on_the_texts_makes_short_prompts_and_answers(town):
    source = conversations_of(town)
    tokenizer = train_tokenizer(training_texts(source, 8), vocab_size=1024)
    for number in range(SCENES):
        conversation = source[2 * number]
        assert len(tokenise_prompt(conversation.turns[:-1], tokenizer, [1], 0)) <= 60
        _, labels = tokenise(conversation, tokenizer, [1], 0, 1000)
        assert np.count_nonzero(labels != -100) <= 90


def test_training_texts_hold_every_answer_without_numbers(all_kinds):
    texts = set(training_texts(all_kinds, 0))
    for index in range(len(all_kinds)):
        answers = [turn.text for turn in all_kinds[index].turns if turn.role == "gpt"]
        for kind, answer in zip(all_kinds.kinds_of(index), answers, strict=True):
            if kind in ("lead_vehicle", "light", "plan"):
                assert answer in texts
