"""The parts of a rendered table as plain grids of text, from which Markdown and LaTeX are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.formats import NONE, difference, gain_estimate, joules, mebibytes, number_estimate, seconds, seconds_estimate
from bench.measured import Result, is_disturbed
from bench.settings import Column
from bench.statistics import Estimate, mean_estimate
from bench.verdicts import Verdict

if TYPE_CHECKING:
    from bench.claims import ClaimResult, Comparison
    from bench.tables import Line, Table

_NAMES = {"input_views": "views", "sp_size": "sp", "resolution": "image"}
_SHOWN_APART = ("resolution", "input_views", "virtual_views")
_METRICS = {"psnr": ("PSNR (dB)", 2), "ssim": ("SSIM", 3), "lpips": ("LPIPS", 3)}


@dataclass(frozen=True)
class Grid:
    """A header and rows of as many cells."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass
class Notes:
    """Reasons, numbered in the order in which they first appear."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str | None) -> str:
        if not text:
            return ""
        if text not in self._numbers:
            self.texts.append(text)
            self._numbers[text] = len(self.texts)
        return f" [{self._numbers[text]}]"

    _numbers: dict[str, int] = field(default_factory=dict)


def quality_grids(table: Table, notes: Notes) -> list[Grid]:
    """One for each run of quality (each dataset): of every column the paper's value, this one's, the difference."""
    runs: dict[str, list[str]] = {}
    for name, column in table.plan.columns.items():
        if column.kind == "quality":
            runs.setdefault(column.run, []).append(name)
    grids, labels = [], _Labels(table)
    for names in runs.values():
        header = labels.header + [text for name in names for text in _value_header(table, name)]
        rows = []
        printed = {name for name in names if _is_printed(table, name)}
        for line in table.lines:
            values = [text for name in names for text in _values(table, line, name, name in printed)]
            rows.append((*labels.of(line), *values, _verdicts(table, line, names, notes)))
        grids.append(Grid(_dataset_title(table, names), (*header, "Verdict"), tuple(rows)))
    return grids


def speed_grid(table: Table, notes: Notes) -> Grid | None:
    """Times beside the paper's, with how they were sampled, and memory."""
    names = [name for name, column in table.plan.columns.items() if column.kind == "speed"]
    if not names:
        return None
    details, labels = _speed_details(table), _Labels(table)
    header = labels.header + [text for name in names for text in _value_header(table, name)]
    rows = []
    printed = {name for name in names if _is_printed(table, name)}
    for line in table.lines:
        values = [text for name in names for text in _values(table, line, name, name in printed)]
        more = [detail(line.speed) if line.speed else NONE for detail in details.values()]
        rows.append((*labels.of(line), *values, *more, _verdicts(table, line, names, notes)))
    return Grid("", (*header, *details, "Verdict"), tuple(rows))


def stage_grid(table: Table) -> Grid | None:
    """Medians of the stages, and how many Gaussians there were."""
    timed = [(line, line.speed.timing) for line in table.lines if line.speed and line.speed.timing]
    if not timed:
        return None
    stages = list(dict.fromkeys(stage for _, timing in timed for stage in timing.stages))
    views = "/".join(str(count) for count in sorted({timing.rendered_views for _, timing in timed}))
    shown = [f"render {views} views" if stage == "render" else stage for stage in stages]
    rows, labels = [], _Labels(table)
    for line, timing in timed:
        medians = [seconds(timing.stages[stage].value) if stage in timing.stages else NONE for stage in stages]
        rows.append((*labels.of(line), *medians, f"{timing.gaussians:,}"))
    return Grid("", (*labels.header, *shown, "Gaussians"), tuple(rows))


def memory_grid(table: Table) -> Grid | None:
    """Peaks of the stages, where the device tells them apart."""
    known = [(line, line.speed.memory_by_stage_mib) for line in table.lines if line.speed]
    stages = list(dict.fromkeys(stage for _, peaks in known for stage in peaks))
    if not stages:
        return None
    labels = _Labels(table)
    rows = [(*labels.of(line), *(mebibytes(peaks.get(stage)) for stage in stages)) for line, peaks in known if peaks]
    return Grid("", (*labels.header, *stages), tuple(rows))


