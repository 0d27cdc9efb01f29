"""One file by HTTP: it appears when it is whole and is what was announced, and a killed transfer goes on."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tttlrm.errors import DownloadError
from tttlrm.files import sha256_of
from tttlrm.progress import Progress

RETRY_AFTER_S = (1.0, 4.0, 16.0)
"""Waits before a transfer is tried again that the server refused as overloaded or out of order (status 5xx)."""

OnBytes = Callable[[int], None]
"""Called with the number of bytes that are there now, or gone again if it is negative."""


@dataclass(frozen=True)
class Expected:
    """What a file is announced to be.

    Attributes:
        sha256: where it is known.
        git_blob: the SHA-1 under which Git knows the content, where that is known.
        version: tells files of one address and size apart, so that only the same one is gone on with; an ETag, for
            instance.
    """

    size: int
    sha256: str | None = None
    git_blob: str | None = None
    version: str = ""

    def problem(self, path: Path) -> str | None:
        """What is wrong with a file that claims to be this one; None if nothing is."""
        size = path.stat().st_size
        if size != self.size:
            return f"{size} bytes, expected {self.size}"
        for name, expected, digest in (
            ("sha256", self.sha256, sha256_of),
            ("git blob", self.git_blob, git_blob_of),
        ):
            if expected is not None and (found := digest(path)) != expected:
                return f"{name} {found}, expected {expected}"
        return None


class Stopped(Exception):
    """The transfer was told to stop."""


def git_blob_of(path: Path) -> str:
    """Hexadecimal SHA-1 by which Git names a file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def transfer(
    url: str,
    target: Path,
    expected: Expected,
    *,
    headers: Mapping[str, str] | None = None,
    on_bytes: OnBytes | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Fetch ``url`` to ``target``, by way of a hidden file beside it that a killed run leaves for the next one.

    Args:
        headers: of the request; those for access are not passed on to another host.
        stop: ends the transfer from another thread when it is set.

    Raises:
        DownloadError: what came is not what is expected, and was removed.
        Stopped: by ``stop``.
        Exception: whatever the client raises; see :func:`tttlrm.downloads.hub.explained`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(target, url, expected)
    report = on_bytes or (lambda count: None)
    resumed = partial.stat().st_size if partial.is_file() else 0
    if resumed > expected.size:
        partial.unlink()
        resumed = 0
    report(resumed)
    _receive_with_patience(url, partial, expected, headers, report, stop or threading.Event())
    problem = expected.problem(partial)
    if problem is not None:
        report(-partial.stat().st_size)
        partial.unlink()
        if resumed:  # what was left by an earlier run may have been damaged: once more, from the beginning
            return transfer(url, target, expected, headers=headers, on_bytes=on_bytes, stop=stop)
        raise DownloadError(f"what came is not what was announced ({problem}), and was removed; try again")
    os.replace(partial, target)


def _partial(target: Path, url: str, expected: Expected) -> Path:
    identity = "\n".join((url, str(expected.size), expected.sha256 or "", expected.git_blob or "", expected.version))
    return target.with_name(f".{target.name}.{hashlib.sha256(identity.encode()).hexdigest()[:12]}.part")


def _receive_with_patience(
    url: str,
    partial: Path,
    expected: Expected,
    headers: Mapping[str, str] | None,
    report: OnBytes,
    stop: threading.Event,
) -> None:
    for wait in (*RETRY_AFTER_S, None):
        try:
            return _receive(url, partial, expected.size, headers, report, stop)
        except Exception as error:
            status = status_of(error)
            if wait is None or status is None or status < 500:
                raise
        if stop.wait(wait):
            raise Stopped


def _receive(
    url: str, partial: Path, size: int, headers: Mapping[str, str] | None, report: OnBytes, stop: threading.Event
) -> None:
    """Add what is missing of the partial file, which stays if there is anything in it. The client goes on by itself
    where a connection is cut."""
    # Packed content could not be asked for from a position in the file.
    asked = {**(headers or {}), "Accept-Encoding": "identity"}
    partial.touch()
    try:
        _append(url, partial, size, asked, report, stop)
    finally:
        if size and partial.stat().st_size == 0:
            partial.unlink()


def _append(
    url: str, partial: Path, size: int, headers: Mapping[str, str], report: OnBytes, stop: threading.Event
) -> None:
    from huggingface_hub.file_download import http_get

    with partial.open("r+b") as file:
        start = file.seek(0, os.SEEK_END)
        http_get(url, _Watched(file, report, stop), resume_size=start, headers=dict(headers), expected_size=size)  # type: ignore[arg-type]


class _Watched:
    """A file that tells how far it is, and that can be stopped."""

    def __init__(self, file: BinaryIO, report: OnBytes, stop: threading.Event) -> None:
        self._file, self._report, self._stop = file, report, stop

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise Stopped
        self._report(len(data))
        return self._file.write(data)

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        end = self._file.tell() if size is None else size
        self._file.flush()
        self._report(end - os.fstat(self._file.fileno()).st_size)
        return self._file.truncate(size)


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of the client is about, if it is about one."""
    code: Any = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) else None


@contextmanager
def shown(progress: Progress, name: str, size: int) -> Iterator[OnBytes]:
    """A bar of mebibytes for the duration of the block, whose value may be called from any thread."""
    count, lock = 0, threading.Lock()
    with progress.task(f"{name} (MiB)", -(-size // 2**20)) as done:

        def add(bytes_: int) -> None:
            nonlocal count
            with lock:
                count += bytes_
                done(-(-count // 2**20))

        yield add


@contextmanager
def quiet_client() -> Iterator[None]:
    """Without the client's own progress bars, which would be one a file, and its lines about what it tries again: what
    became of it is an error of ours or nothing. For the thread that starts the transfers."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

    had_bars, verbosity = not are_progress_bars_disabled(), get_verbosity()
    if had_bars:
        disable_progress_bars()
    set_verbosity_error()
    try:
        yield
    finally:
        set_verbosity(verbosity)
        if had_bars:
            enable_progress_bars()
