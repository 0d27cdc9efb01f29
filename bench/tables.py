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

from bench.claims import ClaimLine, ClaimResult, judge_claim
from bench.measured import Found, Measured, measure
from bench.paper import PaperRow, PaperTable, load_paper
from bench.plans import Plan, PlanRow
from bench.records import Record
from bench.rendering import render_csv, render_markdown, render_scenes_csv
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
    """Of the images here, height x width; the paper's where nothing ran."""
    cells: dict[str, TableCell]
    speed: Record | None
    """The speed run, if it is ok."""


@dataclass(frozen=True)
class Table:
    """Everything that is shown."""

    plan: Plan
    paper: PaperTable
    lines: tuple[Line, ...]
    claims: tuple[ClaimResult, ...]
    records: tuple[Record, ...]
    damaged: tuple[Damaged, ...]

    @property
    def verdicts(self) -> list[Verdict]:
        return [cell.verdict for line in self.lines for cell in line.cells.values()]


def make_table(plan: Plan, found: Found) -> Table:
    """Measure and judge every printed number of the plan's table."""
    paper = load_paper(plan.paper).table(plan.table)
    numbers = {row.key: at for at, row in enumerate(paper.rows, start=1)}
    lines = tuple(_line(plan, paper.row(row.paper_row), row, numbers[row.paper_row], found) for row in plan.rows)
    of_claims = [
        ClaimLine(line.paper_row, line.plan_row.sp_size, line.size, {c: v.measured for c, v in line.cells.items()})
        for line in lines
    ]
    return Table(
        plan=plan,
        paper=paper,
        lines=lines,
        claims=tuple(judge_claim(claim, plan.columns[claim.column], of_claims) for claim in plan.claims),
        records=tuple(record for record in found.values() if isinstance(record, Record)),
        damaged=tuple(record for record in found.values() if isinstance(record, Damaged)),
    )


def _line(plan: Plan, paper_row: PaperRow, row: PlanRow, number: int, found: Found) -> Line:
    cells = {}
    for column in plan.columns:
        measured = measure(plan, row, column, found)
        cells[column] = TableCell(paper_row.values[column], measured, judge(plan, paper_row, column, measured))
    ids = [cell_id for of_kind in row.cells.values() for cell_id in of_kind]
    height, width = plan.cells[ids[0]].resolution if ids else paper_row.labels["resolution"]
    speed = [found.get(cell_id) for cell_id in row.cells.get("speed", ())]
    ok = [record for record in speed if isinstance(record, Record) and record.status == "ok"]
    return Line(number, paper_row, row, f"{height}x{width}", cells, ok[0] if ok else None)


def table_files(table: Table) -> dict[str, str]:
    """File name -> text."""
    stem = f"{table.plan.table}-{table.plan.profile}"
    return {
        f"{stem}.md": render_markdown(table),
        f"{stem}.csv": render_csv(table),
        f"{stem}-scenes.csv": render_scenes_csv(table),
    }


def load_table(plan_file: Path) -> Table:
    """The table of a plan file and the records beside it."""
    plan = read_plan(plan_file)
    return make_table(plan, store_of(plan_file).read_all(plan.cell_ids()))


def write_table(store: Store, table: Table) -> list[Path]:
    paths = []
    for name, text in table_files(table).items():
        write_text(store.root / name, text)
        paths.append(store.root / name)
    return paths


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
    files = table_files(load_table(plan_file))
    root = plan_file.parent
    return [root / name for name, text in files.items() if not _holds(root / name, text)]


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode("utf-8")


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
            for path in write_table(store_of(plan), load_table(plan)):
                print(path)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