def claim_grid(table: Table) -> Grid | None:
    rows = [_claim_row(table, result) for result in table.claims]
    return Grid("", ("Claim of the paper", "Verdict here", "Gain measured here"), tuple(rows)) if rows else None


def external_grid(table: Table) -> Grid | None:
    """Imported values of other systems: means over scenes, with intervals."""
    rows = []
    for result in sorted(table.external, key=lambda r: (r.cell.dataset.name, r.cell.input_views, r.cell.method)):
        cell = result.cell
        scenes = f"{len(cell.dataset.scenes)} of {cell.dataset.name}"
        where = [scenes, "x".join(map(str, cell.resolution)), str(cell.input_views)]
        values = []
        for metric, (_, decimals) in _METRICS.items():
            of_metric = list(result.scenes.get(metric, {}).values())
            values.append(number_estimate(mean_estimate(of_metric), decimals) if of_metric else NONE)
        rows.append(
            (
                result.source.system if result.source else cell.method,
                *where,
                *values,
                result.finished.date().isoformat(),
            )
        )
    header = ("System", "Scenes", "Image", "Views", *(label for label, _ in _METRICS.values()), "Imported")
    return Grid("", header, tuple(rows)) if rows else None


def label_name(label: str) -> str:
    """Of a paper's label, as a header."""
    text = _NAMES.get(label, label).replace("_", " ")
    return text[:1].upper() + text[1:]


def views_of(line: Line) -> tuple[int | None, int | None]:
    """Input views: printed in the paper, and run here."""
    printed = line.paper_row.labels.get("input_views")
    return printed, line.run.input_views if line.run else None


class _Labels:
    """The columns on a grid's left, which say which row of the paper's a line is."""

    def __init__(self, table: Table) -> None:
        names = dict.fromkeys(name for line in table.lines for name in line.paper_row.labels)
        self._own = [name for name in names if name not in _SHOWN_APART]
        self._ranks = any(line.plan_row.sp_size > 1 for line in table.lines)
        ranks = ["sp"] if self._ranks else []
        self.header = ["#", *map(label_name, self._own), "Image", "Views", *ranks]

    def of(self, line: Line) -> list[str]:
        labels = line.paper_row.labels
        own = [_label_text(labels.get(name)) for name in self._own]
        printed_size = "x".join(str(side) for side in labels.get("resolution", ()))
        ranks = [str(line.plan_row.sp_size)] if self._ranks else []
        return [str(line.number), *own, _both(printed_size, line.size), _views_text(line), *ranks]


def _views_text(line: Line) -> str:
    """``64 → 16 (10)``: the paper's, here, and of how many the pixels become Gaussians, where not of all."""
    printed, here = views_of(line)
    text = _both("" if printed is None else str(printed), "" if here is None else str(here))
    labels = line.paper_row.labels
    virtual = line.run.virtual_views if line.run else labels.get("virtual_views")
    whole = here if line.run else printed
    return text if virtual in (None, whole) else f"{text} ({virtual})"


def _both(printed: str, here: str) -> str:
    if printed and here and printed != here:
        return f"{printed} → {here}"
    return printed or here or NONE


def _label_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return NONE if value is None else str(value)


def _dataset_title(table: Table, names: Sequence[str]) -> str:
    """What the labels of these columns begin with (``DL3DV PSNR``), where the table has several datasets."""
    column = table.plan.columns[names[0]]
    return "" if column.dataset is None else column.label.rpartition(" ")[0] or column.dataset


def _is_printed(table: Table, name: str) -> bool:
    return any(line.cells[name].printed is not None for line in table.lines)


def _value_header(table: Table, name: str) -> list[str]:
    column = table.plan.columns[name]
    unit = f" ({column.unit})" if column.unit and column.kind == "quality" else ""
    if not _is_printed(table, name):
        return [f"{column.label}{unit}"]
    if column.kind == "speed":
        return [f"{column.label}, paper ({table.plan.conditions.device})", "here", "difference"]
    return [f"{column.label}{unit} paper", "here", "difference"]


