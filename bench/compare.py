"""``python -m bench compare A B``: what changed, beyond the intervals, between two sets of results.

A set is a folder with results, or ``REVISION:folder`` of the repository that one is in (``main:results``).
Quality is compared scene by scene where both sets have the same scenes, times by the extremes of both intervals.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from bench.errors import RecordError
from bench.formats import NONE, number_estimate, seconds, seconds_estimate, significant
from bench.grids import Grid
from bench.measured import Measured
from bench.rendering import markdown_grid, run_facts
from bench.settings import Column
from bench.statistics import Estimate, difference_estimate, mean_estimate
from bench.tables import Table, find_plans, load_table
from tttlrm.errors import UserError

Change = Literal["worse", "better", "lost", "gained", "same", "too few samples"]
BAD = ("worse", "lost")
_REVISION = re.compile(r"(?P<revision>[^:]+):(?P<path>.*)")


class Key(NamedTuple):
    """A number that two sets can share."""

    table: str
    profile: str
    row: str
    sp_size: int
    column: str


@dataclass(frozen=True)
class Value:
    """One number of a set."""

    measured: Measured
    column: Column


@dataclass(frozen=True)
class Difference:
    """``gain`` is B minus A, in the column's unit; None where one of them has no value."""

    key: Key
    column: Column
    before: Measured | None
    after: Measured | None
    gain: Estimate | None
    change: Change


def compare(before: Mapping[Key, Value], after: Mapping[Key, Value], slack: float = 0.0) -> list[Difference]:
    """Every number that either set has a value for, in the order of the first.

    Args:
        slack: a time also counts as the same while it differs by no more than this share; runs of one program on one
            machine differ by more than their intervals when clocks or neighbours do.
    """
    keys = [key for key in dict.fromkeys([*before, *after]) if _has_value(before, key) or _has_value(after, key)]
    return [_difference(key, before.get(key), after.get(key), slack) for key in keys]


def exit_code(differences: Sequence[Difference]) -> int:
    """0: nothing is worse or lost; 1: something is."""
    return int(any(difference.change in BAD for difference in differences))


def values_of(tables: Sequence[Table]) -> dict[Key, Value]:
    """All numbers of a set's tables. Raises UserError if two tables are the same table and profile."""
    values: dict[Key, Value] = {}
    for table in tables:
        plan = table.plan
        for line in table.lines:
            for name, cell in line.cells.items():
                key = Key(plan.table, plan.profile, line.paper_row.key, line.plan_row.sp_size, name)
                if key in values:
                    raise UserError(
                        f"{plan.table} with profile {plan.profile} is there more than once; name the folder of one "
                        "machine and version"
                    )
                values[key] = Value(cell.measured, plan.columns[name])
    return values


@contextmanager
def result_set(name: str) -> Iterator[list[Table]]:
    """The tables of a folder, or of one in a revision of the repository. Raises UserError if there are none."""
    path, found = Path(name), _REVISION.fullmatch(name)
    if not path.exists() and found is None:
        raise UserError(f"{name}: no such folder")
    if path.exists() or found is None:
        yield [load_table(plan) for plan in find_plans([path])]
        return
    with tempfile.TemporaryDirectory() as folder:
        _export(found["revision"], found["path"], Path(folder))
        try:
            yield [load_table(plan) for plan in find_plans([Path(folder)])]
        except RecordError as error:
            raise UserError(f"{name}: {str(error).removeprefix(folder).lstrip('/')}") from None
        except UserError:
            raise UserError(f"{name}: no plan-<profile>.json there, so there is no table to compare") from None


