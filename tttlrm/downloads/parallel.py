"""Many files of a repository at once; the first error, or an interruption, ends all transfers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from tttlrm.downloads.hub import HubFile, fetch_to
from tttlrm.downloads.transfer import Expected, quiet_client, shown
from tttlrm.progress import Progress


@dataclass(frozen=True)
class Wanted:
    """A file, what it must be, and where it goes."""

    file: HubFile
    expected: Expected
    target: Path


def fetch_many(
    files: Sequence[Wanted], connections: int, progress: Progress, name: str, endpoint: str | None = None
) -> None:
    """Fetch files over several connections. What is whole when it ends, however it ends, stays.

    Raises DownloadError: one of them cannot be had.
    """
    stop = threading.Event()
    total = sum(wanted.expected.size for wanted in files)
    with quiet_client(), shown(progress, name, total) as on_bytes, ThreadPoolExecutor(connections) as pool:

        def fetch_one(wanted: Wanted) -> None:
            fetch_to(wanted.file, wanted.expected, wanted.target, endpoint, on_bytes=on_bytes, stop=stop)

        pending: set[Future[None]] = {pool.submit(fetch_one, wanted) for wanted in files}
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
