import csv
import json

import pyarrow.csv
import pyarrow.parquet
import pytest

from recogdrive.evaluation.agents import ConstantVelocity, Human
from recogdrive.evaluation.open_loop import evaluate_open_loop
from recogdrive.evaluation.pdms import evaluate_pdms, summarise_pdms
from recogdrive.evaluation.tables import (
    PDMS_SCHEMA,
    SCHEMA,
    merge_summaries,
    read_pdms_rows,
    read_rows,
    replace_file,
    write_navsim_table,
    write_pdms,
    write_rows,
    write_summary,
    write_tables,
)


@pytest.fixture
def evaluation(make_scene, fixed_agent):
    scenes = [make_scene(i, speed_mps=1 + i / 3, log_name='log, "a"') for i in range(4)]
    planner = fixed_agent("planner", 1 / 3, failing=(scenes[1].token,))
    return evaluate_open_loop([planner, ConstantVelocity(), Human()], [("val", scenes)])


def test_rows_read_back_equal_those_written(tmp_path, evaluation):
    write_rows(tmp_path, evaluation.rows)

    assert read_rows(tmp_path) == evaluation.rows


def test_csv_and_parquet_hold_the_same_values_to_the_last_bit(tmp_path, evaluation):
    write_rows(tmp_path, evaluation.rows)

    convert = pyarrow.csv.ConvertOptions(
        column_types=SCHEMA, null_values=[""], strings_can_be_null=False, quoted_strings_can_be_null=False
    )
    from_csv = pyarrow.csv.read_csv(tmp_path / "scenes.csv", convert_options=convert)
    assert from_csv.to_pylist() == pyarrow.parquet.read_table(tmp_path / "scenes.parquet").to_pylist()


def test_an_invalid_row_has_empty_cells_in_the_csv(tmp_path, evaluation):
    write_rows(tmp_path, evaluation.rows)

    with (tmp_path / "scenes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["valid"] == "false" and rows[1]["problem"] == "5 of 8 poses are not finite"
    assert {rows[1][m] for m in ("ade", "fde", "miss", "heading_error", "final_heading_error")} == {""}
    assert float(rows[0]["fde"]) == evaluation.rows[0].fde


def test_summary_file_equals_the_summary_returned(tmp_path, evaluation):
    summary = write_tables(tmp_path / "run", evaluation)

    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "scenes.csv",
        "scenes.parquet",
        "summary.json",
    ]


def test_a_mean_without_scenes_is_null_in_the_summary_file(tmp_path):
    write_summary(tmp_path, {"planner": {"fde": float("nan"), "scenes": 0}})

    assert json.loads((tmp_path / "summary.json").read_text()) == {"planner": {"fde": None, "scenes": 0}}


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("earlier")

    def half_write(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, half_write)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_with_other_columns_is_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"token": ["a"]}), tmp_path / "scenes.parquet")

    with pytest.raises(ValueError, match=r"has columns \['token'\], not"):
        read_rows(tmp_path)


@pytest.fixture
def pdms(evaluation, make_scene, pdm_scene, telling_scorer):
    """Scene 0 hits a car, scene 1 has no plan, scene 2 makes a third of the progress."""
    hit = {"no_at_fault_collisions": 0.0, "ego_progress": 0.0, "score": 0.0, "collision_step": 4, "collision_track": 0}
    told = {(f"{0:016x}", 0): hit, (f"{2:016x}", 0): {"ego_progress": 1 / 3, "score": 0.7}}
    return evaluate_pdms(evaluation, pdm_scene, telling_scorer(told))