def report(before: Sequence[Table], after: Sequence[Table], differences: Sequence[Difference], everything: bool) -> str:
    """Markdown: what both sets are, the numbers that changed (or all of them), and how many did."""
    sides = [(side, table) for side, tables in (("A", before), ("B", after)) for table in tables]
    facts = [f"{side}: {table.plan.table}, {run_facts(table)}" for side, table in sides]
    shown = [d for d in differences if everything or d.change not in ("same", "too few samples")]
    counts = Counter(difference.change for difference in differences)
    kinds: list[Change] = ["worse", "lost", "better", "gained", "same", "too few samples"]
    summary = ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind]) or "no values"
    grid = Grid("", ("Table", "Row", "sp", "Column", "A", "B", "B - A", "Change"), tuple(map(_row, shown)))
    parts = ["\n".join(f"- {fact}" for fact in facts), *([markdown_grid(grid)] if shown else [])]
    return "\n\n".join([*parts, f"{len(differences)} numbers: {summary}."])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench compare",
        description="What changed beyond the intervals between two sets of results.",
        epilog="Exit codes: 0 nothing is worse or lost; 1 something is; 2 wrong usage.",
    )
    where = "a folder of results, or REVISION:folder"
    parser.add_argument("a", metavar="A", help=where)
    parser.add_argument("b", metavar="B", help=where)
    parser.add_argument("--all", action="store_true", help="show what did not change too")
    parser.add_argument(
        "--slack", type=_share, default=0.0, help="share by which times may differ besides, such as 0.05 (default: 0)"
    )
    options = parser.parse_args(arguments)
    with result_set(options.a) as before, result_set(options.b) as after:
        differences = compare(values_of(before), values_of(after), options.slack)
        if not differences:
            raise UserError(f"{options.a} and {options.b}: neither has a value")
        print(report(before, after, differences, options.all))
    return exit_code(differences)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, not {text}")
    return value


def _has_value(values: Mapping[Key, Value], key: Key) -> bool:
    return key in values and values[key].measured.estimate is not None


def _difference(key: Key, before: Value | None, after: Value | None, slack: float) -> Difference:
    some = before or after
    assert some is not None
    first, second = (value.measured if value else None for value in (before, after))
    gain, change = _judge(first, second, some.column, slack)
    return Difference(key, some.column, first, second, gain, change)


def _judge(
    before: Measured | None, after: Measured | None, column: Column, slack: float
) -> tuple[Estimate | None, Change]:
    if after is None or after.estimate is None:
        return None, "lost"
    if before is None or before.estimate is None:
        return None, "gained"
    if before.by_scene and before.by_scene.keys() == after.by_scene.keys():
        differences = [after.by_scene[scene] - before.by_scene[scene] for scene in before.by_scene]
        # Equal values are the same, even of a single scene.
        gain = mean_estimate(differences) if any(differences) else Estimate(0.0, 0.0, 0.0, len(differences))
    else:
        gain = difference_estimate(after.estimate, before.estimate)
    if gain.low is None or gain.high is None:
        return gain, "too few samples"
    allowed = slack * before.estimate.value if column.kind == "speed" else 0.0
    if gain.low <= allowed and gain.high >= -allowed:
        return gain, "same"
    return gain, "better" if (gain.value > 0) == (column.better == "higher") else "worse"


def _row(difference: Difference) -> tuple[str, ...]:
    key, column = difference.key, difference.column
    sides = [_shown(side, column) for side in (difference.before, difference.after)]
    table = f"{key.table}, {key.profile}"
    return table, key.row, str(key.sp_size), column.label, *sides, _gain(difference), f"**{difference.change}**"


def _shown(measured: Measured | None, column: Column) -> str:
    if measured is None:
        return NONE
    if measured.estimate is None:
        return measured.absent[1] if measured.absent else NONE
    if column.kind == "speed":
        return seconds_estimate(measured.estimate)
    return number_estimate(measured.estimate, column.decimals)


def _gain(difference: Difference) -> str:
    gain, before = difference.gain, difference.before
    if gain is None or before is None or before.estimate is None:
        return NONE
    if difference.column.kind == "quality":
        decimals = difference.column.decimals + 1
        return f"{gain.value:+.{decimals}f}"
    share = gain.value / before.estimate.value
    sign = "+" if gain.value >= 0 else ""
    return f"{sign}{seconds(gain.value)} ({sign}{significant(100 * share, 2)}%)"


def _export(revision: str, path: str, folder: Path) -> None:
    """Write the files of a folder in a revision, through ``git archive``."""
    command = ["git", "archive", "--format=zip", revision, "--", path or "."]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except FileNotFoundError:
        raise UserError(f"{revision}:{path}: git is not installed") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["git archive failed"]
        raise UserError(f"{revision}:{path}: {lines[0]}") from None
    with zipfile.ZipFile(io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder)
