"""What the paper's table says in words, judged by intervals: holds, does not hold, or undecided.

Kinds of claims (``better`` is per column: higher for PSNR, lower for time):
    better: each line of ``method`` against the line of ``other`` with equal ``match`` labels.
    improves: lines of ``method`` next to each other along ``along``, at equal ``match`` labels.
    ratio_grows: value of ``other`` over value of ``method``, along ``along``, at equal ``match`` labels.
Quality is compared scene by scene; times by the extremes of both intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.measured import Measured, is_disturbed
from bench.paper import PaperRow
from bench.settings import Claim, Column
from bench.statistics import Estimate, difference_estimate, mean_estimate, ratio_estimate

ClaimVerdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True)
class ClaimLine:
    """A line of the table as claims see it: the paper's labels, and what was measured here."""

    row: PaperRow
    sp_size: int
    size: str
    """Of the images here."""
    values: dict[str, Measured]


@dataclass(frozen=True)
class Comparison:
    """One gain, above zero where it speaks for the claim."""

    where: str
    gain: Estimate


@dataclass(frozen=True)
class ClaimResult:
    claim: Claim
    verdict: ClaimVerdict
    reason: str | None
    comparisons: tuple[Comparison, ...]


def judge_claim(claim: Claim, column: Column, lines: Sequence[ClaimLine]) -> ClaimResult:
    """The claim's comparisons among these lines, and what they say together."""
    if claim.kind == "better":
        pairs = list(_rivals(claim, lines))
        comparisons = [
            Comparison(_where(claim, first), _gain(first.values[claim.column], second.values[claim.column], column))
            for first, second in pairs
        ]
    elif claim.kind == "improves":
        pairs = list(_neighbours(claim, _usable(claim, lines, claim.method)))
        comparisons = [
            Comparison(
                _step(claim, before, after), _gain(after.values[claim.column], before.values[claim.column], column)
            )
            for before, after in pairs
        ]
    else:
        pairs, comparisons = _ratio_steps(claim, lines)
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
    if column.kind == "quality" and any(record.cell.weights.kind == "random" for record in records):
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


def _rivals(claim: Claim, lines: Sequence[ClaimLine]) -> Iterator[tuple[ClaimLine, ClaimLine]]:
    others = _usable(claim, lines, claim.other)
    for line in _usable(claim, lines, claim.method):
        for other in others:
            if _labels(claim, other) == _labels(claim, line):
                yield line, other


def _neighbours(claim: Claim, lines: Sequence[ClaimLine]) -> Iterator[tuple[ClaimLine, ClaimLine]]:
    """Pairs next to each other along the claim's label, at equal other labels."""
    assert claim.along is not None
    ordered = sorted(lines, key=lambda line: line.row.labels[str(claim.along)])
    for at, line in enumerate(ordered):
        following = [other for other in ordered[at + 1 :] if _labels(claim, other) == _labels(claim, line)]
        if following:
            yield line, following[0]


def _ratio_steps(
    claim: Claim, lines: Sequence[ClaimLine]
) -> tuple[list[tuple[ClaimLine, ClaimLine]], list[Comparison]]:
    along = str(claim.along)
    by_line = {}
    for line, other in _rivals(claim.model_copy(update={"match": (*claim.match, along)}), lines):
        mine, theirs = line.values[claim.column].estimate, other.values[claim.column].estimate
        assert mine is not None and theirs is not None
        by_line[line.row.key, line.sp_size] = ratio_estimate(theirs, mine)
    usable = [line for line in lines if (line.row.key, line.sp_size) in by_line]
    pairs = list(_neighbours(claim, usable))
    comparisons = [
        Comparison(
            _step(claim, before, after),
            difference_estimate(by_line[after.row.key, after.sp_size], by_line[before.row.key, before.sp_size]),
        )
        for before, after in pairs
    ]
    return pairs, comparisons


def _usable(claim: Claim, lines: Sequence[ClaimLine], method: str | None) -> list[ClaimLine]:
    return [
        line
        for line in lines
        if line.row.labels.get("method") == method and line.values[claim.column].estimate is not None
    ]


def _labels(claim: Claim, line: ClaimLine) -> tuple[Any, ...]:
    return (line.sp_size, *(line.row.labels[name] for name in claim.match))


def _where(claim: Claim, line: ClaimLine) -> str:
    return ", ".join([line.size, f"{line.row.labels['input_views']} views", *_ranks(line)])


def _step(claim: Claim, before: ClaimLine, after: ClaimLine) -> str:
    first, second = (line.row.labels[str(claim.along)] for line in (before, after))
    return ", ".join([after.size, f"{first} to {second} views", *_ranks(after)])


def _ranks(line: ClaimLine) -> list[str]:
    return [f"sp_size {line.sp_size}"] if line.sp_size > 1 else []
