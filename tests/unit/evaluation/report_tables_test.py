"""Tables of the report's page."""

from dataclasses import dataclass

from recogdrive.evaluation.report_tables import Column, Counts, answer_table, break_down, summary_table

COUNTS = Counts("scenes", "failed", "partial")
NAN = float("nan")


@dataclass
class Row:
    layout: str
    value: float | None


def metrics(value, partial=0):
    return {"val/m": value, "val/scenes": 3, "val/failed": partial, "val/partial": partial}


def best_of(summary, *, high_is_better):
    table = summary_table(summary, "val", [Column("m", "M", ".1%")], COUNTS, high_is_better=high_is_better)
    return [entry["agent"] for entry in table if entry["cells"][0]["best"]]


def test_the_best_is_at_the_named_end():
    summary = {"a": metrics(0.5), "b": metrics(0.7)}
    assert best_of(summary, high_is_better=True) == ["b"]
    assert best_of(summary, high_is_better=False) == ["a"]


def test_partial_means_and_the_human_are_no_rivals():
    summary = {"a": metrics(0.5), "b": metrics(0.7), "c": metrics(0.9, partial=1), "human": metrics(1.0)}
    assert best_of(summary, high_is_better=True) == ["b"]


def test_one_agent_alone_is_not_the_best():
    assert best_of({"a": metrics(0.5), "human": metrics(1.0)}, high_is_better=True) == []


def test_a_cell_reads_as_its_column_says_and_a_missing_mean_is_none():
    summary = {"a": metrics(0.5) | {"val/m_ci95_low": 0.25, "val/m_ci95_high": 0.755}, "b": metrics(NAN, partial=1)}
    first, second = summary_table(summary, "val", [Column("m", "M", ".1%", interval=True)], COUNTS, high_is_better=True)
    assert (first["cells"][0]["text"], first["cells"][0]["interval"]) == ("50.0%", "25.0% – 75.5%")
    assert (second["cells"][0]["text"], second["cells"][0]["interval"]) == ("none", None)
    assert (second["missing"], second["scenes"], second["partial"]) == (1, 3, True)


ROWS = {
    "planner": [Row("curve", 0.2), Row("merge", 0.9), Row("curve", 0.4), Row("exit", None)],
    "other": [Row("curve", 1.0), Row("merge", 0.5), Row("curve", 0.5), Row("exit", 0.1)],
}


def test_groups_hold_means_of_valid_rows_worst_of_the_first_agent_first():
    found = break_down(ROWS, "layout", lambda row: row.value, spec=".2f", high_is_worse=False)
    assert found.agents == ("planner", "other")
    assert [(g["name"], g["scenes"], g["values"]) for g in found.groups] == [
        ("exit", 1, ["none", "0.10"]),
        ("curve", 2, ["0.30", "0.75"]),
        ("merge", 1, ["0.90", "0.50"]),
    ]


def test_the_order_turns_where_high_is_worse_and_groups_beyond_the_limit_are_counted():
    found = break_down(ROWS, "layout", lambda row: row.value, spec=".2f", high_is_worse=True, limit=2)
    assert [g["name"] for g in found.groups] == ["exit", "merge"]
    assert found.left_out == 1


def test_hidden_agents_have_no_column():
    found = break_down(ROWS, "layout", lambda row: row.value, spec=".2f", high_is_worse=True, hidden=("other",))
    assert found.agents == ("planner",) and found.groups[1]["values"] == ["0.90"]


def test_a_property_that_all_or_none_share_makes_no_table():
    alike = {"planner": [Row("curve", 0.1), Row("curve", 0.2)]}
    different = {"planner": [Row("curve", 0.1), Row("merge", 0.2)]}
    for rows in (alike, different):
        assert break_down(rows, "layout", lambda row: row.value, spec=".2f", high_is_worse=True) is None


def test_answers_are_counted_for_agents_that_answer_alone():
    spoken = {"val/scenes": 4, "val/invalid": 1, "val/parse_rate": 0.75, "val/pdms": 0.6, "val/pdms_valid": 0.8}
    assert answer_table({"vlm_text": spoken, "human": metrics(1.0)}, "val") == [
        {
            "agent": "vlm_text",
            "scenes": 4,
            "invalid": 1,
            "parse_rate": "75.0%",
            "scores": [{"name": "PDMS", "all": "60.0%", "valid": "80.0%"}],
        }
    ]


def test_an_agent_without_any_readable_answer_has_no_score_of_valid_ones():
    spoken = {"val/scenes": 2, "val/invalid": 2, "val/parse_rate": 0.0, "val/pdms": 0.0, "val/pdms_valid": NAN}
    (entry,) = answer_table({"vlm_text": spoken}, "val")
    assert entry["scores"] == [{"name": "PDMS", "all": "0.0%", "valid": "none"}]
