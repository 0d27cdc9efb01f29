"""Peak memory of a stretch of work: of the device on CUDA, of the process on a CPU."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from bench.records import RankMemory

_MIB = 2**20


class MemoryWatch:
    """From its creation to :meth:`read`; one at a time in a process."""

    def __init__(self, device: torch.device | str, rank: int = 0) -> None:
        self._device = torch.device(device)
        self._rank = rank
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._resettable = False
            self._start = None
            self._by_stage: dict[str, float] = {}
            self._reserved = 0.0
        else:
            _return_free_memory()
            self._resettable = _reset_resident_peak()
            self._start = _status_mib("VmRSS")

    def end_stage(self, stage: str) -> None:
        """Note the stage's peak, and begin the next one's. The device is synchronised (see StageTimer)."""
        if self._device.type == "cuda":
            self._by_stage[stage] = torch.cuda.max_memory_allocated(self._device) / _MIB
            self._reserved = max(self._reserved, torch.cuda.max_memory_reserved(self._device) / _MIB)
            torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> RankMemory:
        """Peaks since the start. Where the system cannot restart its peak (not Linux), CPU values are absent."""
        if self._device.type == "cuda":
            return RankMemory(
                rank=self._rank,
                allocated_mib=max(torch.cuda.max_memory_allocated(self._device) / _MIB, *self._by_stage.values(), 0),
                reserved_mib=max(torch.cuda.max_memory_reserved(self._device) / _MIB, self._reserved),
                by_stage_mib=self._by_stage or None,
            )
        peak = _status_mib("VmHWM") if self._resettable else None
        grown = None if peak is None or self._start is None else max(0.0, peak - self._start)
        return RankMemory(rank=self._rank, resident_mib=peak, resident_growth_mib=grown)


def _return_free_memory() -> None:
    """Ask the allocator (glibc's) for the memory that earlier work freed, or it would hide what comes next."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_resident_peak() -> bool:
    """Linux: makes VmHWM start again from the present size."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_mib(key: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return None
