"""What the plots of a table show, as data: a pure function of the table, as its text is. ``plotting`` draws it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from bench.grids import label_name
from bench.schema import sha256_of_json
from bench.statistics import Estimate, ratio_estimate

if TYPE_CHECKING:
    from bench.tables import Line, Table

_NOT_NAMES = ("input_views", "virtual_views", "resolution", "tokens_millions")


@dataclass(frozen=True)
class Point:
    """``low`` and ``high``: the interval, where there is one."""

    x: float
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Series:
    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Figure:
    """One plot; ``name`` ends its file's name. ``ideal`` is a horizontal line to compare with."""

    name: str
    title: str
    x_label: str
    y_label: str
    logarithmic: bool
    series: tuple[Series, ...]
    ideal: float | None = None

    @property
    def digest(self) -> str:
        """Of what it shows, whatever draws it."""
        return sha256_of_json(asdict(self))


def figures_of(table: Table) -> list[Figure]:
    """The table's plots: of figure 8, scaling and speed, where it says more than numbers; those that have points."""
    makers = {
        "figure8": (_time_figure,),
        "scaling": (_time_figure, _efficiency_figure),
        "speed": (_time_figure, _bound_figure, _memory_figure, _efficiency_figure),
    }
    made = [make(table) for make in makers.get(table.plan.table, ())]
    return [figure for figure in made if figure.series]


def _time_figure(table: Table) -> Figure:
    """Time over tokens, a line for each method and rank count."""
    groups: dict[str, list[Point]] = {}
    for line, estimate in _timed(table):
        ranks = f", sp_size {line.plan_row.sp_size}" if line.plan_row.sp_size > 1 else ""
        groups.setdefault(_name(line) + ranks, []).append(_point(_tokens(line), estimate))
    title = f"{table.plan.table}, profile {table.plan.profile}, {table.plan.machine}"
    return Figure("time", title, "tokens", "time (s)", True, _series(groups))


def _bound_figure(table: Table) -> Figure:
    """Time a token over tokens, and what it would be at the device's measured peak: flat where time is linear."""
    groups: dict[str, list[Point]] = {}
    for line, estimate in _timed(table):
        if line.plan_row.sp_size > 1:
            continue
        tokens = _tokens(line)
        scaled = Estimate(
            estimate.value / tokens * 1e6, _scaled(estimate.low, tokens), _scaled(estimate.high, tokens), 0
        )
        groups.setdefault(_name(line), []).append(_point(tokens, scaled))
        timing = line.speed.timing if line.speed else None
        if timing is not None and timing.peak_share is not None:
            least = timing.peak_share * estimate.value / tokens * 1e6
            groups.setdefault(f"{_name(line)}, bound", []).append(Point(tokens, least, None, None))
    title = f"{table.plan.table}, profile {table.plan.profile}, {table.plan.machine}"
    return Figure("bound", title, "tokens", "time a token (µs)", False, _series(groups))


def _scaled(seconds: float | None, tokens: int) -> float | None:
    return None if seconds is None else seconds / tokens * 1e6


def _memory_figure(table: Table) -> Figure:
    """Peak memory over tokens, a line for each method and rank count."""
    groups: dict[str, list[Point]] = {}
    for line, _ in _timed(table):
        if line.speed is None or line.speed.memory_mib is None:
            continue
        ranks = f", sp_size {line.plan_row.sp_size}" if line.plan_row.sp_size > 1 else ""
        groups.setdefault(_name(line) + ranks, []).append(
            Point(_tokens(line), line.speed.memory_mib / 1024, None, None)
        )
    title = f"{table.plan.table}, profile {table.plan.profile}, {table.plan.machine}"
    return Figure("memory", title, "tokens", "peak memory (GiB)", False, _series(groups))


def _efficiency_figure(table: Table) -> Figure:
    """Time on one rank over N times the time on N, a line for each method and number of views."""
    times = {(_name(line), line.paper_row.key, line.plan_row.sp_size): (line, e) for line, e in _timed(table)}
    groups: dict[str, list[Point]] = {}
    for (name, row, ranks), (line, estimate) in times.items():
        alone = times.get((name, row, 1))
        if alone is None:
            continue
        ratio = ratio_estimate(alone[1], estimate) if ranks > 1 else Estimate(1.0, None, None, estimate.count)
        low, high = (None if side is None else side / ranks for side in (ratio.low, ratio.high))
        scaled = Estimate(ratio.value / ranks, low, high, ratio.count)
        assert line.run is not None
        groups.setdefault(f"{name}, {line.run.input_views} views", []).append(_point(ranks, scaled))
    several = {name: points for name, points in groups.items() if len(points) > 1}
    title = f"{table.plan.table}, profile {table.plan.profile}, {table.plan.machine}"
    return Figure("efficiency", title, "ranks (sp_size)", "efficiency", False, _series(several), ideal=1.0)


def _timed(table: Table) -> Iterator[tuple[Line, Estimate]]:
    """Lines with a time, and the time: of the table's first column of speed."""
    name = next((name for name, column in table.plan.columns.items() if column.kind == "speed"), None)
    for line in table.lines if name else ():
        estimate = line.cells[str(name)].measured.estimate
        if estimate is not None and line.run is not None:
            yield line, estimate


def _tokens(line: Line) -> int:
    """That the model mixes: one a patch of every input view."""
    assert line.run is not None
    height, width = line.run.resolution
    patch = line.run.model_config_resolved.patch if line.run.builder is None else 8
    return line.run.input_views * height * width // patch**2


def _name(line: Line) -> str:
    labels = {name: value for name, value in line.paper_row.labels.items() if name not in _NOT_NAMES}
    others = [f"{label_name(name).lower()} {value}" for name, value in labels.items() if name != "method"]
    return ", ".join([*([str(labels["method"])] if "method" in labels else []), *others]) or line.paper_row.key


def _point(x: float, estimate: Estimate) -> Point:
    return Point(x, estimate.value, estimate.low, estimate.high)


def _series(groups: dict[str, list[Point]]) -> tuple[Series, ...]:
    return tuple(Series(name, tuple(sorted(points, key=lambda p: p.x))) for name, points in groups.items())
