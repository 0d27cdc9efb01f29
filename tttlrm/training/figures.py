"""The figures that the small models are held to, worked out of evaluation records, with intervals over scenes.

``python -m tttlrm.training.figures FOLDER`` writes ``FOLDER/evaluation.md`` again from the records in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tttlrm.errors import UserError
from tttlrm.files import write_text

Record = Mapping[str, Any]
_RESAMPLES = 4000
_COLUMNS = (
    "model", "data", "views", "size", "scenes or views", "PSNR", "SSIM", "LPIPS", "depth error",
    "mean colour", "nearest view",
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A difference between two columns of PSNR, both of the same scenes.

    Attributes:
        model, data, views: of the first column.
        other: of the second: ``baseline`` (the better of the trivial predictions), or another model's name.
        other_views: its views, where they differ.
        at_least, aim: in dB.
        beyond_interval: the whole interval must be above ``at_least``.
    """

    model: str
    data: str
    views: int
    at_least: float
    aim: float | None
    other: str = "baseline"
    other_views: int | None = None
    beyond_interval: bool = False

    @property
    def label(self) -> str:
        if self.other == "baseline":
            return f"{self.model} on {self.data}, {self.views} views: gain over the better trivial prediction"
        if self.other == self.model:
            return f"{self.model} on {self.data}: gain from {self.other_views} to {self.views} views"
        return f"{self.model} against {self.other} on {self.data}, {self.views} views"


FIGURES = (
    Figure("tiny-object", "object", 8, 11, 15),
    Figure("tiny-object", "gso_character", 8, 6, 10),
    Figure("tiny-room", "room", 16, 5, 9),
    Figure("tiny-room", "mydesk", 16, 2, 5),
    Figure("tiny-object", "object", 8, 0, 1, other="tiny-object", other_views=4, beyond_interval=True),
    Figure("tiny-object", "object", 16, 0, 1, other="tiny-object", other_views=8, beyond_interval=True),
    Figure("tiny-room", "room", 8, 0, 1, other="tiny-room", other_views=4, beyond_interval=True),
    Figure("tiny-room", "room", 16, 0, 1, other="tiny-room", other_views=8, beyond_interval=True),
    Figure("tiny-object", "object", 8, -0.3, 1, other="tiny-object-attention"),
    Figure("tiny-object", "object", 16, 0, 1, other="tiny-object-attention"),
    Figure("tiny-object", "object", 24, 0, 1, other="tiny-object-attention"),
    Figure("tiny-object-ar", "object", 8, -1.5, -0.8, other="tiny-object"),
    Figure("tiny-room-ar", "room", 16, -1.5, -0.8, other="tiny-room"),
)


@dataclass(frozen=True)
class Result:
    """A figure's value with its 95% interval over scenes (over views for a capture), and the verdict."""

    figure: Figure
    value: float
    low: float
    high: float
    count: int

    @property
    def verdict(self) -> str:
        bound = self.low if self.figure.beyond_interval else self.value
        if not (bound > self.figure.at_least or (bound == self.figure.at_least and not self.figure.beyond_interval)):
            return "missed"
        return "aim reached" if self.figure.aim is not None and self.value >= self.figure.aim else "reached"


def results(records: Sequence[Record], figures: Sequence[Figure] = FIGURES) -> list[tuple[Figure, Result | None]]:
    """Each figure with its result, or None where a record that it needs is not there."""
    return [(figure, _result(records, figure)) for figure in figures]


def bootstrap(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and its 95% percentile interval over resampled scenes. The same at every call."""
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(len(array), size=(_RESAMPLES, len(array)))
    low, high = np.quantile(array[picks].mean(axis=1), [0.025, 0.975])
    return float(array.mean()), float(low), float(high)


def better_baseline(record: Record) -> str:
    """Which trivial prediction has the higher mean PSNR on a record's scenes: its column."""
    means = {name: np.mean([unit[name] for unit in record["units"]]) for name in ("mean_color", "nearest_view")}
    return max(means, key=lambda name: means[name])


def _result(records: Sequence[Record], figure: Figure) -> Result | None:
    first = _find(records, figure.model, figure.data, figure.views)
    if figure.other == "baseline":
        second, column = first, better_baseline(first) if first else ""
    else:
        second, column = _find(records, figure.other, figure.data, figure.other_views or figure.views), "psnr"
    if first is None or second is None:
        return None
    ours = {unit["index"]: unit["psnr"] for unit in first["units"]}
    theirs = {unit["index"]: unit[column] for unit in second["units"]}
    if ours.keys() != theirs.keys() or first["size"] != second["size"]:
        return None
    value, low, high = bootstrap([ours[index] - theirs[index] for index in sorted(ours)])
    return Result(figure, value, low, high, len(ours))


def _find(records: Sequence[Record], model: str, data: str, views: int) -> Record | None:
    wanted = (model, data, views)
    return next((r for r in records if (r["model"], r["data"]["name"], r["views"]) == wanted), None)


def read_records(folder: Path) -> list[Record]:
    """The records in a folder, in the order of model, data and views."""
    files = sorted(folder.glob("*views.json"))
    if not files:
        raise UserError(f"{folder}: there are no evaluation records")
    try:
        records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        return sorted(records, key=lambda r: (r["model"], r["data"]["source"] == "capture", r["views"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: a record cannot be read ({error})") from error


def to_markdown(records: Sequence[Record]) -> str:
    """Two tables: the figures with their verdicts, and every record's means."""
    lines = ["| figure | dB [95% interval] | at least | aim | verdict |", "|---|---|---|---|---|"]
    for figure, result in results(records):
        wanted = f"| {figure.at_least:+g} | {'' if figure.aim is None else f'{figure.aim:+g}'} |"
        if result is None:
            lines.append(f"| {figure.label} | - {wanted} not run |")
        else:
            interval = f"{result.value:+.2f} [{result.low:+.2f}, {result.high:+.2f}]"
            lines.append(f"| {figure.label} | {interval} {wanted} {result.verdict} |")
    return "\n".join(lines) + "\n\n" + records_markdown(records)


def records_markdown(records: Sequence[Record]) -> str:
    """Means of each record, PSNR with its interval."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    return "\n".join([*lines, *(_row(record) for record in records)]) + "\n"


def _row(record: Record) -> str:
    units = record["units"]
    value, low, high = bootstrap([unit["psnr"] for unit in units])
    cells = [record["model"], record["data"]["name"], record["views"], "x".join(map(str, record["size"])), len(units)]
    cells.append(f"{value:.2f} [{low:.2f}, {high:.2f}]")
    for name, digits in (("ssim", 3), ("lpips", 3), ("depth_error", 3), ("mean_color", 2), ("nearest_view", 2)):
        values = [unit[name] for unit in units if unit[name] is not None]
        cells.append(f"{np.mean(values):.{digits}f}" if len(values) == len(units) else "-")
    return "| " + " | ".join(map(str, cells)) + " |"


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 for wrong input."""
    if len(arguments) != 1:
        print("usage: python -m tttlrm.training.figures FOLDER", file=sys.stderr)
        return 2
    try:
        table = to_markdown(read_records(Path(arguments[0])))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    write_text(Path(arguments[0]) / "evaluation.md", table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
