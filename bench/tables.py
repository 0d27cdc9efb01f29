"""A table: a pure function of a plan, its records and the paper's values.

``python -m bench.tables PATH...`` renders the tables of all plans under the given folders again, from what is there;
with ``--check`` it changes nothing and fails when a file on disk is not what its records give.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cells import Cell
from bench.claims import ClaimLine, ClaimResult, judge_claim
from bench.csv_files import render_csv, render_scenes_csv
from bench.errors import RecordError
from bench.figures import Figure, figures_of
from bench.garbage import uncollected
from bench.latex import render_latex
from bench.measured import Found, Measured, Result, condense, measure, read_results
from bench.paper import PaperRow, PaperTable, load_paper
from bench.plans import Plan, PlanRow
from bench.plotting import can_draw, draw, shows
from bench.records import Record
from bench.rendering import render_markdown
from bench.store import Damaged, Store, read_plan, store_of
from bench.verdicts import Verdict, judge
from tttlrm.errors import UserError
from tttlrm.files import write_text


@dataclass(frozen=True)
class TableCell:
    """One printed number, and what stands beside it."""

    printed: float | None
    measured: Measured
    verdict: Verdict


@dataclass(frozen=True)
class Line:
    """A row of the paper's, with the rank count it was run with."""

    number: int
    paper_row: PaperRow
    plan_row: PlanRow
    size: str
    """Of the images here, height x width; the paper's where nothing can run, and empty if that has none."""
    cells: dict[str, TableCell]
    run: Cell | None
    """One of the cells behind it; None for a row that cannot be run."""
    speed: Result | None
    """The speed run, if it is ok."""


@dataclass(frozen=True)
class Table:
    """Everything that is shown.

    Attributes:
        records: of the plan's cells.
        external: imported ones beside them, which no row of the plan has.
    """

    plan: Plan
    paper: PaperTable
    lines: tuple[Line, ...]
    claims: tuple[ClaimResult, ...]
    records: tuple[Result, ...]
    damaged: tuple[Damaged, ...]
    external: tuple[Result, ...] = ()

    @property
    def verdicts(self) -> list[Verdict]:
        return [cell.verdict for line in self.lines for cell in line.cells.values()]


def make_table(plan: Plan, records: Found, external: Sequence[Result] = ()) -> Table:
    """Measure and judge every printed number of the plan's table. Records are by cell id; each is condensed here, if
    it is not yet."""
    found = {i: condense(record) if isinstance(record, Record) else record for i, record in records.items()}
    paper = load_paper(plan.paper).table(plan.table).with_rows(plan.added_rows)
    rows = {row.key: (number, row) for number, row in enumerate(paper.rows, start=1)}
    for planned in plan.rows:
        if planned.paper_row not in rows:
            raise RecordError(f"the plan of {plan.table} has a row that the paper's table has not: {planned.paper_row}")
    lines = tuple(_line(plan, row, *rows[row.paper_row], found) for row in plan.rows)
    of_claims = [
        ClaimLine(
            line.paper_row,
            line.plan_row.sp_size,
            line.size,
            {c: v.measured for c, v in line.cells.items()},
            line.run,
        )
        for line in lines
    ]
    return Table(
        plan=plan,
        paper=paper,
        lines=lines,
        claims=tuple(judge_claim(claim, plan.columns[claim.column], of_claims) for claim in plan.claims),
        records=tuple(record for record in found.values() if isinstance(record, Result)),
        damaged=tuple(record for record in found.values() if isinstance(record, Damaged)),
        external=tuple(external),
    )


def _line(plan: Plan, row: PlanRow, number: int, paper_row: PaperRow, found: Found) -> Line:
    cells = {}
    for column in plan.columns:
        measured = measure(plan, row, column, found)
        printed = paper_row.values.get(column)
        cells[column] = TableCell(printed, measured, judge(plan, paper_row, column, measured))
    ids = [cell_id for of_run in row.cells.values() for cell_id in of_run]
    run = plan.cells[ids[0]] if ids else None
    sides = run.resolution if run else paper_row.labels.get("resolution", ())
    speed = [found.get(cell_id) for cell_id in row.cells.get("speed", ())]
    ok = [result for result in speed if isinstance(result, Result) and result.status == "ok"]
    return Line(number, paper_row, row, "x".join(map(str, sides)), cells, run, ok[0] if ok else None)


def table_files(table: Table) -> dict[str, str]:
    """File name -> text."""
    stem = f"{table.plan.table}-{table.plan.profile}"
    with uncollected():
        return {
            f"{stem}.md": render_markdown(table),
            f"{stem}.csv": render_csv(table),
            f"{stem}-scenes.csv": render_scenes_csv(table),
            f"{stem}.tex": render_latex(table),
        }


def load_table(plan_file: Path) -> Table:
    """The table of a plan file and the records beside it."""
    with uncollected():
        return load_records(store_of(plan_file), read_plan(plan_file))


def load_records(store: Store, plan: Plan) -> Table:
    """The plan's table from the store's records."""
    with uncollected():
        external = [condense(record) for record in store.read_external(plan.cells)]
        return make_table(plan, read_results(store, plan.cells), external)


def write_table(store: Store, table: Table) -> list[Path]:
    """Write the table's files, and its plots if matplotlib is there to draw them."""
    texts = table_files(table)
    if can_draw():
        texts |= {name: draw(figure) for name, figure in plot_files(table).items()}
    for name, text in texts.items():
        write_text(store.root / name, text)
    return [store.root / name for name in texts]


def plot_files(table: Table) -> dict[str, Figure]:
    """File name -> what it shows."""
    stem = f"{table.plan.table}-{table.plan.profile}"
    return {f"{stem}-{figure.name}.svg": figure for figure in figures_of(table)}


def find_plans(paths: Sequence[Path]) -> list[Path]:
    """The plan files among these files and under these folders. Raises UserError if there is none."""
    plans: list[Path] = []
    for path in paths:
        found = [path] if path.is_file() else sorted(path.glob("**/plan-*.json"))
        if not found:
            raise UserError(f"{path}: no plan-<profile>.json there, so there is no table to render")
        plans.extend(found)
    return plans


def stale_files(plan_file: Path) -> list[Path]:
    """Rendered files that are missing or not what the records give."""
    table, root = load_table(plan_file), plan_file.parent
    stale = [root / name for name, text in table_files(table).items() if not _holds(root / name, text)]
    return stale + [root / name for name, figure in plot_files(table).items() if not _is_plot(root / name, figure)]


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode("utf-8")


def _is_plot(path: Path, figure: Figure) -> bool:
    return path.is_file() and shows(path.read_text(encoding="utf-8", errors="replace"), figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description="Render tables from records.")
    parser.add_argument("paths", nargs="+", type=Path, help="folders of results, or plan files")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a table is not what it should be")
    options = parser.parse_args(arguments)
    try:
        plans = find_plans(options.paths)
        if options.check:
            stale = [path for plan in plans for path in stale_files(plan)]
            for path in stale:
                print(
                    f"{path}: not what the records give; render it again with python -m bench.tables", file=sys.stderr
                )
            return 1 if stale else 0
        for plan in plans:
            table = load_table(plan)
            for path in write_table(store_of(plan), table):
                print(path)
            if plot_files(table) and not can_draw():
                print(
                    f"{plan.parent}: no plots, because matplotlib is not installed (the extra plots)", file=sys.stderr
                )
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
