"""Tables as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.tables import Table

_HEADER = (
    "paper,version,table,row,column,unit,profile,sp_size,printed,measured,low,high,samples,difference,verdict,reason,"
    "cells"
)


def render_csv(table: Table) -> str:
    """One line for each printed number."""
    rows = []
    for line in table.lines:
        for name, cell in line.cells.items():
            column, estimate = table.plan.columns[name], cell.measured.estimate
            values = (estimate.value, estimate.low, estimate.high, estimate.count) if estimate else (None,) * 4
            difference = estimate.value - cell.printed if estimate and cell.printed is not None else None
            key = table.paper.key(line.paper_row, name)
            ids = " ".join(line.plan_row.cells.get(column.run, ()))
            run = [column.unit, table.plan.profile, line.plan_row.sp_size]
            rows.append([*key, *run, cell.printed, *values, difference, cell.verdict.kind, cell.verdict.reason, ids])
    return csv_text(_HEADER.split(","), rows)


def render_scenes_csv(table: Table) -> str:
    """One line for each scene and metric: the mean over its test views (and seeds). Imported ones follow; their row is
    the system's name."""
    rows: list[list[Any]] = []
    for line in table.lines:
        for name, cell in line.cells.items():
            for scene, value in cell.measured.by_scene.items():
                rows.append([line.paper_row.key, line.plan_row.sp_size, name, scene, value])
    for result in table.external:
        label = (
            f"external={result.cell.method} dataset={result.cell.dataset.name} input_views={result.cell.input_views}"
        )
        for metric in ("psnr", "ssim", "lpips"):
            rows += [[label, 1, metric, scene, value] for scene, value in result.scenes.get(metric, {}).items()]
    return csv_text(["row", "sp_size", "column", "scene", "value"], rows)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(["" if v is None else f"{v:.9g}" if isinstance(v, float) else v for v in row])
    return text.getvalue()
