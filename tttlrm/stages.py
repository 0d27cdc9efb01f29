"""How long each stage of a run took, and how much memory it needed."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class StageTime:
    """One stage of a run on one device. What was not measured is None."""

    name: str
    seconds: float
    """Wall time, with the device idle at both ends."""
    peak_allocated_bytes: int | None
    """CUDA: the most that tensors held at once during the stage, including what they held before it."""
    peak_reserved_bytes: int | None
    """CUDA: the most that the caching allocator held at once during the stage."""
    process_peak_rss_bytes: int | None
    """CPU: the largest resident memory of the process since it started, read at the end of the stage; it never falls,
    so a stage that needs less than an earlier one shows the earlier one's value."""


class StageClock:
    """Measures stages one after another.

    ::

        clock = StageClock(device)
        with clock.stage("blocks"):
            ...
        report = clock.to_list()

    A stage that raises is not recorded.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.stages: list[StageTime] = []
        self._running: str | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block. Stages do not nest: an inner one would reset the outer one's peak."""
        assert self._running is None, f"stage {name} begins inside stage {self._running}"
        self._running = name
        try:
            self._synchronize()
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            start = time.perf_counter()
            yield
            self._synchronize()
            self.stages.append(self._measured(name, time.perf_counter() - start))
        finally:
            self._running = None

    def to_list(self) -> list[dict[str, Any]]:
        """The stages as JSON-able dictionaries."""
        return [dataclasses.asdict(stage) for stage in self.stages]

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _measured(self, name: str, seconds: float) -> StageTime:
        if self.device.type == "cuda":
            allocated = torch.cuda.max_memory_allocated(self.device)
            return StageTime(name, seconds, allocated, torch.cuda.max_memory_reserved(self.device), None)
        return StageTime(name, seconds, None, None, process_peak_rss_bytes())


def process_peak_rss_bytes() -> int | None:
    """The largest resident memory of this process so far, or None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
