import csv
import json

import pyarrow.csv
import pyarrow.parquet
import pytest

from recogdrive.evaluation.agents import ConstantVelocity, Human
from recogdrive.evaluation.open_loop import evaluate_open_loop
from recogdrive.evaluation.tables import SCHEMA, read_rows, replace_file, write_rows, write_summary, write_tables


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
