"""A table as Markdown, and the facts and sentences that every format of it states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from bench.figures import figures_of
from bench.grids import Grid, Notes, claim_grid, external_grid, memory_grid, quality_grids, speed_grid, stage_grid
from bench.measured import Result
from bench.verdicts import device_name

if TYPE_CHECKING:
    from jinja2 import Template

    from bench.tables import Table


def render_markdown(table: Table) -> str:
    """The table for people: quality, time and memory, claims, notes."""
    notes = Notes()
    quality = [(grid.title, markdown_grid(grid)) for grid in quality_grids(table, notes)]
    others = {"speed": speed_grid(table, notes), "stages": stage_grid(table), "claims": claim_grid(table)}
    others["external"] = external_grid(table)
    others["memory"] = memory_grid(table)
    return _template().render(
        table=table,
        title=title(table),
        facts=run_facts(table, "`"),
        random_weights=any(_is_random(record) for record in table.records),
        quality=quality,
        **{name: markdown_grid(grid) if grid else None for name, grid in others.items()},
        citations=citations(table),
        notes=notes.texts,
        plots=[f"{table.plan.table}-{table.plan.profile}-{figure.name}.svg" for figure in figures_of(table)],
        tolerances=[tolerance_text(table, name) for name in table.plan.columns if _has_value(table, name)],
        confidence=confidence_text(table),
    )


def title(table: Table) -> str:
    """``Table 1: GSO, 100 objects``."""
    name = table.plan.table
    for kind in ("table", "figure"):
        name = name.replace(kind, f"{kind.capitalize()} ", 1) if name.startswith(kind) else name
    return f"{name[:1].upper()}{name[1:]}: {table.paper.title}"


def run_facts(table: Table, quote: str = "") -> str:
    """One line: commit, machine, weights, software, dates; ``quote`` goes around the machine's name."""
    records = table.records
    if not records:
        return "Nothing has run yet."
    commits = sorted({_commit(record) for record in records})
    devices = sorted({device_name(record.environment, record.cell) for record in records})
    weights = sorted({_weights(record) for record in records if record.status != "unavailable"})
    torch = sorted({record.environment.packages.get("torch", "unknown") for record in records})
    dates = sorted({record.finished.date().isoformat() for record in records})
    threads = sorted({str(record.environment.threads) for record in records if record.status == "ok"})
    parts = [
        f"commit {', '.join(commits)}",
        f"machine {quote}{table.plan.machine}{quote} ({'; '.join(devices)})",
        f"weights: {', '.join(weights) or 'none'}",
        f"torch {', '.join(torch)}" + (f", threads: {', '.join(threads)}" if threads else ""),
        " to ".join(dict.fromkeys([dates[0], dates[-1]])),
    ]
    return " · ".join(parts)


def citations(table: Table) -> list[str]:
    """Of the imported values, each once."""
    sources = [result.source for result in table.external if result.source]
    return list(dict.fromkeys(f"{s.system}: {s.citation} (`{s.file}`, sha256 {s.sha256[:10]})" for s in sources))


def tolerance_text(table: Table, name: str) -> str:
    tolerance, column = table.plan.tolerances[name], table.plan.columns[name]
    parts = [f"{tolerance.absolute:g}{' ' + column.unit if column.unit else ''}"] if tolerance.absolute else []
    parts += [f"{tolerance.relative:.0%} of the printed value"] if tolerance.relative else []
    return f"{column.label} {' plus '.join(parts) or 'exactly'}"


def confidence_text(table: Table) -> str:
    shares = {record.cell.sampling.confidence for record in table.records if record.cell.sampling}
    return " or ".join(f"{share:.0%}" for share in sorted(shares)) or "95%"


def markdown_grid(grid: Grid) -> str:
    escaped = [[_escape(cell) for cell in row] for row in (grid.header, *grid.rows)]
    widths = [max(len(row[at]) for row in escaped) for at in range(len(grid.header))]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([_grid_line(escaped[0], widths), rule, *(_grid_line(row, widths) for row in escaped[1:])])


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _grid_line(cells: Sequence[str], widths: Iterable[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _has_value(table: Table, name: str) -> bool:
    return name in table.plan.tolerances and any(line.cells[name].printed is not None for line in table.lines)


def _commit(record: Result) -> str:
    code = record.environment.code
    if code.commit is None:
        return "unknown"
    return code.commit[:10] + (" with local changes" if code.dirty else "")


def _weights(record: Result) -> str:
    weights = record.cell.weights
    if weights.kind == "random":
        return f"random (seed {record.cell.seed})"
    return f"{weights.name} (sha256 {(weights.sha256 or 'unknown')[:10]})"


def _is_random(record: Result) -> bool:
    return record.cell.kind == "quality" and record.cell.weights.kind == "random"


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    source = resources.files("bench").joinpath("templates/table.md.j2").read_text(encoding="utf-8")
    return environment.from_string(source)
