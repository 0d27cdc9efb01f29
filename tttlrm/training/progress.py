"""Where a run stands: which phase, how far in it, and what its learning rate is."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tttlrm.training.settings import BudgetSettings, Phase


@dataclass
class Position:
    """Saved with checkpoints."""

    step: int = 0
    """Steps done."""
    phase: int = 0
    phase_start: int = 0
    """The step at which the phase began."""
    seconds: float = 0.0
    """Of training so far, over all sittings."""


class Plan:
    """Turns steps or time into phases and progress within them."""

    def __init__(self, phases: tuple[Phase, ...], budget: BudgetSettings) -> None:
        self._budget = budget
        if budget.schedule_by == "steps":
            self._ends: list[float] = list(itertools.accumulate(phase.steps for phase in phases))
        else:
            assert budget.max_seconds is not None
            ends = list(itertools.accumulate(phase.share for phase in phases))
            self._ends = [budget.max_seconds * end / ends[-1] for end in ends]

    def finished(self, position: Position) -> bool:
        limit = self._budget.max_seconds
        return self._reached(position) >= self._ends[-1] or (limit is not None and position.seconds >= limit)

    def enter_phase(self, position: Position) -> bool:
        """Move the position to the phase that it has reached. True where that is another one."""
        reached = self._reached(position)
        index = sum(reached >= end for end in self._ends[:-1])
        if index == position.phase:
            return False
        position.phase, position.phase_start = index, position.step
        return True

    def progress(self, position: Position) -> float:
        """Of the whole run, from 0 to 1."""
        return min(1.0, self._reached(position) / self._ends[-1])

    def phase_progress(self, position: Position) -> float:
        """Of the position's phase, from 0 to 1."""
        start = self._ends[position.phase - 1] if position.phase else 0.0
        return min(1.0, (self._reached(position) - start) / (self._ends[position.phase] - start))

    def _reached(self, position: Position) -> float:
        return position.step if self._budget.schedule_by == "steps" else position.seconds
