"""Means of a run's numbers between two reports, gathered on the device so that no step waits for them."""

from __future__ import annotations

import resource
import time

import torch
from torch import Tensor

from tttlrm.training.groups import Processes


class Meter:
    """Sums of scalars by name."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._images = 0
        self._began = time.monotonic()

    def add(self, terms: dict[str, Tensor], images: int) -> None:
        """One step's numbers, and how many images it took in and compared."""
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1
        self._images += images

    def restart_clock(self) -> None:
        """Forget what was added, so that the time since the last report (of a validation, say) is in no rate."""
        self._sums, self._steps, self._images = {}, 0, 0
        self._began = time.monotonic()

    def read(self, processes: Processes) -> dict[str, float]:
        """Means over the steps since the last call, and rates. Waits for the device. All processes must call it."""
        names = sorted(self._sums)
        values = torch.stack([self._sums[name].double() for name in names]) if names else torch.zeros(0)
        means = (processes.sum(values) / processes.data_groups / max(1, self._steps)).tolist()
        seconds = max(time.monotonic() - self._began, 1e-9)
        rates = {
            "steps_per_second": self._steps / seconds,
            "images_per_second": self._images / seconds,
            "memory_gib": self._peak_bytes() / 2**30,
        }
        self.restart_clock()
        return dict(zip(names, means, strict=True)) | rates

    def _peak_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
