"""Locks: a cell is run by one process (or group of ranks) at a time, whoever else uses the same results.

A lock is a file that its owner touches while it lives. It is stale when its owner is a dead process of this host,
when it is of an earlier start of the cluster's job that looks at it, when the job that took it is known to have ended
(:func:`release_job`), or when it has not been touched for a while (a lost node).
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


def release_job(folder: Path, job: str) -> None:
    """Remove the locks of a cluster's job (``12``, ``12_3``) that has ended."""
    for path in folder.glob("*.lock"):
        if _owner(path).get("job") == job:
            path.unlink(missing_ok=True)


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
    job, start = _scheduler_job()
    return {"host": socket.gethostname(), "pid": os.getpid(), "space": _process_space(), "job": job, "start": start}


def _process_space() -> str | None:
    """Names the set of processes in which a process id means something: containers of one host have several."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _scheduler_job() -> tuple[str | None, int]:
    """The SLURM job that this process belongs to, and how often it was started before."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    start = os.environ.get("SLURM_RESTART_COUNT", "0")
    return job, int(start) if start.isdigit() else 0


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
    me = _me()
    same_space = (owner.get("host"), owner.get("space", me["space"])) == (me["host"], me["space"])
    died = same_space and isinstance(pid, int) and not _is_alive(pid)
    ours_before = me["job"] is not None and owner.get("job") == me["job"] and owner.get("start") != me["start"]
    return died or ours_before or age > STALE_AFTER_S


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
