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
    assert rows == {"table1": 8, "table2": 18, "table3": 4, "table4": 2, "table5": 3, "table6": 2, "table7": 8}
    row = "method=tttlrm resolution=512x512 input_views=24 virtual_views=10"
    assert paper.values()[ValueKey("tttlrm", 2, "table1", row, "psnr")] == 34.80
    assert paper.tables["table1"].row(row).labels["resolution"] == (512, 512)


def test_every_value_has_a_key_of_its_own() -> None:
    paper = load_paper()
    printed = sum(v is not None for t in paper.tables.values() for r in t.rows for v in r.values.values())
    assert len(paper.values()) == printed == 8 * 4 + 18 * 7 + 4 * 3 + 2 * 3 + 3 * 4 + 2 * 3 + 8 * 7


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
