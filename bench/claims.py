"""What the paper's table says in words, judged by intervals: holds, does not hold, or undecided.

Each kind compares pairs of lines with equal ``match`` labels and rank counts (``better`` is per column: higher for
PSNR, lower for time):
    better: the claim's lines, against those of the rival.
    improves: the claim's lines next to each other along the label ``along``.
    ratio_grows: the rival's value over the claim's, for lines next to each other along ``along``.
    at_most_linear: for lines next to each other along ``along``: the exponent of the time in the input views is no more
        than 1 + tolerance.
    speedup: each line with several ranks, against the same row on one: the efficiency, which is the time on one rank
        over N times that on N, is at least the tolerance.
    equal: the same lines: no scene differs by more than the tolerance.
Quality is compared scene by scene; times by the extremes of both intervals.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.cells import Cell
from bench.measured import Measured, is_disturbed
from bench.paper import PaperRow
from bench.settings import Claim, Column
from bench.statistics import Estimate, difference_estimate, mean_estimate, ratio_estimate

ClaimVerdict = Literal["holds", "does not hold", "undecided"]

_NAMES = {"input_views": "views"}


@dataclass(frozen=True)
class ClaimLine:
    """A line of the table as claims see it: the paper's labels, and what was measured here.

    Attributes:
        size: of the images here.
        run: one of the line's cells, which knows how many views there were; None: as many as the paper's.
    """

    row: PaperRow
    sp_size: int
    size: str
    values: dict[str, Measured]
    run: Cell | None = None

    @property
    def input_views(self) -> int:
        return int(self.row.labels["input_views"]) if self.run is None else self.run.input_views

    def label(self, name: str) -> Any:
        """As run here."""
        return self.input_views if name == "input_views" else self.row.labels[name]

    def estimate(self, column: str) -> Estimate:
        """Of a line that has one."""
        estimate = self.values[column].estimate
        assert estimate is not None
        return estimate


@dataclass(frozen=True)
class Comparison:
    """One gain, above zero where it speaks for the claim.

    Attributes:
        value: what the gain is the distance of from the claim's tolerance: an exponent, an efficiency, a difference.
    """

    where: str
    gain: Estimate
    value: Estimate | None = None


@dataclass(frozen=True)
class ClaimResult:
    claim: Claim
    verdict: ClaimVerdict
    reason: str | None
    comparisons: tuple[Comparison, ...]


Pair = tuple[ClaimLine, ClaimLine]


def judge_claim(claim: Claim, column: Column, lines: Sequence[ClaimLine]) -> ClaimResult:
    """The claim's comparisons among these lines, and what they say together."""
    mine = _usable(claim, lines, claim.chosen)
    if claim.kind == "better":
        pairs = list(_rivals(claim, mine, lines))
        comparisons = [
            Comparison(_where(line), _gain(line.values[claim.column], other.values[claim.column], column))
            for line, other in pairs
        ]
    elif claim.kind == "improves":
        pairs = list(_neighbours(claim, mine))
        comparisons = [
            Comparison(
                _step(claim, before, after), _gain(after.values[claim.column], before.values[claim.column], column)
            )
            for before, after in pairs
        ]
    elif claim.kind == "ratio_grows":
        pairs, comparisons = _ratio_steps(claim, mine, lines)
    elif claim.kind == "at_most_linear":
        pairs = list(_neighbours(claim, mine))
        comparisons = [_exponent(claim, before, after) for before, after in pairs]
    else:
        pairs = list(_ranks_pairs(mine))
        compare = _efficiency if claim.kind == "speedup" else _largest_difference
        comparisons = [compare(claim, alone, several) for alone, several in pairs]
    used = [line for pair in pairs for line in pair]
    verdict, reason = _decide(comparisons, _objection(column, claim, used))
    return ClaimResult(claim, verdict, reason, tuple(comparisons))


def _decide(comparisons: Sequence[Comparison], objection: str | None) -> tuple[ClaimVerdict, str | None]:
    if not comparisons:
        return "undecided", "no two lines to compare have values"
    if objection:
        return "undecided", objection
    gains = [comparison.gain for comparison in comparisons]
    if any(gain.high is not None and gain.high < 0 for gain in gains):
        return "does not hold", None
    if all(gain.low is not None and gain.low > 0 for gain in gains):
        return "holds", None
    if any(not gain.has_interval for gain in gains):
        return "undecided", "too few samples for an interval"
    return "undecided", "an interval includes no difference"


def _objection(column: Column, claim: Claim, lines: Sequence[ClaimLine]) -> str | None:
    records = [record for line in lines for record in line.values[claim.column].records]
    if (
        column.kind == "quality"
        and claim.kind != "equal"
        and any(record.cell.weights.kind == "random" for record in records)
    ):
        return "random weights"
    if column.kind == "speed" and is_disturbed(records):
        return "other work on the machine disturbed the times"
    return None


def _gain(first: Measured, second: Measured, column: Column) -> Estimate:
    """How much better the first is, paired by scene where there are scenes."""
    assert first.estimate is not None and second.estimate is not None
    sign = 1 if column.better == "higher" else -1
    if first.by_scene and first.by_scene.keys() == second.by_scene.keys():
        return mean_estimate([sign * (first.by_scene[name] - second.by_scene[name]) for name in first.by_scene])
    pair = (first.estimate, second.estimate)
    return difference_estimate(*(pair if sign == 1 else pair[::-1]))


