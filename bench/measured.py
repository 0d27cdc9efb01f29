"""What a table keeps of a record (:class:`Result`), and what its results say about one of a line's columns."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from bench.cells import Cell
from bench.devices import energy_used
from bench.environment import Environment
from bench.plans import Plan, PlanRow
from bench.records import Phase, QualityResult, Record, Source, SpeedResult, Status
from bench.settings import Column
from bench.statistics import Estimate, mean_estimate, median_estimate
from bench.store import Damaged, Store
from bench.timing import slowest_total

DISTURBED_SHARE = 0.05
"""Waiting for cores for more than this share of the time makes a time worthless for comparisons."""

TIME = "time_s"
"""The metric of a whole reconstruction; the others of speed runs are the names of stages."""


@dataclass(frozen=True)
class Timing:
    """A speed run without its samples.

    Attributes:
        total: median time of all stages of a reconstruction together, by the slowest rank.
        stages: stage -> median, of reconstructing and showing, in their order.
        first_call: seconds of the first reconstruction.
        samples, stopped, waited_share: of the reconstruction; see :class:`bench.records.Phase`.
        peak_share: operations of a reconstruction over what its devices could have done in that time; None if unknown.
        energy_j: of a reconstruction, all ranks together, what lies between samples included.
        throttled: what held clocks down right before or after the samples, idleness apart.
    """

    total: Estimate
    stages: Mapping[str, Estimate]
    first_call: float
    samples: int
    stopped: str
    waited_share: float | None
    gaussians: int
    rendered_views: int
    peak_share: float | None
    energy_j: float | None
    throttled: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """A record without its raw values, so that a table of very many of them fits in memory.

    Attributes:
        scenes: metric -> scene -> mean over its test views; a metric without values is left out.
        input_frames_from: who chose the input views of scenes -> of how many; procedural scenes are left out.
        lpips_absent: why LPIPS is.
        memory_by_stage_mib: stage -> allocated on CUDA, of the rank that needed most.
        memory_mib: of the rank that needed most: allocated on CUDA; on a CPU what the process grew by.
        source: who measured it, if it was not this suite.
    """

    cell_id: str
    cell: Cell
    status: Status
    reason: str | None
    attempt: int
    job: str
    started: datetime
    finished: datetime
    environment: Environment
    scenes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lpips_absent: str | None = None
    timing: Timing | None = None
    memory_mib: float | None = None
    memory_by_stage_mib: dict[str, float] = field(default_factory=dict)
    source: Source | None = None
    input_frames_from: Mapping[str, int] = field(default_factory=dict)


Found = Mapping[str, Record | Result | Damaged]
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
    records: tuple[Result, ...]
    absent: tuple[str, str] | None = None


def read_results(store: Store, cells: Mapping[str, Cell]) -> dict[str, Result | Damaged]:
    """The results of these cells, by their ids; each record is let go of once it is condensed."""
    environments: dict[str, Environment] = {}
    found: dict[str, Result | Damaged] = {}
    for cell_id, record in store.read_each(cells):
        if isinstance(record, Damaged):
            found[cell_id] = record
            continue
        key = record.environment.model_dump_json()  # one object for all records of a run
        environment = environments.setdefault(key, record.environment)
        found[cell_id] = condense(record.model_copy(update={"cell": cells[cell_id], "environment": environment}))
    return found


def condense(record: Record) -> Result:
    """What a table needs of the record."""
    allocated = [m.allocated_mib if m.allocated_mib is not None else m.resident_growth_mib for m in record.memory]
    return Result(
        cell_id=record.cell_id,
        cell=record.cell,
        status=record.status,
        reason=record.reason,
        attempt=record.attempt,
        job=record.job,
        started=record.started,
        finished=record.finished,
        environment=record.environment,
        scenes=_scene_means(record.quality) if record.quality else {},
        lpips_absent=record.quality.lpips_absent if record.quality else None,
        timing=_timing(record, record.speed) if record.speed else None,
        memory_mib=max((mib for mib in allocated if mib is not None), default=None),
        memory_by_stage_mib=_memory_by_stage(record),
        source=record.external,
        input_frames_from=_choosers(record.quality) if record.quality else {},
    )


def _choosers(quality: QualityResult) -> dict[str, int]:
    return dict(Counter(scene.input_frames_from for scene in quality.scenes if scene.input_frames_from is not None))


def _memory_by_stage(record: Record) -> dict[str, float]:
    peaks: dict[str, float] = {}
    for memory in record.memory:
        for stage, mib in (memory.by_stage_mib or {}).items():
            peaks[stage] = max(mib, peaks.get(stage, 0.0))
    return peaks


def measure(plan: Plan, row: PlanRow, column: str, found: Found) -> Measured:
    """The value of one column of one line, over all its cells (seeds)."""
    settings = plan.columns[column]
    metric = settings.metric or column
    ids = row.cells.get(settings.run, ())
    absent = _absent(row, settings, ids, found)
    if absent is not None:
        return Measured(None, {}, (), absent)
    results = tuple(_condensed(found[i]) for i in ids)
    if settings.kind == "speed":
        return _measured_time(results, metric)
    by_scene = _over_seeds(results, metric)
    if not by_scene:
        reasons = {result.lpips_absent for result in results} - {None}
        return Measured(None, {}, results, ("unavailable", "; ".join(sorted(map(str, reasons))) or f"no {metric}"))
    return Measured(mean_estimate(list(by_scene.values())), by_scene, results)


def is_disturbed(results: Sequence[Result]) -> bool:
    """Whether other work on the machine took part of a speed run's time."""
    shares = [result.timing.waited_share for result in results if result.timing is not None]
    return any(share is not None and share > DISTURBED_SHARE for share in shares)


