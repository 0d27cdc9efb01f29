"""The sampler stops when it should, says why, and takes the slowest rank."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from bench.cells import Sampling
from bench.statistics import median_estimate
from bench.timing import OneRank, StageTimer, sample, slowest_total


def sampling(**changes: float) -> Sampling:
    values = {"warmup_s": 0, "interval": 0.02, "confidence": 0.95, "min_samples": 10, "max_samples": 500, "limit_s": 60}
    return Sampling.model_validate({**values, **changes})


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def runs(clock: Clock, durations: Callable[[], float]) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        seconds = durations()
        clock.now += seconds
        return {"first": 0.25 * seconds, "second": 0.75 * seconds}

    return run


def test_equal_times_stop_at_the_first_look() -> None:
    clock = Clock()
    samples = sample(runs(clock, lambda: 0.1), sampling(), clock=clock)
    assert samples.stopped == "interval"
    assert len(samples.stages["first"]) == 10
    assert slowest_total(samples.stages) == pytest.approx([0.1] * 10)


def test_wide_distribution_stops_at_the_time_limit() -> None:
    clock, generator = Clock(), random.Random(0)
    samples = sample(runs(clock, lambda: generator.expovariate(1.0)), sampling(limit_s=30), clock=clock)
    assert samples.stopped == "time limit"
    total = sum(slowest_total(samples.stages))
    assert total >= 30 and total - slowest_total(samples.stages)[-1] < 30


def test_sample_limit() -> None:
    clock, generator = Clock(), random.Random(0)
    samples = sample(
        runs(clock, lambda: generator.expovariate(1.0)), sampling(limit_s=1e9, max_samples=25), clock=clock
    )
    assert samples.stopped == "sample limit"
    assert len(samples.stages["second"]) == 25


def test_first_call_and_warm_up_are_no_samples() -> None:
    clock = Clock()
    durations = iter([50.0, *[3.0] * 4])
    samples = sample(runs(clock, lambda: next(durations, 1.0)), sampling(warmup_s=10), clock=clock)
    assert sum(samples.first_call.values()) == 50.0
    assert (samples.warmup_calls, samples.warmup_s) == (4, 12.0)
    assert set(slowest_total(samples.stages)) == {1.0}


@pytest.mark.parametrize(
    ("draw", "true"),
    [
        (lambda r: r.gauss(1.0, 0.05), 1.0),
        (lambda r: math.exp(r.gauss(0.0, 0.1)), 1.0),
        (lambda r: 1.0 + r.expovariate(10.0), 1.0 + math.log(2) / 10),
    ],
    ids=["normal", "log-normal", "shifted exponential"],
)
def test_interval_still_covers_the_median_when_it_decided_the_stop(
    draw: Callable[[random.Random], float], true: float
) -> None:
    """Stopping on a narrow interval favours lucky streaks; looking rarely keeps the coverage near the stated 95%."""
    generator, trials, covered, narrow = random.Random(2), 400, 0, 0
    for _ in range(trials):
        clock = Clock()
        samples = sample(runs(clock, lambda: draw(generator)), sampling(max_samples=2000, limit_s=1e9), clock=clock)
        estimate = median_estimate(slowest_total(samples.stages))
        assert estimate.low is not None and estimate.high is not None
        covered += estimate.low <= true <= estimate.high
        narrow += samples.stopped == "interval" and estimate.half_width() <= 0.02 * estimate.value
    assert narrow == trials
    assert covered / trials >= 0.91


class TwoRanks(OneRank):
    """Pretends that another rank took three times as long; rank 0's clock is this one's."""

    size = 2

    def __init__(self) -> None:
        self.barriers = 0

    def barrier(self) -> None:
        self.barriers += 1

    def gather(self, values: list[float]) -> list[list[float]]:
        return [values, [3 * value for value in values]]


def test_the_slowest_rank_counts_and_the_others_are_kept() -> None:
    clock, ranks = Clock(), TwoRanks()
    samples = sample(runs(clock, lambda: 0.1), sampling(), ranks, clock)
    assert slowest_total(samples.stages) == pytest.approx([0.3] * 10)
    assert samples.stages["first"][0] == pytest.approx([0.025, 0.075])
    assert sum(samples.first_call.values()) == pytest.approx(0.3)
    assert ranks.barriers == 1 + 10


def test_the_slowest_rank_is_that_of_the_whole_run() -> None:
    """Rank 0 is slow in one stage and rank 1 in the other: their maxima must not be added up."""
    assert slowest_total({"a": [[1.0, 2.0]], "b": [[2.0, 1.0]]}) == [3.0]


def test_stages_follow_each_other_without_a_gap() -> None:
    clock = Clock()
    timer = StageTimer(clock=clock)
    for _ in range(2):
        timer.start()
        with timer.stage("a"):
            clock.now += 1.0
        clock.now += 0.5  # between stages: part of the next
        with timer.stage("b"):
            clock.now += 2.0
        with timer.stage("a"):
            clock.now += 4.0
        assert timer.seconds == {"a": 5.0, "b": 2.5}


def test_the_device_is_read_right_before_the_first_sample_and_right_after_the_last() -> None:
    clock, read = Clock(), []
    durations = iter([50.0, *[3.0] * 4])
    samples = sample(
        runs(clock, lambda: next(durations, 1.0)),
        sampling(warmup_s=10),
        clock=clock,
        around=lambda: read.append(clock.now),
    )
    assert read == [62.0, 72.0] and samples.sampled_s == 10.0
