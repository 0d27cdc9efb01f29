"""Intervals: of a median from order statistics, of a mean from Student's t, of a ratio from its parts.

Nothing here assumes a shape for times; means over scenes are taken to be of roughly normal values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Estimate:
    """A value with its interval. The interval is None where there are too few samples for one."""

    value: float
    low: float | None
    high: float | None
    count: int

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None

    def half_width(self) -> float:
        """The larger side of the interval; infinite without one."""
        if self.low is None or self.high is None:
            return math.inf
        return max(self.high - self.value, self.value - self.low)


def median(samples: Sequence[float]) -> float:
    ordered = sorted(samples)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def median_estimate(samples: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The median and a distribution-free interval: two of the samples, chosen by the binomial distribution.

    The interval covers the true median with at least ``confidence`` for independent samples of a continuous
    distribution. With fewer than 6 samples there is no such interval at 95%.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    rank = _lower_rank(len(ordered), confidence)
    if rank is None:
        return Estimate(median(ordered), None, None, len(ordered))
    return Estimate(median(ordered), ordered[rank], ordered[-1 - rank], len(ordered))


@lru_cache(maxsize=4096)
def _lower_rank(count: int, confidence: float) -> int | None:
    """The largest r with P(r < heads < count - r) >= confidence for a fair coin; None if even r = 0 is too narrow."""
    below, rank = 0.0, None
    for heads in range(count // 2):
        below += math.exp(
            math.lgamma(count + 1) - math.lgamma(heads + 1) - math.lgamma(count - heads + 1) - count * math.log(2)
        )
        if 2 * below > 1 - confidence:
            break
        rank = heads
    return rank


def mean_estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean of independent values (one a scene) and Student's interval; none with a single value."""
    if not values:
        raise ValueError("no values")
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2 or not all(math.isfinite(v) for v in values):
        return Estimate(mean, None, None, count)
    variance = math.fsum((v - mean) ** 2 for v in values) / (count - 1)
    half = student_quantile(count - 1, confidence) * math.sqrt(variance / count)
    return Estimate(mean, mean - half, mean + half, count)


def ratio_estimate(numerator: Estimate, denominator: Estimate) -> Estimate:
    """The ratio of two positive estimates; its interval spans both intervals' extremes, so it is cautious."""
    value, count = numerator.value / denominator.value, min(numerator.count, denominator.count)
    if numerator.low is None or numerator.high is None or denominator.low is None or denominator.high is None:
        return Estimate(value, None, None, count)
    return Estimate(value, numerator.low / denominator.high, numerator.high / denominator.low, count)


def difference_estimate(first: Estimate, second: Estimate) -> Estimate:
    """first - second; its interval spans both intervals' extremes, so it is cautious."""
    value, count = first.value - second.value, min(first.count, second.count)
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Estimate(value, None, None, count)
    return Estimate(value, first.low - second.high, first.high - second.low, count)


def student_quantile(degrees: int, confidence: float) -> float:
    """Half-width, in standard errors, of the two-sided interval of a mean."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + confidence / 2))