def _condensed(found: Record | Result | Damaged) -> Result:
    assert not isinstance(found, Damaged)
    return condense(found) if isinstance(found, Record) else found


def _measured_time(results: tuple[Result, ...], metric: str) -> Measured:
    timing = results[0].timing
    assert timing is not None
    estimate = timing.total if metric == TIME else timing.stages.get(metric)
    if estimate is None:
        return Measured(None, {}, results, ("unavailable", f"the method has no stage {metric}"))
    return Measured(estimate, {}, results)


def _over_seeds(results: Sequence[Result], metric: str) -> dict[str, float]:
    """scene -> mean over the results (seeds); empty if one of them does not have the metric."""
    values: dict[str, list[float]] = defaultdict(list)
    for result in results:
        if metric not in result.scenes:
            return {}
        for scene, mean in result.scenes[metric].items():
            values[scene].append(mean)
    return {scene: math.fsum(means) / len(means) for scene, means in values.items()}


def _scene_means(quality: QualityResult) -> dict[str, dict[str, float]]:
    """metric -> scene -> mean over its test views; a metric that a view does not have is left out."""
    usage = {scene.scene: 100 * scene.usage for scene in quality.scenes if scene.usage is not None}
    means: dict[str, dict[str, float]] = {"usage_percent": usage} if usage else {}
    for metric in ("psnr", "ssim", "lpips"):
        of_metric = {}
        for scene in quality.scenes:
            values = [getattr(view, metric) for view in scene.views]
            if None in values:
                break
            of_metric[scene.scene] = math.fsum(values) / len(values)
        else:
            means[metric] = of_metric
    return means


def _timing(record: Record, speed: SpeedResult) -> Timing:
    assert record.cell.sampling is not None
    confidence = record.cell.sampling.confidence
    phase, stages = speed.reconstruct, {**speed.reconstruct.stages, **speed.show.stages}
    totals = slowest_total(phase.stages)
    total = median_estimate(totals, confidence)
    share = None
    if speed.flops is not None and speed.peak_flops:
        share = speed.flops / (total.value * speed.peak_flops * record.cell.sp_size)
    states = [*phase.before, *phase.after]
    return Timing(
        total=total,
        stages={name: median_estimate(slowest_total({name: runs}), confidence) for name, runs in stages.items()},
        first_call=math.fsum(phase.first_call.values()),
        samples=len(totals),
        stopped=phase.stopped,
        waited_share=phase.waited_share,
        gaussians=speed.gaussians,
        rendered_views=speed.rendered_views,
        peak_share=share,
        energy_j=_energy(phase, len(totals)),
        throttled=tuple(sorted({r for state in states for r in state.throttle_reasons or ()} - {"GpuIdle"})),
    )


def _energy(phase: Phase, samples: int) -> float | None:
    """Joules a sample, of all ranks together; None unless every rank's device counts them."""
    used = [energy_used(before, after) for before, after in zip(phase.before, phase.after, strict=False)]
    known = [joules for joules in used if joules is not None]
    return math.fsum(known) / samples if known and len(known) == len(used) else None


def _absent(row: PlanRow, column: Column, ids: Sequence[str], found: Found) -> tuple[str, str] | None:
    if not ids:
        return ("unavailable", row.left_out) if row.left_out else ("not run", f"the plan has no {column.run} run")
    for cell_id in ids:
        result = found.get(cell_id)
        if result is None:
            return "not run", "no record yet"
        if isinstance(result, Damaged):
            return "failed", "its record is damaged"
        if result.status == "unavailable":
            return "unavailable", result.reason or "no reason recorded"
        if result.status != "ok":
            return "failed", f"{result.status.replace('_', ' ')}: {result.reason}"
    return None
