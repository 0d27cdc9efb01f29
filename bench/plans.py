"""A plan: which cells fill which rows of a table. With the records and the paper's values it determines the table."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from bench import SUITE_VERSION
from bench.cells import Cell
from bench.schema import Frozen, Growing, Sealed
from bench.settings import Claim, Column, PaperConditions, Tolerance


class PlanRow(Frozen):
    """A line of the rendered table: a row of the paper's, with the rank count it is run with.

    Attributes:
        paper_row: key of the row in the paper's table.
        cells: run (:attr:`bench.settings.Column.run`) -> ids of the cells that fill its columns; several for several
            seeds.
        left_out: why the row cannot be run, and has no cells.
    """

    paper_row: str
    sp_size: int
    cells: dict[str, tuple[str, ...]]
    left_out: str | None = None


class Plan(Sealed, Growing):
    """The whole table as one invocation of the suite configured it, whichever of its cells that one ran. Kept beside
    the records; a later one with the same table and profile takes its place, and records that it does not name are
    left alone."""

    LATER: ClassVar[frozenset[str]] = frozenset({"notes", "added_rows"})

    schema_version: Literal[1] = 1
    suite_version: str = SUITE_VERSION
    table: str
    paper: str
    paper_version: int
    profile: str
    machine: str
    order_seed: int
    columns: dict[str, Column]
    conditions: PaperConditions
    tolerances: dict[str, Tolerance]
    claims: tuple[Claim, ...]
    rows: tuple[PlanRow, ...]
    cells: dict[str, Cell]
    notes: tuple[str, ...] = ()
    """What a reader must know of how the paper's rows were run here."""
    added_rows: tuple[dict[str, Any], ...] = ()
    """Labels of the rows that the paper does not have."""

    def cell_ids(self) -> tuple[str, ...]:
        return tuple(self.cells)
