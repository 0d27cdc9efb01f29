"""What the records of a table's line say about one of its columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.plans import Plan, PlanRow
from bench.records import QualityResult, Record, SpeedResult
from bench.settings import Column
from bench.statistics import Estimate, mean_estimate, median_estimate
from bench.store import Damaged
from bench.timing import slowest_total

DISTURBED_SHARE = 0.05
"""Waiting for cores for more than this share of the time makes a time worthless for comparisons."""

Found = Mapping[str, Record | Damaged]
"""Cell id -> what lies in its place; cells that have not run are left out."""


@dataclass(frozen=True)
class Measured:
    """A column's value with its interval, or why there is none.

    Attributes:
        by_scene: scene -> mean over its test views (and seeds); empty for speed.
        absent: ``unavailable``, ``failed`` (of any sort) or ``not run``, with the reason.
    """

    estimate: Estimate | None
    by_scene: Mapping[str, float]
    records: tuple[Record, ...]
    absent: tuple[str, str] | None = None


def measure(plan: Plan, row: PlanRow, column: str, found: Found) -> Measured:
    """The value of one column of one line, over all its cells (seeds)."""
    settings = plan.columns[column]
    ids = row.cells.get(settings.kind, ())
    absent = _absent(row, settings, ids, found)
    if absent is not None:
        return Measured(None, {}, (), absent)
    records = tuple(record for record in (found[i] for i in ids) if isinstance(record, Record))
    if settings.kind == "speed":
        estimate = reconstruction_time(_speed(records[0]), confidence_of(records[0]))
        return Measured(estimate, {}, records)
    by_scene = scene_means(records, column)
    if not by_scene:
        reasons = {quality.lpips_absent for quality in map(_quality, records)} - {None}
        return Measured(None, {}, records, ("unavailable", "; ".join(sorted(str(r) for r in reasons))))
    return Measured(mean_estimate(list(by_scene.values())), by_scene, records)


def scene_means(records: Sequence[Record], metric: str) -> dict[str, float]:
    """scene -> mean over its test views, then over the records (seeds); empty if a value is absent."""
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for scene in _quality(record).scenes:
            of_views = [getattr(view, metric) for view in scene.views]
            if any(value is None for value in of_views):
                return {}
            values[scene.scene].append(sum(of_views) / len(of_views))
    return {scene: sum(means) / len(means) for scene, means in values.items()}


def reconstruction_time(speed: SpeedResult, confidence: float) -> Estimate:
    """Median time of all stages of a reconstruction together, by the slowest rank."""
    return median_estimate(slowest_total(speed.reconstruct.stages), confidence)


def stage_times(speed: SpeedResult, confidence: float) -> dict[str, Estimate]:
    """stage -> median, of both phases in their order."""
    stages = {**speed.reconstruct.stages, **speed.show.stages}
    return {stage: median_estimate(slowest_total({stage: samples}), confidence) for stage, samples in stages.items()}


def is_disturbed(records: Sequence[Record]) -> bool:
    """Whether other work on the machine took part of a speed run's time."""
    shares = [record.speed.reconstruct.waited_share for record in records if record.speed is not None]
    return any(share is not None and share > DISTURBED_SHARE for share in shares)


def _absent(row: PlanRow, column: Column, ids: Sequence[str], found: Found) -> tuple[str, str] | None:
    if not ids:
        return "not run", row.left_out or f"the plan has no {column.kind} run"
    for cell_id in ids:
        record = found.get(cell_id)
        if record is None:
            return "not run", "no record yet"
        if isinstance(record, Damaged):
            return "failed", "its record is damaged"
        if record.status == "unavailable":
            return "unavailable", record.reason or "no reason recorded"
        if record.status != "ok":
            return "failed", f"{record.status.replace('_', ' ')}: {record.reason}"
    return None


def _quality(record: Record) -> QualityResult:
    assert record.quality is not None
    return record.quality


def _speed(record: Record) -> SpeedResult:
    assert record.speed is not None
    return record.speed


def confidence_of(record: Record) -> float:
    """Of the intervals of a speed run."""
    assert record.cell.sampling is not None
    return record.cell.sampling.confidence
