import base64
import html
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from recogdrive.evaluation.agents import ConstantVelocity, Human
from recogdrive.evaluation.open_loop import evaluate_open_loop, summarise
from recogdrive.evaluation.pdms import evaluate_pdms
from recogdrive.evaluation.report import median_rows, worst_rows, write_report
from recogdrive.evaluation.tables import write_tables

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Collects texts, tags and links; complains where a tag is not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.errors, self.texts, self.links, self.ids, self.sources = [], [], [], [], [], []
        self.tags = set()
        self.feed(text)
        self.close()
        self.errors += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if tag == "a" else []
        self.sources += [values[name] for name in ("src", "srcset") if name in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}> at {self.getpos()} closes nothing")

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script") and data.strip():
            self.texts.append(data.strip())


class Drifting:
    """Misses by a distance that grows with the scene's number; NaN for one token."""

    def __init__(self, name="planner", failing=None):
        self.name = name
        self.failing = failing

    def plan(self, scenes):
        planned = Human().plan(scenes)
        for i, scene in enumerate(scenes):
            planned[i, :, 1] += 0.1 * int(scene.token, 16)
            if scene.token == self.failing:
                planned[i] = np.inf
        return planned


@pytest.fixture
def scenes(make_scene):
    return [make_scene(i, speed_mps=4.0 + i, velocity=(3.0 + i, 0.0), log_name=f"log_{i % 2}") for i in range(1, 9)]


def test_the_page_holds_every_agent_and_every_mean_of_the_summary(tmp_path, scenes):
    evaluation = evaluate_open_loop([Drifting(), ConstantVelocity(), Human()], [("val", scenes[:5]), ("t", scenes[5:])])

    page = Page(write_report(tmp_path, evaluation, worst_scenes=1, median_scenes=0).read_text())

    assert page.errors == []
    summary = summarise(evaluation.rows)
    for agent, metrics in summary.items():
        assert agent in page.texts
        for split in ("val", "t"):
            for metric, spec in (("ade", ".3f"), ("fde", ".3f"), ("miss_rate", ".1%"), ("heading_error", ".4f")):
                assert format(metrics[f"{split}/{metric}"], spec) in page.texts
            assert f"{metrics[f'{split}/fde_ci95_low']:.3f} – {metrics[f'{split}/fde_ci95_high']:.3f}" in page.texts
    assert "val (headline split)" in page.texts and "t" in page.texts


def test_worst_scenes_are_drawn_in_descending_order_and_named(tmp_path, scenes):
    evaluation = evaluate_open_loop([Drifting(), Human()], [("val", scenes)])

    page = Page(write_report(tmp_path, evaluation, worst_scenes=3, median_scenes=2).read_text())

    worst, median = [8, 7, 6], [5, 4]
    assert [i for i in page.ids if i.startswith("scene-")] == [f"scene-val-{n:016x}" for n in worst + median]
    for number in worst + median:
        assert f"{number:016x}" in page.texts and f"{0.1 * number:.2f} m" in page.texts


def test_pictures_and_styles_are_inside_the_page(tmp_path, scenes):
    evaluation = evaluate_open_loop([Drifting(), Human()], [("val", scenes[:2])])

    text = write_report(tmp_path, evaluation).read_text()

    page = Page(text)
    assert len(page.sources) == 2
    for source in page.sources:
        header, data = source.split(",", 1)
        assert header == "data:image/png;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        colours = {colour for _, colour in picture.getcolors(picture.width * picture.height)}
        assert {(0x59, 0xA1, 0x4F), (0xDE, 0x70, 0x61), (0xD3, 0xD3, 0xD3)} <= colours
    assert not {"script", "link", "iframe"} & page.tags
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", re.sub(r"xlink:href", "", text))
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_names_cannot_smuggle_markup_into_the_page(tmp_path, make_scene):
    evil = "<script>alert('x')</script>"
    scenes = [
        make_scene(i, token=f"{i}{evil}", log_name=f"{evil}{i}", metadata={"layout": f"<i>{i}"}) for i in range(2)
    ]
    agent = Human()
    agent.name = evil
    (tmp_path / "run.json").write_text(json.dumps({"experiment": evil, "commit": evil, "versions": {evil: evil}}))

    text = write_report(tmp_path, evaluate_open_loop([agent, Human()], [(evil.replace("/", ""), scenes)])).read_text()

    page = Page(text)
    assert "script" not in page.tags and page.errors == []
    assert page.texts.count(evil) >= 4
    assert html.escape(f"0{evil}", quote=False).replace("'", "&#39;") in text


