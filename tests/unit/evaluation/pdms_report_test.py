"""The report's part on PDM scores."""

import base64
import io
import re

import pytest
from PIL import Image

from recogdrive.evaluation.agents import ConstantVelocity, Human
from recogdrive.evaluation.open_loop import evaluate_open_loop
from recogdrive.evaluation.pdms import Evidence, PdmsRow, evaluate_pdms
from recogdrive.evaluation.pdms_report import compare, drawn_evidence
from recogdrive.evaluation.report import write_report

HIT = {"no_at_fault_collisions": 0.0, "ego_progress": 0.0, "score": 0.0, "collision_step": 23, "collision_track": 0}
OFF_ROAD = {"drivable_area_compliance": 0.0, "ego_progress": 0.0, "score": 0.0, "off_road_step": 11}
OFF_ROAD |= {"off_road_corner": 0}


@pytest.fixture
def write(tmp_path, make_scene, pdm_scene, fixed_agent, telling_scorer):
    """Writes the report of four scenes by planner, constant velocity and human; what the scorer says is given by
    (scene number, agent number)."""

    def write(told=None, failing=(), **arguments):
        scenes = [
            make_scene(
                i, metadata={"layout": ("curve", "merge")[i % 2]} | ({"problem": "no route"} if i in failing else {})
            )
            for i in range(4)
        ]
        evaluation = evaluate_open_loop([fixed_agent(), ConstantVelocity(), Human()], [("val", scenes)])
        scorer = telling_scorer({(scenes[i].token, g): values for (i, g), values in (told or {}).items()})
        pdms = evaluate_pdms(evaluation, pdm_scene, scorer)
        return write_report(tmp_path, evaluation, pdms=pdms, median_scenes=0, **arguments).read_text()

    return write


def rows_of_table(text, section):
    """Agent -> texts of its cells, of the first table of a section."""
    part = text[text.index(f'<section id="{section}">') :]
    found = {}
    for row in re.findall(r"<tr><td>.*?</tr>", part[: part.index("</table>")], re.S):
        cells = [re.sub(r"<[^>]*>", " ", cell).split() for cell in re.findall(r"<td.*?</td>", row, re.S)]
        found[cells[0][0]] = [" ".join(cell) for cell in cells]
    return found


def test_the_pdm_score_stands_before_the_open_loop_with_a_row_of_every_agent(write):
    text = write({(0, 0): HIT, (1, 0): {"score": 0.6, "comfort": 0.0}})

    assert text.index('id="pdms"') < text.index('id="summary"')
    table = rows_of_table(text, "pdms")
    assert list(table) == ["planner", "constant_velocity", "human"]
    # Scores 0, 0.6, 1, 1.
    assert table["planner"][1].startswith("65.0% ") and " – " in table["planner"][1]
    assert table["planner"][2:] == ["75.0%", "100.0%", "100.0%", "75.0%", "100.0%", "75.0%", "4"]
    assert table["human"][1] == "100.0% 100.0% – 100.0%"


def test_a_partial_average_says_over_how_many_scenes_and_lists_the_failed(write):
    text = write(failing=(1,))

    assert rows_of_table(text, "pdms")["planner"][0] == "planner partial (3 of 4 scenes)"
    failed = text[text.index('id="pdms-failed"') :]
    assert failed.count("no route") == 3 and f"{1:016x}" in failed
    assert 'class="best"' not in text[text.index('id="pdms"') : text.index('id="summary"')]


def test_whole_averages_are_not_called_partial(write):
    text = write()

    assert "partial (" not in text and 'id="pdms-failed"' not in text


def test_the_subject_is_compared_with_constant_velocity(write):
    text = write({(i, 1): {"score": 0.4} for i in range(4)} | {(0, 0): {"score": 0.8}})

    assert "PDMS of planner is <strong>55.0 points above that of constant_velocity (95.0 to 40.0;" in text


def test_worst_scenes_are_drawn_with_reason_and_scores_of_every_agent(write):
    text = write({(2, 0): HIT, (1, 0): {"ego_progress": 0.25, "score": 0.69}}, worst_scenes=2)

    cards = re.findall(r'<figure id="pdms-val-(\w+)">(.*?)</figure>', text, re.S)
    assert [token for token, _ in cards] == [f"{2:016x}", f"{1:016x}"]
    assert "hits a vehicle after 2.3 s" in cards[0][1] and "25 % of the progress" in cards[1][1]
    rows = re.findall(r"<tr><td>(.*?)</td>(.*?)</tr>", cards[1][1])
    assert [agent for agent, _ in rows] == ["planner", "constant_velocity", "human"]
    assert re.findall(r"<td>(.*?)</td>", rows[0][1]) == ["0.69", "1", "1", "1", "0.25", "1", "1"]
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", cards[0][1])[1]))).convert("RGB")
    assert (0xB3, 0x00, 0x1B) in {colour for _, colour in picture.getcolors(picture.width * picture.height)}


def test_an_agent_that_failed_on_a_drawn_scene_is_named_so(
    tmp_path, make_scene, pdm_scene, fixed_agent, telling_scorer
):
    scene = make_scene(0)
    evaluation = evaluate_open_loop([Human(), fixed_agent(failing=(scene.token,))], [("val", [scene])])
    pdms = evaluate_pdms(evaluation, pdm_scene, telling_scorer({(scene.token, 0): HIT}))

    text = write_report(tmp_path, evaluation, pdms=pdms, subject="human", worst_scenes=1).read_text()

    assert re.search(r'<tr><td>planner</td><td colspan="7" class="warn">failed</td></tr>', text)


def test_scores_are_broken_down_by_layout(write):
    text = write({(0, 0): HIT, (2, 0): HIT})

    part = text[text.index("Mean PDMS by layout") :]
    cells = re.findall(r"<td>(.*?)</td>", part[: part.index("</table>")])
    assert cells == ["curve", "2", "0.0%", "100.0%", "100.0%", "merge", "2", "100.0%", "100.0%", "100.0%"]


def test_links_of_the_page_lead_somewhere(write):
    text = write({(0, 0): HIT}, failing=(3,))

    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(re.findall(r' id="([^"]+)"', text))


def evidence(kinds):
    return [Evidence(PdmsRow("val", "a", str(i), "log", "", True, kind=k), i, None) for i, k in enumerate(kinds)]


def test_every_kind_of_loss_is_drawn_even_if_the_worst_are_all_alike():
    ranked = evidence(["off_road"] * 4 + ["collision", "comfort", "off_road", "comfort", "comfort"])

    assert [e.index for e in drawn_evidence(ranked, 3)] == [0, 1, 2, 4, 5, 7]


def test_no_pictures_are_drawn_where_none_are_asked_for():
    assert drawn_evidence(evidence(["collision"]), 0) == []


def rows(agent, scores):
    return [PdmsRow("val", agent, str(i), "log", "", s is not None, score=s) for i, s in enumerate(scores)]


def test_a_comparison_takes_scenes_that_both_have():
    text = compare(rows("a", [0.5, None, 0.5]), rows("b", [0.75, 0.0, 0.75]))

    assert (
        text
        == "25.0 points below that of b (50.0 to 75.0; 95 % interval of the difference 25.0 to 25.0, scene by scene)"
    )


def test_there_is_no_comparison_without_a_common_scene():
    assert compare(rows("a", [0.5, None]), rows("b", [None, 0.5])) == ""
