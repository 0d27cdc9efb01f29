"""What a run shows while it goes on: bars on a terminal, a line for each cell elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self, TextIO


class Progress(Protocol):
    """Told by the launcher what happens."""

    def job_started(self, label: str) -> None: ...
    def jobs_changed(self, counts: Mapping[str, int]) -> None: ...
    def note(self, text: str) -> None: ...
    def cell_started(self, label: str) -> None: ...
    def scene_done(self, done: int, total: int) -> None: ...
    def cell_finished(self, label: str, status: str, reason: str | None, seconds: float) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LineProgress:
    """One line for each finished cell."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total, self._done = total, 0
        self._stream = stream or sys.stderr
        self._jobs = ""

    def job_started(self, label: str) -> None:
        return None

    def jobs_changed(self, counts: Mapping[str, int]) -> None:
        if (text := f"jobs: {_counted(counts)}") != self._jobs:
            self.note(text)
        self._jobs = text

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def cell_started(self, label: str) -> None:
        return None

    def scene_done(self, done: int, total: int) -> None:
        return None

    def cell_finished(self, label: str, status: str, reason: str | None, seconds: float) -> None:
        self._done += 1
        because = f" ({reason})" if reason else ""
        print(
            f"[{self._done}/{self._total}] {label}: {status}{because}, {seconds:.1f} s", file=self._stream, flush=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class BarProgress:
    """Cells done, failures, time left, and the scenes of the cell that runs."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._failed = 0
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._cells = self._bars.add_task("cells", total=total)
        self._scenes = self._bars.add_task("", total=None, visible=False)

    def job_started(self, label: str) -> None:
        self._bars.update(self._scenes, description=label, total=None, completed=0, visible=True)

    def jobs_changed(self, counts: Mapping[str, int]) -> None:
        """By state, of a cluster; a line in place of the one cell that runs here."""
        self._bars.update(self._scenes, description=f"jobs: {_counted(counts)}", total=None, visible=True)

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def cell_started(self, label: str) -> None:
        self._bars.reset(self._scenes, description=label, total=None, visible=True)

    def scene_done(self, done: int, total: int) -> None:
        self._bars.update(self._scenes, total=total, completed=done)

    def cell_finished(self, label: str, status: str, reason: str | None, seconds: float) -> None:
        if status not in ("ok", "unavailable"):
            self._failed += 1
            self._bars.console.print(f"{label}: {status} ({reason})", markup=False, highlight=False)
        failed = f", {self._failed} failed" if self._failed else ""
        self._bars.update(self._cells, advance=1, description=f"cells{failed}")
        self._bars.update(self._scenes, visible=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none left"


def choose_progress(total: int, quiet: bool) -> Progress:
    return LineProgress(total) if quiet or not sys.stderr.isatty() else BarProgress(total)
