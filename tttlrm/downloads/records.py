"""What a folder of downloads remembers of them, and that only one download at a time works in it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tttlrm.errors import DownloadError
from tttlrm.files import write_json

RECORD = "downloads.json"
_LOCK = ".downloads.lock"


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """What is recorded in a folder, by the name of what was fetched; empty if nothing is.

    Raises DownloadError.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DownloadError(f"{path}: cannot be read ({error}); remove it to begin anew") from error
    if not isinstance(records, dict) or not all(isinstance(entry, dict) for entry in records.values()):
        raise DownloadError(f"{path}: is not a record of downloads; remove it to begin anew")
    return records


def write_record(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Add or replace one entry."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, {**read_records(folder), name: dict(entry)})


def changed(what: str, name: str, expected: str, found: str) -> DownloadError:
    """The error for a file that is not the one that was recorded."""
    return DownloadError(
        f"{what}: is not the file that is expected (sha256 {found}, expected {expected}); if a new version is meant, "
        f"remove the entry of {name} from {RECORD}"
    )


@contextmanager
def sole_download(folder: Path) -> Iterator[None]:
    """For the duration of the block no other process downloads to the folder.

    Raises DownloadError if one does already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(f"{folder}: another download to this folder is running; wait for it") from error
        except OSError:
            pass  # a file system without locks: files still appear only when they are whole
        yield