def _rivals(claim: Claim, mine: Sequence[ClaimLine], lines: Sequence[ClaimLine]) -> Iterator[Pair]:
    others: dict[tuple[Any, ...], list[ClaimLine]] = defaultdict(list)
    for other in _usable(claim, lines, claim.rivals):
        others[_labels(claim, other)].append(other)
    for line in mine:
        yield from ((line, other) for other in others[_labels(claim, line)] if other is not line)


def _neighbours(claim: Claim, lines: Sequence[ClaimLine]) -> Iterator[Pair]:
    """Pairs next to each other along the claim's label, at equal other labels."""
    pairs: list[Pair] = []
    following: dict[tuple[Any, ...], ClaimLine] = {}
    for line in reversed(sorted(lines, key=lambda line: line.row.labels[str(claim.along)])):
        labels = _labels(claim, line)
        if labels in following:
            pairs.append((line, following[labels]))
        following[labels] = line
    return reversed(pairs)


def _ranks_pairs(lines: Sequence[ClaimLine]) -> Iterator[Pair]:
    """(a row on one rank, the same row on several)."""
    alone = {line.row.key: line for line in lines if line.sp_size == 1}
    for line in lines:
        if line.sp_size > 1 and line.row.key in alone:
            yield alone[line.row.key], line


def _ratio_steps(
    claim: Claim, mine: Sequence[ClaimLine], lines: Sequence[ClaimLine]
) -> tuple[list[Pair], list[Comparison]]:
    by_line = {}
    for line, other in _rivals(claim.model_copy(update={"match": (*claim.match, str(claim.along))}), mine, lines):
        by_line[line.row.key, line.sp_size] = ratio_estimate(other.estimate(claim.column), line.estimate(claim.column))
    usable = [line for line in mine if (line.row.key, line.sp_size) in by_line]
    pairs = list(_neighbours(claim, usable))
    comparisons = [
        Comparison(
            _step(claim, before, after),
            difference_estimate(by_line[after.row.key, after.sp_size], by_line[before.row.key, before.sp_size]),
        )
        for before, after in pairs
    ]
    return pairs, comparisons


def _exponent(claim: Claim, before: ClaimLine, after: ClaimLine) -> Comparison:
    """k in time ~ views^k, between two lines."""
    ratio = ratio_estimate(after.estimate(claim.column), before.estimate(claim.column))
    growth = math.log(after.input_views / before.input_views)
    low, high = (None if side is None else math.log(side) / growth for side in (ratio.low, ratio.high))
    exponent = Estimate(math.log(ratio.value) / growth, low, high, ratio.count)
    return Comparison(_step(claim, before, after), _below(exponent, 1 + _tolerance(claim)), exponent)


def _efficiency(claim: Claim, alone: ClaimLine, several: ClaimLine) -> Comparison:
    ratio = ratio_estimate(alone.estimate(claim.column), several.estimate(claim.column))
    value, low, high = (
        None if side is None else side / several.sp_size for side in (ratio.value, ratio.low, ratio.high)
    )
    assert value is not None
    efficiency = Estimate(value, low, high, ratio.count)
    least = Estimate(_tolerance(claim), _tolerance(claim), _tolerance(claim), ratio.count)
    return Comparison(_where(several), difference_estimate(efficiency, least), efficiency)


def _largest_difference(claim: Claim, alone: ClaimLine, several: ClaimLine) -> Comparison:
    first, second = alone.values[claim.column].by_scene, several.values[claim.column].by_scene
    largest = max(abs(first[name] - second[name]) for name in first) if first.keys() == second.keys() else math.inf
    exact = Estimate(largest, largest, largest, len(first))  # the same computation twice: nothing was sampled
    return Comparison(_where(several), _below(exact, _tolerance(claim)), exact)


def _below(value: Estimate, most: float) -> Estimate:
    """How far a value stays below the most that it may be."""
    low = None if value.high is None else most - value.high
    high = None if value.low is None else most - value.low
    return Estimate(most - value.value, low, high, value.count)


def _tolerance(claim: Claim) -> float:
    assert claim.tolerance is not None
    return claim.tolerance


def _usable(claim: Claim, lines: Sequence[ClaimLine], labels: Mapping[str, Any]) -> list[ClaimLine]:
    """Lines with these labels that have a value."""
    return [
        line
        for line in lines
        if line.values[claim.column].estimate is not None
        and all(_is(line.row.labels.get(name), wanted) for name, wanted in labels.items())
    ]


def _is(found: Any, wanted: Any) -> bool:
    return found in wanted if isinstance(wanted, list | tuple) else bool(found == wanted)


def _labels(claim: Claim, line: ClaimLine) -> tuple[Any, ...]:
    return (line.sp_size, *(line.row.labels[name] for name in claim.match))


def _where(line: ClaimLine) -> str:
    return ", ".join([line.size, f"{line.input_views} views", *_ranks(line)])


def _step(claim: Claim, before: ClaimLine, after: ClaimLine) -> str:
    along = str(claim.along)
    step = f"{before.label(along)} to {after.label(along)} {_NAMES.get(along, along)}"
    views = [] if along == "input_views" else [f"{after.input_views} views"]
    return ", ".join([after.size, *views, step, *_ranks(after)])


def _ranks(line: ClaimLine) -> list[str]:
    return [f"sp_size {line.sp_size}"] if line.sp_size > 1 else []
