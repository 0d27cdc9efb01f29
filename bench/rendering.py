"""Tables as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from bench.claims import ClaimResult
from bench.formats import NONE, gain_estimate, mebibytes, number_estimate, seconds, seconds_estimate
from bench.measured import confidence_of, is_disturbed, stage_times
from bench.records import Record
from bench.verdicts import Verdict, device_name

if TYPE_CHECKING:
    from jinja2 import Template

    from bench.tables import Line, Table


@dataclass
class Notes:
    """Reasons, numbered in the order in which they first appear."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str | None) -> str:
        if not text:
            return ""
        if text not in self.texts:
            self.texts.append(text)
        return f" [{self.texts.index(text) + 1}]"


def render_markdown(table: Table) -> str:
    """The table for people: quality, time and memory, claims, notes."""
    notes = Notes()
    kinds = {kind: [name for name, c in table.plan.columns.items() if c.kind == kind] for kind in ("quality", "speed")}
    quality = _quality_grid(table, kinds["quality"], notes)
    speed = _speed_grid(table, kinds["speed"], notes)
    stages = _stage_grid(table)
    claims = [_claim_row(table, result) for result in table.claims]
    return _template().render(
        table=table,
        facts=run_facts(table),
        random_weights=any(_is_random(record) for record in table.records),
        quality=_markdown_grid(*quality) if quality else None,
        speed=_markdown_grid(*speed) if speed else None,
        stages=_markdown_grid(*stages) if stages else None,
        claims=_markdown_grid(["Claim of the paper", "Verdict here", "Gain measured here"], claims) if claims else None,
        notes=notes.texts,
        tolerances=[_tolerance_text(table, name) for name in table.plan.columns],
        confidence=_confidence_text(table),
    )


def run_facts(table: Table) -> str:
    """One line: commit, machine, weights, software, dates."""
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
        f"machine `{table.plan.machine}` ({'; '.join(devices)})",
        f"weights: {', '.join(weights) or 'none'}",
        f"torch {', '.join(torch)}" + (f", threads: {', '.join(threads)}" if threads else ""),
        " to ".join(dict.fromkeys([dates[0], dates[-1]])),
    ]
    return " · ".join(parts)


def render_csv(table: Table) -> str:
    """One line for each printed number."""
    header = (
        "paper,version,table,row,column,unit,profile,sp_size,printed,measured,low,high,samples,difference,verdict,reason,"
        "cells"
    )
    rows = []
    for line in table.lines:
        for name, cell in line.cells.items():
            column, estimate = table.plan.columns[name], cell.measured.estimate
            values = (estimate.value, estimate.low, estimate.high, estimate.count) if estimate else (None,) * 4
            difference = estimate.value - cell.printed if estimate and cell.printed is not None else None
            key = table.paper.key(line.paper_row, name)
            ids = " ".join(line.plan_row.cells.get(column.kind, ()))
            run = [column.unit, table.plan.profile, line.plan_row.sp_size]
            rows.append([*key, *run, cell.printed, *values, difference, cell.verdict.kind, cell.verdict.reason, ids])
    return _csv(header.split(","), rows)


def render_scenes_csv(table: Table) -> str:
    """One line for each scene and metric: the mean over its test views (and seeds)."""
    rows = []
    for line in table.lines:
        for name, cell in line.cells.items():
            for scene, value in cell.measured.by_scene.items():
                rows.append([line.paper_row.key, line.plan_row.sp_size, name, scene, value])
    return _csv(["row", "sp_size", "column", "scene", "value"], rows)


def _quality_grid(table: Table, names: list[str], notes: Notes) -> tuple[list[str], list[list[str]]] | None:
    if not names:
        return None
    header = _label_header(table)
    for name in names:
        column = table.plan.columns[name]
        header += [f"{column.label}{_unit(column.unit)} paper", "here"]
    rows = []
    for line in table.lines:
        row = _labels(table, line)
        for name in names:
            cell, decimals = line.cells[name], table.plan.columns[name].decimals
            estimate = cell.measured.estimate
            row.append(NONE if cell.printed is None else f"{cell.printed:.{decimals}f}")
            row.append(NONE if estimate is None else number_estimate(estimate, decimals))
        rows.append([*row, _verdicts(table, line, names, notes)])
    return [*header, "Verdict"], rows


def _speed_grid(table: Table, names: list[str], notes: Notes) -> tuple[list[str], list[list[str]]] | None:
    if not names:
        return None
    header = [*_label_header(table), f"Paper ({table.plan.conditions.device})", "Here", "First call", "Samples"]
    header += ["Peak memory", "Verdict"]
    rows = []
    for line in table.lines:
        cell = line.cells[names[0]]
        estimate, printed = cell.measured.estimate, cell.printed
        decimals = table.plan.columns[names[0]].decimals
        row = [*_labels(table, line), NONE if printed is None else f"{printed:.{decimals}f} s"]
        row.append(NONE if estimate is None else seconds_estimate(estimate))
        rows.append([*row, *_speed_details(line), _verdicts(table, line, names, notes)])
    return header, rows


def _speed_details(line: Line) -> list[str]:
    """First call, samples, memory."""
    if line.speed is None or line.speed.speed is None:
        return [NONE] * 3
    phase = line.speed.speed.reconstruct
    count = len(next(iter(phase.stages.values())))
    waited = f", disturbed {phase.waited_share:.0%}" if phase.waited_share and is_disturbed([line.speed]) else ""
    return [seconds(sum(phase.first_call.values())), f"{count}, {phase.stopped}{waited}", _memory(line.speed)]


