"""One scene or image: what is printed, recorded and drawn, with a VLM that says what it is told."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from recogdrive.composition import Composition
from recogdrive.data.context import NoContext
from recogdrive.data.splits import PlanningSplits
from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.data.vlm.cameras import TownCamera
from recogdrive.data.vlm.driving_prompt import DrivingPrompt
from recogdrive.data.vlm.single_image import GivenStatus
from recogdrive.evaluation.text_agent import read_answer
from recogdrive.experiment import ConfigurationError, find_experiment
from recogdrive.models.ego_status_mlp import EgoStatusMLP
from recogdrive.models.planner.official_checkpoint import save_official
from recogdrive.run_folder import RunFolder
from recogdrive.stages.drive_once import DriveOnce

PROMPT = DrivingPrompt("town")
TOWN = SyntheticTown(num_scenes=3, seed=5, name="town_val")
SPLITS = PlanningSplits(evaluate=[("val", lambda: TOWN)])
MODEL = EgoStatusMLP(hidden_dim=4)


class Talking:
    """A `TextPlanner` that gives one answer, and notes what it was shown."""

    name = "vlm_text"

    def __init__(self, text):
        self.text, self.asked = text, []
        self.prompts = SimpleNamespace(
            camera=TownCamera(width=64, height=36),
            inputs=lambda scene: {"of": scene.token},
            picture_inputs=lambda scene, picture: {"of": picture.name},
        )

    def ask(self, rows):
        self.asked += list(rows)
        return [read_answer(self.text, PROMPT)]


class ReadsPrompts(EgoStatusMLP):
    """Stands for an online planner: its batches must hold the VLM's row."""

    reads_prompts = True

    def plan(self, params, batch, keys):
        assert "of" in batch and "context" not in batch
        return super().plan(params, batch, keys)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run", Composition(find_experiment("baseline_stopped"), "A = 1\n"), None)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "planner.ckpt"
    save_official(path, MODEL.init(jax.random.key(0)), MODEL)
    return path


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "front.png"
    Image.new("RGB", (64, 36), (90, 120, 90)).save(path)
    return path


def record(folder):
    return json.loads((folder.path / "drive.json").read_text())


def test_a_scene_is_printed_recorded_and_drawn_with_answer_and_plan(folder, weights, capsys):
    scene = TOWN[1]
    text = Talking(PROMPT.answer(scene))
    stage = DriveOnce(text, planner=MODEL, context=NoContext(), splits=SPLITS, scene=1)

    figures = stage.run(folder, weights)

    found = record(folder)
    assert text.asked == [{"of": scene.token}] and found["token"] == scene.token
    assert list(found["trajectories"]) == ["human", "vlm_text", "ego_status_mlp"]
    np.testing.assert_allclose(found["trajectories"]["vlm_text"], scene.future[:8], atol=0.02)
    assert figures["vlm_text/fde"] < 0.02 < figures["ego_status_mlp/fde"]
    printed = capsys.readouterr().out
    assert f"VLM: {text.text}" in printed and "    4.0" in printed and "command" in printed
    width, height = Image.open(folder.path / "drive.png").size
    assert width > 1000 and height > 400


def test_a_token_names_a_scene_too(folder):
    DriveOnce(Talking("Left."), splits=SPLITS, scene=TOWN.tokens[2]).run(folder, None)
    assert record(folder)["token"] == TOWN.tokens[2]


def test_an_answer_without_trajectory_is_shown_with_its_reason_and_no_line(folder, capsys):
    assert DriveOnce(Talking("I would turn left."), splits=SPLITS).run(folder, None) == {}

    found = record(folder)
    assert (found["answer"], found["problem"]) == ("I would turn left.", "there is no [PT, ...]")
    assert list(found["trajectories"]) == ["human"]
    assert "states no trajectory: there is no [PT, ...]" in capsys.readouterr().out


def test_an_image_with_an_ego_status_needs_no_scene(folder, image, capsys):
    text = Talking(PROMPT.answer(TOWN[0]))
    status = GivenStatus(velocity=(6.0, 0.0), command="left")

    figures = DriveOnce(text, image=str(image), status=status).run(folder, None)

    assert text.asked == [{"of": str(image)}] and figures == {}
    assert list(record(folder)["trajectories"]) == ["vlm_text"]
    assert "front.png" in (printed := capsys.readouterr().out) and "6.0 m/s, command left" in printed
    assert (folder.path / "drive.png").stat().st_size > 10_000


def test_a_planner_that_runs_the_vlm_reads_the_row_of_the_image(folder, image, weights):
    text, planner = Talking("Left."), ReadsPrompts(hidden_dim=4)
    text.prompts.picture_inputs = lambda scene, picture: {"of": np.float32(1)}

    DriveOnce(text, planner=planner, image=str(image)).run(folder, weights)

    assert np.shape(record(folder)["trajectories"]["ego_status_mlp"]) == (8, 3)


def test_a_planner_that_reads_a_map_has_none_in_an_image(folder, image, weights):
    with pytest.raises(ConfigurationError, match="reads context tokens, which an image does not give"):
        DriveOnce(Talking("Left."), planner=MODEL, context=NoContext(), image=str(image)).run(folder, weights)


@pytest.mark.parametrize(("scene", "message"), [("beef", "'beef' is not a token of town_val"), (3, "from 0 to 2")])
def test_a_scene_that_is_not_there_is_refused(folder, scene, message):
    with pytest.raises(ValueError, match=message):
        DriveOnce(Talking("Left."), splits=SPLITS, scene=scene).run(folder, None)


def test_neither_scenes_nor_image_is_refused():
    with pytest.raises(ValueError, match="nothing to drive"):
        DriveOnce(Talking("Left."))


def test_the_description_says_what_would_be_driven(image):
    assert DriveOnce(Talking(""), splits=SPLITS, scene=2).describe().notes == ["scene 2"]
    assert str(image) in DriveOnce(Talking(""), image=str(image)).describe().notes[0]