def _values(table: Table, line: Line, name: str, beside_paper: bool) -> list[str]:
    """As many texts as the column's header has."""
    cell, column = line.cells[name], table.plan.columns[name]
    estimate = cell.measured.estimate
    here = NONE if estimate is None else _estimate(estimate, column)
    if not beside_paper:
        return [here]
    if cell.printed is None:
        return [NONE, here, NONE]
    printed = f"{cell.printed:.{column.decimals}f}" + (" s" if column.kind == "speed" else "")
    if estimate is None:
        return [printed, here, NONE]
    return [printed, here, _difference(estimate.value - cell.printed, column)]


def _estimate(estimate: Estimate, column: Column) -> str:
    return seconds_estimate(estimate) if column.kind == "speed" else number_estimate(estimate, column.decimals)


def _difference(value: float, column: Column) -> str:
    return difference(value, column.decimals) + (" s" if column.kind == "speed" else "")


def _speed_details(table: Table) -> dict[str, Any]:
    """Header -> text of a speed run, without the columns that no run has."""
    timings = [line.speed.timing for line in table.lines if line.speed and line.speed.timing]
    details: dict[str, Any] = {"First call": _first_call, "Samples": _samples}
    if any(timing.peak_share is not None for timing in timings):
        details["Share of peak"] = _peak_share
    if any(timing.energy_j is not None for timing in timings):
        details["Energy"] = lambda result: NONE if result.timing is None else joules(result.timing.energy_j)
    details["Peak memory"] = lambda result: mebibytes(result.memory_mib)
    return details


def _first_call(result: Result) -> str:
    return NONE if result.timing is None else seconds(result.timing.first_call)


def _samples(result: Result) -> str:
    """How many, what ended them, and what spoils them."""
    timing = result.timing
    if timing is None:
        return NONE
    waited = f", disturbed {timing.waited_share:.0%}" if timing.waited_share and is_disturbed([result]) else ""
    throttled = f", clocks held by {'/'.join(timing.throttled)}" if timing.throttled else ""
    return f"{timing.samples}, {timing.stopped}{waited}{throttled}"


def _peak_share(result: Result) -> str:
    share = result.timing.peak_share if result.timing else None
    return NONE if share is None else f"{share:.0%}"


def _verdicts(table: Table, line: Line, names: Sequence[str], notes: Notes) -> str:
    """One verdict if all columns share it, else one for each."""
    verdicts = {name: line.cells[name].verdict for name in names}
    if len(set(verdicts.values())) == 1:
        return _verdict(verdicts[names[0]], notes)
    return "; ".join(f"{table.plan.columns[name].label}: {_verdict(v, notes)}" for name, v in verdicts.items())


def _verdict(verdict: Verdict, notes: Notes) -> str:
    return f"{verdict.kind}{notes.mark(verdict.reason)}"


def _claim_row(table: Table, result: ClaimResult) -> tuple[str, ...]:
    column = table.plan.columns[result.claim.column]
    verdict = result.verdict + (f" ({result.reason})" if result.reason else "")
    measured = [f"{c.where}: {_comparison_text(table, result, c)}" for c in result.comparisons]
    return f"{result.claim.name} ({column.label})", f"**{verdict}**", "<br>".join(measured) or NONE


def _comparison_text(table: Table, result: ClaimResult, comparison: Comparison) -> str:
    """The gain, or the value that has to stay on one side of the claim's tolerance."""
    if comparison.value is None:
        return _gain_text(table, result, comparison.gain)
    column, least = table.plan.columns[result.claim.column], result.claim.tolerance
    if result.claim.kind == "at_most_linear":
        return f"exponent {number_estimate(comparison.value, 2)}, at most {1 + (least or 0):g} wanted"
    if result.claim.kind == "speedup":
        return f"efficiency {number_estimate(comparison.value, 2)}, at least {least:g} wanted"
    return f"largest difference {comparison.value.value:.2g} {column.unit}".rstrip() + f", at most {least:g} wanted"


def _gain_text(table: Table, result: ClaimResult, gain: Estimate) -> str:
    column = table.plan.columns[result.claim.column]
    if result.claim.kind == "ratio_grows":
        return gain_estimate(gain, 2, "in the ratio of times")
    if column.kind == "speed":
        return gain_estimate(_scaled(gain, 1e3), 1, "ms")
    return gain_estimate(gain, column.decimals, column.unit)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    low, high = (None if side is None else side * factor for side in (estimate.low, estimate.high))
    return Estimate(estimate.value * factor, low, high, estimate.count)