def _stage_grid(table: Table) -> tuple[list[str], list[list[str]]] | None:
    """Medians of the stages, and how many Gaussians there were."""
    timed = [
        (line, line.speed.speed, stage_times(line.speed.speed, confidence_of(line.speed)))
        for line in table.lines
        if line.speed is not None and line.speed.speed is not None
    ]
    if not timed:
        return None
    stages = list(dict.fromkeys(stage for _, _, times in timed for stage in times))
    views = "/".join(str(count) for count in sorted({speed.rendered_views for _, speed, _ in timed}))
    shown = [f"render {views} views" if stage == "render" else stage for stage in stages]
    rows = []
    for line, speed, times in timed:
        medians = [seconds(times[stage].value) if stage in times else NONE for stage in stages]
        rows.append([*_labels(table, line), *medians, f"{speed.gaussians:,}"])
    return [*_label_header(table), *shown, "Gaussians"], rows


def _memory(record: Record) -> str:
    """Of the rank that needed most: allocated on CUDA; on a CPU what the process grew by."""
    peaks = [m.allocated_mib if m.allocated_mib is not None else m.resident_growth_mib for m in record.memory]
    known = [peak for peak in peaks if peak is not None]
    return mebibytes(max(known)) if known else NONE


def _label_header(table: Table) -> list[str]:
    ranks = ["sp"] if any(line.plan_row.sp_size > 1 for line in table.lines) else []
    return ["#", "Method", "Image", "Views", *ranks]


def _labels(table: Table, line: Line) -> list[str]:
    labels = line.paper_row.labels
    views, virtual = labels["input_views"], labels.get("virtual_views")
    printed = "x".join(str(side) for side in labels["resolution"])
    size = printed if printed == line.size else f"{printed} → {line.size}"
    shown = f"{views}" if virtual in (None, views) else f"{views} ({virtual})"
    ranks = [str(line.plan_row.sp_size)] if "sp" in _label_header(table) else []
    return [str(line.number), labels["method"], size, shown, *ranks]


def _verdicts(table: Table, line: Line, names: Sequence[str], notes: Notes) -> str:
    """One verdict if all columns share it, else one for each."""
    verdicts = {name: line.cells[name].verdict for name in names}
    if len(set(verdicts.values())) == 1:
        return _verdict(verdicts[names[0]], notes)
    return "; ".join(f"{table.plan.columns[name].label}: {_verdict(v, notes)}" for name, v in verdicts.items())


def _verdict(verdict: Verdict, notes: Notes) -> str:
    return f"{verdict.kind}{notes.mark(verdict.reason)}"


def _claim_row(table: Table, result: ClaimResult) -> list[str]:
    column = table.plan.columns[result.claim.column]
    verdict = result.verdict + (f" ({result.reason})" if result.reason else "")
    measured = [f"{c.where}: {_gain_text(table, result, c.gain)}" for c in result.comparisons]
    name = f"{result.claim.name} ({column.label})"
    return [name, f"**{verdict}**", "<br>".join(measured) or NONE]


def _gain_text(table: Table, result: ClaimResult, gain: Any) -> str:
    column = table.plan.columns[result.claim.column]
    if result.claim.kind == "ratio_grows":
        return gain_estimate(gain, 2, "in the ratio of times")
    if column.unit == "s":
        return gain_estimate(_scaled(gain, 1e3), 1, "ms")
    return gain_estimate(gain, column.decimals, column.unit)


def _scaled(estimate: Any, factor: float) -> Any:
    low, high = (None if side is None else side * factor for side in (estimate.low, estimate.high))
    return type(estimate)(estimate.value * factor, low, high, estimate.count)


def _tolerance_text(table: Table, name: str) -> str:
    tolerance, column = table.plan.tolerances[name], table.plan.columns[name]
    parts = [f"{tolerance.absolute:g}{' ' + column.unit if column.unit else ''}"] if tolerance.absolute else []
    parts += [f"{tolerance.relative:.0%} of the printed value"] if tolerance.relative else []
    return f"{column.label} {' plus '.join(parts) or 'exactly'}"


def _confidence_text(table: Table) -> str:
    shares = {record.cell.sampling.confidence for record in table.records if record.cell.sampling}
    return " or ".join(f"{share:.0%}" for share in sorted(shares)) or "95%"


def _commit(record: Record) -> str:
    code = record.environment.code
    if code.commit is None:
        return "unknown"
    return code.commit[:10] + (" with local changes" if code.dirty else "")


def _weights(record: Record) -> str:
    weights = record.cell.weights
    if weights.kind == "random":
        return f"random (seed {record.cell.seed})"
    return f"{weights.name} (sha256 {(weights.sha256 or 'unknown')[:10]})"


def _is_random(record: Record) -> bool:
    return record.cell.kind == "quality" and record.cell.weights.kind == "random"


def _unit(unit: str) -> str:
    return f" ({unit})" if unit else ""


def _markdown_grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    escaped = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in [list(header), *escaped]) for at in range(len(header))]
    lines = [_grid_line(header, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    return "\n".join([*lines, *(_grid_line(row, widths) for row in escaped)])


def _grid_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(["" if v is None else f"{v:.9g}" if isinstance(v, float) else v for v in row])
    return text.getvalue()


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    source = resources.files("bench").joinpath("templates/table.md.j2").read_text(encoding="utf-8")
    return environment.from_string(source)