def test_the_head_tells_where_the_run_comes_from(tmp_path, scenes):
    (tmp_path / "run.json").write_text(
        json.dumps(
            {
                "experiment": "mini_il",
                "description": "Imitation on one log.",
                "parent": "runs/base",
                "commit": "abc123+changes",
                "versions": {"jax": "0.10.2"},
                "device": {"platform": "cpu", "kind": "cpu", "count": 4},
                "attempts": [{"started": "2026-11-20T10:00:00+00:00"}, {"started": "2026-11-20T11:00:00+00:00"}],
            }
        )
    )
    (tmp_path / "config.gin").write_text("SEED = 3\nrun.seed = %SEED\nSEED = 11  # later wins\n")

    evaluation = evaluate_open_loop([Human()], [("val", scenes)])
    page = Page(write_report(tmp_path, evaluation, facts={"scene filter": "all_scenes"}).read_text())

    def fact(name):
        return page.texts[page.texts.index(name) + 1]

    assert page.texts[1:3] == ["mini_il", "Imitation on one log."]
    assert (fact("parent"), fact("commit"), fact("seed"), fact("attempts")) == (
        "runs/base",
        "abc123+changes",
        "11",
        "2",
    )
    assert (fact("device"), fact("run started")) == ("4 × cpu, platform cpu", "2026-11-20T10:00:00+00:00")
    assert (fact("jax"), fact("scene filter")) == ("0.10.2", "all_scenes")
    assert fact("data") == "val: 8 scenes from 2 logs"


def test_files_and_commands_lead_to_what_is_in_the_folder(tmp_path, scenes):
    run_dir = tmp_path / "my run"
    evaluation = evaluate_open_loop([Human()], [("val", scenes)])
    write_tables(run_dir, evaluation)
    (run_dir / "run.json").write_text('{"experiment": "mini_il"}')
    (run_dir / "config.gin").write_text("")

    path = write_report(run_dir, evaluation)

    page = Page(path.read_text())
    files = [link for link in page.links if not link.startswith("#")]
    assert [(path.parent / link).resolve().name for link in files if (path.parent / link).exists()] == [
        *("scenes.csv", "scenes.parquet", "summary.json", "run.json", "config.gin"),
    ]
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert f"tensorboard --logdir '{run_dir}'" in page.texts
    assert (
        f"python -m recogdrive.main --experiment=mini_il '--gin_file={run_dir}/config.gin' '--workdir={run_dir}'"
        in page.texts
    )


def test_the_best_agent_is_marked_and_the_human_is_not(tmp_path, scenes):
    evaluation = evaluate_open_loop([Drifting(), ConstantVelocity(), Human()], [("val", scenes)])

    text = write_report(tmp_path, evaluation, worst_scenes=0, median_scenes=0).read_text()

    rows = {re.search(r"<td>([\w ]+)", row)[1]: row for row in re.findall(r"<tr><td>.*?</tr>", text, re.S)[:3]}
    # Drifting: 0.45 m on average; constant velocity: 1 m/s too slow, 4 m.
    assert [rows[agent].count('class="best"') for agent in ("planner", "constant_velocity", "human")] == [5, 2, 0]
    assert "89% below that of constant_velocity (0.450 m to 4.000 m)" in text


