"""The paper's values are complete and each has its own key."""

from __future__ import annotations

import pytest

from bench.errors import SettingsError
from bench.paper import ValueKey, load_paper, parse_paper

PAPER = """
paper: {key: other, arxiv: "1", version: 3}
table1:
  title: a table
  columns: [psnr, time_s]
  rows:
    - {method: a, views: 8, psnr: 30.5, time_s: null}
    - {method: b, views: 8, psnr: 31}
"""


def test_values_are_those_of_the_paper() -> None:
    paper = load_paper()
    assert (paper.key, paper.arxiv, paper.version) == ("tttlrm", "2602.20160", 2)
    rows = {name: len(table.rows) for name, table in paper.tables.items()}
    tables = {"table1": 8, "table2": 18, "table3": 4, "table4": 2, "table5": 3, "table6": 2, "table7": 12}
    assert rows == {**tables, "figure8": 10}
    row = "method=tttlrm resolution=512x512 input_views=24 virtual_views=10"
    assert paper.values()[ValueKey("tttlrm", 2, "table1", row, "psnr")] == 34.80
    assert paper.tables["table1"].row(row).labels["resolution"] == (512, 512)


def test_every_value_has_a_key_of_its_own() -> None:
    paper = load_paper()
    printed = sum(v is not None for t in paper.tables.values() for r in t.rows for v in r.values.values())
    assert len(paper.values()) == printed == 8 * 4 + 18 * 7 + 4 * 3 + 2 * 3 + 3 * 4 + 2 * 3 + 12 * 7


def test_rows_without_steps_repeat_table_2() -> None:
    paper = load_paper()
    for row in paper.tables["table7"].rows:
        if row.labels["steps"] == 0:
            method, views = row.labels["method"], row.labels["input_views"]
            assert row.values == paper.tables["table2"].row(f"method={method} input_views={views}").values


def test_labels_of_a_table_are_those_of_its_rows_and_not_in_their_keys() -> None:
    row = load_paper().tables["table4"].rows[0]
    assert row.labels == {"resolution": (540, 960), "input_views": 32, "strategy": "predict-and-merge"}
    assert row.key == "strategy=predict-and-merge"


def test_the_suites_own_tables_have_no_values() -> None:
    suite = load_paper("suite")
    assert list(suite.tables) == ["scaling", "speed"] and suite.values() == {}


def test_values_that_are_not_printed_are_none() -> None:
    first, second = parse_paper(PAPER).table("table1").rows
    assert first.values == {"psnr": 30.5, "time_s": None}
    assert second.values == {"psnr": 31.0, "time_s": None}
    assert first.labels == {"method": "a", "views": 8}


def test_rows_with_the_same_labels_are_refused() -> None:
    with pytest.raises(SettingsError, match="table1 have the same labels"):
        parse_paper(PAPER.replace("method: b", "method: a"))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SettingsError, match="'nerf'"):
        load_paper("nerf")
    with pytest.raises(SettingsError, match="no table9"):
        load_paper().table("table9")
    with pytest.raises(SettingsError, match="no row 'x'"):
        load_paper().table("table1").row("x")