def cells(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_navsims_table_has_its_columns_empty_cells_and_an_average_row(tmp_path, pdms):
    write_navsim_table(tmp_path / "planner.csv", pdms.rows_of("val", "planner"))

    token = [f"{i:016x}" for i in range(4)]
    assert cells(tmp_path / "planner.csv") == [
        [
            *("token", "valid", "no_at_fault_collisions", "drivable_area_compliance"),
            *("driving_direction_compliance", "ego_progress", "time_to_collision_within_bound", "comfort", "score"),
        ],
        [token[0], "True", "0.0", "1.0", "1.0", "0.0", "1.0", "1.0", "0.0"],
        [token[1], "False", "", "", "", "", "", "", ""],
        [token[2], "True", "1.0", "1.0", "1.0", str(1 / 3), "1.0", "1.0", "0.7"],
        [token[3], "True", "1.0", "1.0", "1.0", "1.0", "1.0", "1.0", "1.0"],
        ["average", "False", str(2 / 3), "1.0", "1.0", str((1 / 3 + 1) / 3), "1.0", "1.0", str(1.7 / 3)],
    ]


def test_the_average_is_valid_where_every_row_is(tmp_path, pdms):
    write_navsim_table(tmp_path / "human.csv", pdms.rows_of("val", "human"))

    assert cells(tmp_path / "human.csv")[-1] == ["average", "True", *["1.0"] * 7]


def test_the_average_of_failed_rows_alone_is_empty(tmp_path, pdms):
    write_navsim_table(tmp_path / "failed.csv", pdms.failed)

    assert cells(tmp_path / "failed.csv")[-1] == ["average", "False", *[""] * 7]


def test_every_agent_and_split_has_its_table_and_failed_scenes_are_listed(tmp_path, pdms):
    write_pdms(tmp_path, pdms)

    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        *("pdms.csv", "pdms.parquet", "pdms/failed.csv"),
        *("pdms/val/constant_velocity.csv", "pdms/val/human.csv", "pdms/val/planner.csv"),
    ]
    assert cells(tmp_path / "pdms" / "failed.csv") == [
        ["split", "agent", "token", "log_name", "problem"],
        ["val", "planner", f"{1:016x}", 'log, "a"', "5 of 8 poses are not finite"],
    ]
    assert [row[0] for row in cells(tmp_path / "pdms" / "val" / "human.csv")][-1] == "average"


def test_pdms_rows_read_back_equal_those_written(tmp_path, pdms):
    write_pdms(tmp_path, pdms)

    assert read_pdms_rows(tmp_path) == pdms.rows


def test_both_tables_of_pdms_hold_the_same_values(tmp_path, pdms):
    write_pdms(tmp_path, pdms)

    convert = pyarrow.csv.ConvertOptions(
        column_types=PDMS_SCHEMA, null_values=[""], strings_can_be_null=False, quoted_strings_can_be_null=False
    )
    from_csv = pyarrow.csv.read_csv(tmp_path / "pdms.csv", convert_options=convert)
    assert from_csv.to_pylist() == pyarrow.parquet.read_table(tmp_path / "pdms.parquet").to_pylist()


def test_the_summary_file_holds_pdms_before_the_open_loop_metrics(tmp_path, evaluation, pdms):
    summary = write_tables(tmp_path, evaluation, pdms)

    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    planner = list(summary["planner"])
    assert planner[0] == "pdms" and planner.index("ade") < planner.index("val/pdms") < planner.index("val/ade")
    assert summary["planner"]["pdms"] == summarise_pdms(pdms.rows)["planner"]["pdms"] == pytest.approx(1.7 / 3)
    assert summary["planner"]["pdms_partial"] == 1 and summary["planner"]["scenes"] == 4


def test_merged_summaries_keep_agents_that_only_one_has():
    assert merge_summaries({"a": {"val/x": 1.0, "x": 1.0}}, {"a": {"y": 2.0}, "b": {"y": 3.0}}) == {
        "a": {"x": 1.0, "y": 2.0, "val/x": 1.0},
        "b": {"y": 3.0},
    }


def test_answers_are_written_word_for_word(tmp_path, make_scene, talking_agent):
    scenes = [make_scene(i) for i in range(2)]
    agents = [talking_agent(mumbled=(scenes[1].token,)), Human()]

    write_tables(tmp_path, evaluate_open_loop(agents, [("val", scenes)]))

    first, second = (json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines())
    assert first | {"poses": 0} == {
        "split": "val",
        "agent": "vlm_text",
        "token": scenes[0].token,
        "text": "As the human did.",
        "valid": True,
        "poses": 0,
        "problem": "",
    }
    assert first["poses"][7] == [20.0, 1.0, 0.0]
    assert (second["text"], second["valid"], second["poses"]) == ("I would rather walk.", False, None)
    assert second["problem"] == "no pose in it"


def test_without_agents_that_answer_there_is_no_file_of_answers(tmp_path, evaluation):
    write_tables(tmp_path, evaluation)

    assert not (tmp_path / "answers.jsonl").exists()


def test_navsims_table_holds_an_invalid_answer_as_a_score_of_0(
    tmp_path, make_scene, talking_agent, pdm_scene, telling_scorer
):
    scenes = [make_scene(i) for i in range(2)]
    evaluation = evaluate_open_loop([talking_agent(mumbled=(scenes[1].token,))], [("val", scenes)])
    write_pdms(tmp_path, evaluate_pdms(evaluation, pdm_scene, telling_scorer()))

    assert cells(tmp_path / "pdms" / "val" / "vlm_text.csv")[2:] == [
        [scenes[1].token, "False", *[""] * 6, "0.0"],
        ["average", "False", *["1.0"] * 6, "0.5"],
    ]
    assert len(cells(tmp_path / "pdms" / "failed.csv")) == 1
    assert read_pdms_rows(tmp_path)[1].parsed is False