def test_an_agent_with_invalid_predictions_is_partial_listed_and_never_best(tmp_path, scenes):
    failing = scenes[2].token
    evaluation = evaluate_open_loop([Drifting(failing=failing), ConstantVelocity()], [("val", scenes)])

    text = write_report(tmp_path, evaluation, worst_scenes=8).read_text()

    page = Page(text)
    assert 'class="best"' not in text, "one remaining agent has no rival"
    assert "partial" in page.texts and "1 invalid" in page.texts
    assert "8 of 8 poses are not finite" in page.texts
    # Seven valid scenes are ranked; the invalid one is in the list only.
    assert len(page.sources) == 7 and f"scene-val-{failing}" not in page.ids and failing in page.texts


def test_errors_are_broken_down_by_layout_log_and_command(tmp_path, make_scene):
    scenes = [make_scene(i, log_name="only", metadata={"layout": ("curve", "merge")[i % 2]}) for i in range(1, 5)]

    page = Page(write_report(tmp_path, evaluate_open_loop([Drifting(), Human()], [("val", scenes)])).read_text())

    assert "Mean FDE (m) by layout" in page.texts
    assert not {"Mean FDE (m) by log", "Mean FDE (m) by driving command"} & set(page.texts), "all scenes share them"
    start = page.texts.index("Mean FDE (m) by layout")
    # Numbers 2 and 4 are curves, 1 and 3 merges; the worse group comes first.
    assert page.texts[start + 1 : start + 10] == [
        "layout",
        "scenes",
        "planner",
        "curve",
        "2",
        "0.300",
        "merge",
        "2",
        "0.200",
    ]


def test_training_curves_and_lines_lost_to_a_crash_are_shown(tmp_path, scenes):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')

    text = write_report(tmp_path, evaluate_open_loop([Human()], [("val", scenes)])).read_text()

    assert 'aria-label="Training loss"' in text
    assert "1 line of metrics.jsonl could not be read and is missing here." in Page(text).texts


def test_the_ranked_agent_is_the_first_that_is_no_baseline_unless_named(tmp_path, scenes):
    evaluation = evaluate_open_loop([Human(), ConstantVelocity(), Drifting("mine")], [("val", scenes)])

    assert "Worst scenes of mine, by FDE" in write_report(tmp_path, evaluation, worst_scenes=1).read_text()
    text = write_report(tmp_path, evaluation, subject="constant_velocity", worst_scenes=1).read_text()
    assert "Worst scenes of constant_velocity, by FDE" in text
    with pytest.raises(ValueError, match="'nobody' was not evaluated; subject can be one of human, constant_velocity"):
        write_report(tmp_path, evaluation, subject="nobody")


def test_ranking_leaves_invalid_rows_out(scenes):
    rows = evaluate_open_loop([Drifting(failing=scenes[7].token)], [("val", scenes)]).rows

    assert [int(row.token, 16) for row in worst_rows(rows, 2)] == [7, 6]
    assert [int(row.token, 16) for row in median_rows(rows, 3)] == [5, 4, 3]
    assert len(median_rows(rows, 100)) == 7


def test_a_run_record_that_is_no_object_is_refused(tmp_path, scenes):
    (tmp_path / "run.json").write_text("[]")

    with pytest.raises(ValueError, match=r"run\.json holds a list, not an object"):
        write_report(tmp_path, evaluate_open_loop([Human()], [("val", scenes)]))


def test_answers_without_a_trajectory_are_counted_on_the_page(
    tmp_path, make_scene, talking_agent, pdm_scene, telling_scorer
):
    scenes = [make_scene(i) for i in range(4)]
    evaluation = evaluate_open_loop([talking_agent(mumbled=(scenes[1].token,)), Human()], [("val", scenes)])
    pdms = evaluate_pdms(evaluation, pdm_scene, telling_scorer())
    write_tables(tmp_path, evaluation, pdms)

    page = Page(write_report(tmp_path, evaluation, pdms=pdms).read_text())

    assert page.errors == []
    text = " ".join(page.texts)
    assert "75.0% 1 of 4 PDMS 75.0% (100.0%)" in text
    assert "the answer states no trajectory: no pose in it" in text
    assert "../answers.jsonl" in page.links
