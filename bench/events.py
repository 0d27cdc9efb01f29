"""What the workers of a job have told so far."""

from __future__ import annotations

from pathlib import Path

from bench.jobs import Event, events_path


class EventReader:
    """Reads the event files of a job's ranks as they grow."""

    def __init__(self, job_file: Path, ranks: int) -> None:
        self._files = {events_path(job_file, rank): 0 for rank in range(ranks)}

    def read(self) -> list[Event]:
        """What is new since the last call, in the order in which it happened."""
        events = []
        for path, start in self._files.items():
            content = _read_from(path, start)
            whole = content[: content.rfind(b"\n") + 1]  # the last line may be half written
            self._files[path] = start + len(whole)
            events += [Event.model_validate_json(line) for line in whole.splitlines()]
        return sorted(events, key=lambda event: event.time)


def _read_from(path: Path, start: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read()
    except FileNotFoundError:  # that rank has nothing to tell yet
        return b""
