"""Intervals cover what they say, for distributions whose median is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from bench.statistics import (
    Estimate,
    difference_estimate,
    mean_estimate,
    median_estimate,
    ratio_estimate,
    student_quantile,
)

DISTRIBUTIONS: dict[str, tuple[Callable[[random.Random], float], float]] = {
    "exponential": (lambda r: r.expovariate(1.0), math.log(2)),
    "normal": (lambda r: r.gauss(5.0, 1.0), 5.0),
    "two peaks": (lambda r: r.gauss(1.0, 0.1) if r.random() < 0.6 else r.gauss(3.0, 0.1), 1.0967421566),
}


@pytest.mark.parametrize("count", [6, 11, 40, 150])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_interval_of_the_median_covers_it(name: str, count: int) -> None:
    draw, true = DISTRIBUTIONS[name]
    generator, trials = random.Random(1), 1500
    covered = 0
    for _ in range(trials):
        estimate = median_estimate([draw(generator) for _ in range(count)])
        assert estimate.low is not None and estimate.high is not None
        covered += estimate.low <= true <= estimate.high
    slack = 3 * math.sqrt(0.05 * 0.95 / trials)
    assert covered / trials >= 0.95 - slack


def test_interval_is_the_one_of_the_binomial_tables() -> None:
    """Ranks of the 95% interval in printed tables of the sign test: n = 6: 1 to 6, 10: 2 to 9, 20: 6 to 15."""
    for count, low, high in [(6, 1, 6), (9, 2, 8), (10, 2, 9), (20, 6, 15), (30, 10, 21), (50, 18, 33)]:
        estimate = median_estimate(list(range(1, count + 1)))
        assert (estimate.low, estimate.high) == (low, high)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_too_few_samples_have_no_interval(count: int) -> None:
    estimate = median_estimate([1.0] * count)
    assert not estimate.has_interval
    assert estimate.half_width() == math.inf


def test_large_counts_do_not_underflow() -> None:
    estimate = median_estimate(range(5000))
    assert estimate.low is not None and estimate.high is not None
    assert 2425 < estimate.low < 2435 and 2565 < estimate.high < 2575


def test_median_of_even_and_odd_counts() -> None:
    assert median_estimate([3.0, 1.0, 2.0]).value == 2.0
    assert median_estimate([4.0, 1.0, 2.0, 3.0]).value == 2.5


def test_interval_of_the_mean() -> None:
    """Checked by hand: values 1, 2, 3, 4 have mean 2.5, standard error 0.6455, t(3) = 3.1824."""
    estimate = mean_estimate([1.0, 2.0, 3.0, 4.0])
    assert estimate.low == pytest.approx(2.5 - 3.18245 * 0.645497, abs=1e-4)
    assert student_quantile(1, 0.95) == pytest.approx(12.7062, abs=1e-4)
    assert not mean_estimate([1.0]).has_interval
    assert not mean_estimate([1.0, math.inf]).has_interval


def test_combined_intervals_span_the_extremes() -> None:
    first, second = Estimate(4.0, 3.0, 5.0, 9), Estimate(2.0, 1.5, 2.5, 7)
    assert difference_estimate(first, second) == Estimate(2.0, 0.5, 3.5, 7)
    assert ratio_estimate(first, second) == Estimate(2.0, 1.2, 5.0 / 1.5, 7)
    assert not ratio_estimate(first, Estimate(2.0, None, None, 3)).has_interval
