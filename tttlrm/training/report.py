"""What a run tells while it goes: a curve as CSV, a progress bar, or lines where there is no terminal."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tttlrm.files import write_text

_LINE_SECONDS = 5.0


class Curve:
    """A CSV file with a row for each report. After an interruption, rows beyond the checkpoint are dropped."""

    def __init__(self, path: Path, columns: tuple[str, ...], done_steps: int, active: bool = True) -> None:
        """Rows up to ``done_steps`` of an existing file are kept. Unless ``active``, nothing is done."""
        self._path = path
        self._columns = columns
        self._active = active
        if not active:
            return
        rows = self._read(done_steps) if done_steps and path.exists() else []
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction="ignore", restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())

    def add(self, row: Mapping[str, float | int | str]) -> None:
        if not self._active:
            return
        with self._path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="", lineterminator="\n")
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})

    def _read(self, done_steps: int) -> list[dict[str, str]]:
        with self._path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if (row.get("step") or "").isdecimal() and int(row["step"]) <= done_steps]


class Display:
    """A progress bar on a terminal, and lines now and then elsewhere. Silent unless ``active`` (the first process)."""

    def __init__(self, title: str, active: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._active = active
        self._console = Console(file=sys.stderr)
        self._last = 0.0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:3.0f}% {task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console) if active and self._console.is_terminal else None
        self._title = title
        self._task = self._bar.add_task(title, total=1.0, numbers="") if self._bar else None

    def __enter__(self) -> Display:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, progress: float, numbers: str) -> None:
        """``progress`` from 0 to 1."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=progress, numbers=numbers)
        elif self._active and (progress >= 1 or time.monotonic() - self._last > _LINE_SECONDS):
            self._last = time.monotonic()
            self.say(f"{self._title} {100 * progress:.0f}% {numbers}")

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self._active:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
