"""The paper's printed numbers, each with its key (paper, version, table, row, column)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import yaml

from bench.errors import SettingsError

_FILES = {"tttlrm": "tables.yaml", "suite": "suite.yaml"}


class ValueKey(NamedTuple):
    """Names one printed number. Later papers print other values for the same baselines, so none of it is optional."""

    paper: str
    version: int
    table: str
    row: str
    column: str


@dataclass(frozen=True)
class PaperRow:
    """One row of a printed table.

    Attributes:
        key: made of the row's own labels, so that it survives a reordering: ``method=tttlrm input_views=8``.
        labels: what identifies the row (method, resolution, input_views, ...), and what is the same for all rows of
            the table.
        values: column -> printed number; None where nothing is printed.
    """

    key: str
    labels: Mapping[str, Any]
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class PaperTable:
    """One printed table."""

    paper: str
    version: int
    name: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    labels: Mapping[str, Any]
    """What is the same for all rows."""

    def with_rows(self, added: Sequence[Mapping[str, Any]]) -> PaperTable:
        """The table with rows below its own that print no values, given by their labels.

        Raises SettingsError for a row that is there already, or that lacks a label of the others.
        """
        rows = list(self.rows)
        for labels in added:
            row = _parse_row((), labels, self.labels)
            missing = [name for name in self.rows[0].labels if name not in row.labels and name != "virtual_views"]
            if missing or any(row.key == other.key for other in rows):
                problem = f"needs {missing[0]}" if missing else "is there already"
                raise SettingsError(f"table.rows: the row {row.key!r} of {self.name} {problem}")
            rows.append(replace(row, values=dict.fromkeys(self.columns)))
        return replace(self, rows=tuple(rows))

    def row(self, key: str) -> PaperRow:
        for row in self.rows:
            if row.key == key:
                return row
        raise SettingsError(f"{self.paper} v{self.version} {self.name} has no row {key!r}")

    def key(self, row: PaperRow, column: str) -> ValueKey:
        return ValueKey(self.paper, self.version, self.name, row.key, column)


@dataclass(frozen=True)
class Paper:
    """The tables of one version of a paper."""

    key: str
    arxiv: str
    version: int
    tables: Mapping[str, PaperTable]

    def table(self, name: str) -> PaperTable:
        if name not in self.tables:
            raise SettingsError(f"paper {self.key} v{self.version} has no {name}; it has {', '.join(self.tables)}")
        return self.tables[name]

    def values(self) -> dict[ValueKey, float]:
        """All printed numbers of all tables."""
        return {
            table.key(row, column): value
            for table in self.tables.values()
            for row in table.rows
            for column, value in row.values.items()
            if value is not None
        }


@cache
def load_paper(key: str = "tttlrm") -> Paper:
    """The packaged values of a paper, by its key; ``suite`` has the tables that are the suite's own, without values.

    Raises SettingsError for an unknown key.
    """
    if key not in _FILES:
        raise SettingsError(f"no values of a paper {key!r}; there are {', '.join(_FILES)}")
    paper = parse_paper(resources.files(__package__).joinpath(_FILES[key]).read_text(encoding="utf-8"))
    assert paper.key == key
    return paper


def parse_paper(text: str) -> Paper:
    """Read the YAML of ``tables.yaml``: the sections with rows, which have a title and columns as well."""
    data = yaml.safe_load(text)
    identity = data["paper"]
    tables = {name: _parse_table(identity, name, part) for name, part in data.items() if "rows" in part}
    return Paper(identity["key"], str(identity["arxiv"]), int(identity["version"]), tables)


def _parse_table(identity: Mapping[str, Any], name: str, section: Mapping[str, Any]) -> PaperTable:
    columns = tuple(section["columns"])
    labels = {name: _hashable(value) for name, value in section.get("labels", {}).items()}
    rows = tuple(_parse_row(columns, row, labels) for row in section["rows"])
    if len({row.key for row in rows}) != len(rows):
        raise SettingsError(f"paper values: two rows of {name} have the same labels")
    title, note = section["title"], " ".join(section.get("note", "").split())
    return PaperTable(identity["key"], int(identity["version"]), name, title, note, columns, rows, labels)


def _parse_row(columns: tuple[str, ...], row: Mapping[str, Any], of_all: Mapping[str, Any]) -> PaperRow:
    labels = {name: _hashable(value) for name, value in row.items() if name not in columns}
    values = {column: None if row.get(column) is None else float(row[column]) for column in columns}
    key = " ".join(f"{name}={_label_text(value)}" for name, value in labels.items())
    return PaperRow(key, {**{name: _hashable(value) for name, value in of_all.items()}, **labels}, values)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _label_text(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(str(v) for v in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
