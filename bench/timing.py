"""Sampling a run's time until its median is known well enough.

Follows Hoefler and Belli's rules (SC15): warm up by time, synchronise the device, start all ranks together, take the
slowest rank as the sample, and report medians with intervals from order statistics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from bench.cells import Sampling
from bench.statistics import Estimate, median_estimate

if TYPE_CHECKING:
    import torch

StopReason = Literal["interval", "time limit", "sample limit"]

_GROWTH = 1.25
"""The interval is looked at each time the number of samples has grown by this much: looking after every sample would
stop on lucky streaks and make the interval's coverage poorer than stated."""


class Ranks(Protocol):
    """What sampling needs of the processes that run a cell together."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def barrier(self) -> None: ...
    def gather(self, values: list[float]) -> list[list[float]]:
        """Every rank's values, on every rank."""
        ...


class OneRank:
    """A process on its own."""

    rank = 0
    size = 1

    def barrier(self) -> None:
        return None

    def gather(self, values: list[float]) -> list[list[float]]:
        return [values]


class StageTimer:
    """Wall time of named stages; the device is synchronised at each one's end.

    The stages of one run follow each other without a gap, so that their sum is the run's time.
    """

    def __init__(self, device: torch.device | str = "cpu", clock: Callable[[], float] = time.perf_counter) -> None:
        import torch

        self._device = torch.device(device)
        self._clock = clock
        self._last = 0.0
        self.seconds: dict[str, float] = {}
        self.after_stage: Callable[[str], None] | None = None
        """Called at each stage's end with its name; what it does is no part of any stage's time."""

    def start(self) -> None:
        """Begin a run: forget the stages of the one before."""
        self.seconds = {}
        self._synchronize()
        self._last = self._clock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield
        self._synchronize()
        now = self._clock()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
        if self.after_stage is not None:
            self.after_stage(name)
            self._last = self._clock()

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)


@dataclass(frozen=True)
class Samples:
    """What sampling gave.

    Attributes:
        first_call: stage -> seconds of the first call by the slowest rank; it holds compilation and allocation.
        stages: stage -> [samples][ranks] seconds.
        warmup_calls, warmup_s: what ran unmeasured, the first call apart.
        sampled_s: from the start of the first sample to the end of the last.
        stopped: what ended the sampling.
    """

    first_call: dict[str, float]
    stages: dict[str, list[list[float]]]
    warmup_calls: int
    warmup_s: float
    sampled_s: float
    stopped: StopReason


def sample(
    run: Callable[[], dict[str, float]],
    sampling: Sampling,
    ranks: Ranks | None = None,
    clock: Callable[[], float] = time.perf_counter,
    around: Callable[[], None] = lambda: None,
) -> Samples:
    """Call ``run`` until the interval of the median of its time (the sum of its stages) is narrow enough.

    Args:
        run: one whole run; gives stage -> seconds, the same stages each time. Its device work is finished when it
            returns (see :class:`StageTimer`).
        sampling: warm-up, aimed interval, limits.
        ranks: the processes that run together; every one calls this function. Rank 0's clock decides for all.
        around: called on every rank right before the first sample and right after the last, to read the device.
    """
    ranks = ranks or OneRank()
    first = {stage: max(by_rank) for stage, by_rank in _run_once(run, ranks).items()}
    started, calls = clock(), 0
    while _agree(clock() - started < sampling.warmup_s, ranks):
        _run_once(run, ranks)
        calls += 1
    warmup_s = clock() - started

    stages: dict[str, list[list[float]]] = {stage: [] for stage in first}
    totals: list[float] = []
    next_look = sampling.min_samples
    around()
    started = clock()
    while True:
        for stage, by_rank in _run_once(run, ranks).items():
            stages[stage].append(by_rank)
        totals.append(slowest_total({stage: stages[stage][-1:] for stage in first})[0])
        stopped: StopReason | None = None
        if len(totals) >= next_look:
            next_look = max(len(totals) + 1, int(len(totals) * _GROWTH))
            if is_narrow(median_estimate(totals, sampling.confidence), sampling.interval):
                stopped = "interval"
        if stopped is None and len(totals) >= sampling.max_samples:
            stopped = "sample limit"
        if stopped is None and not _agree(clock() - started < sampling.limit_s, ranks):
            stopped = "time limit"
        if stopped is not None:
            sampled_s = clock() - started
            around()
            return Samples(first, stages, calls, warmup_s, sampled_s, stopped)


def is_narrow(estimate: Estimate, share: float) -> bool:
    """Whether the interval lies within ``share`` of the median on both sides."""
    return estimate.half_width() <= share * estimate.value


def slowest_total(stages: Mapping[str, Sequence[Sequence[float]]]) -> list[float]:
    """Of each sample, the time of the slowest rank, summed over the stages a rank went through. [samples]

    By fsum, here and wherever a table's values are made: sum rounds otherwise on Python 3.12 than on 3.11.
    """
    per_stage = list(stages.values())
    if len(per_stage[0][0]) == 1:
        return [
            math.fsum(parts) for parts in zip(*([by_rank[0] for by_rank in runs] for runs in per_stage), strict=True)
        ]
    return [
        max(math.fsum(stage[at][rank] for stage in per_stage) for rank in range(len(per_stage[0][at])))
        for at in range(len(per_stage[0]))
    ]


def _run_once(run: Callable[[], dict[str, float]], ranks: Ranks) -> dict[str, list[float]]:
    """stage -> seconds by rank, of one call that all ranks start together."""
    ranks.barrier()
    seconds = run()
    by_rank = ranks.gather(list(seconds.values()))
    return {stage: [values[at] for values in by_rank] for at, stage in enumerate(seconds)}


def _agree(here: bool, ranks: Ranks) -> bool:
    """Rank 0's answer, on every rank."""
    return ranks.gather([float(here)])[0][0] > 0.5
