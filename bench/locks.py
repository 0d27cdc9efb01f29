"""Locks: a cell is run by one process (or group of ranks) at a time, whoever else uses the same results.

A lock is a file that its owner touches while it lives. It is stale when its owner is a dead process of this host,
or when it has not been touched for a while (a lost node).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEARTBEAT_S = 10.0
STALE_AFTER_S = 120.0


@contextmanager
def hold(folder: Path, name: str) -> Iterator[bool]:
    """Whether this process got the lock; it is kept until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.lock"
    if not _acquire(path):
        yield False
        return
    stop = threading.Event()
    heartbeat = threading.Thread(target=_keep_alive, args=(path, stop), daemon=True)
    heartbeat.start()
    try:
        yield True
    finally:
        stop.set()
        heartbeat.join()
        if _owner(path) == _me():  # not if it was taken for stale, and is another's by now
            path.unlink(missing_ok=True)


def is_held(folder: Path, name: str) -> bool:
    """Whether a living process holds the lock."""
    path = folder / f"{name}.lock"
    return path.exists() and not _is_stale(path)


def _acquire(path: Path) -> bool:
    # The guard makes "find stale, remove, create" one step among all that use this folder.
    with open(path.parent / ".guard", "a") as guard, _guarded(guard.fileno()):
        if path.exists():
            if not _is_stale(path):
                return False
            path.unlink(missing_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            json.dump(_me(), file)
        return True


@contextmanager
def _guarded(descriptor: int) -> Iterator[None]:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a file system without locks: exclusive creation alone decides
        yield
        return
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _me() -> dict[str, object]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _owner(path: Path) -> dict[str, object]:
    """Empty if the lock is gone, or not yet completely written."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_stale(path: Path) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False  # released this moment; the next attempt finds it free
    owner = _owner(path)
    pid = owner.get("pid")
    died = owner.get("host") == socket.gethostname() and isinstance(pid, int) and not _is_alive(pid)
    return died or age > STALE_AFTER_S


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _keep_alive(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        try:
            os.utime(path)
        except FileNotFoundError:
            return
