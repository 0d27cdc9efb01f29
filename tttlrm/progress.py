"""Progress bars on the error stream, or silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Where a long job says how far it is."""

    def task(self, name: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A bar for the duration of a ``with`` block, whose value is called with the amount done so far."""

    def note(self, text: str) -> None:
        """A line of text."""


class Silent:
    """No output."""

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: None

    def note(self, text: str) -> None:
        pass


class Bars:
    """Bars and notes on the error stream, with rich. Off a terminal, only finished bars are printed."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        from rich import progress as rich_progress

        columns = (
            rich_progress.TextColumn("{task.description:<18}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TimeRemainingColumn(),
        )
        with rich_progress.Progress(*columns, console=self._console) as bars:
            task = bars.add_task(name, total=total)
            yield lambda done: bars.update(task, completed=done)

    def note(self, text: str) -> None:
        # No markup: text may hold brackets. No wrapping: a sentence stays one line for whoever reads a log.
        self._console.print(text, markup=False, soft_wrap=True)
