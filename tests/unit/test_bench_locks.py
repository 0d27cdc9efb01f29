"""A lock has one owner, and outlives neither its owner nor its owner's heartbeat."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from bench import locks
from bench.locks import hold, is_held


def write_lock(folder: Path, host: str, pid: int, age_s: float = 0.0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "cell.lock"
    path.write_text(json.dumps({"host": host, "pid": pid}))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    with hold(tmp_path, "cell") as first:
        assert first and is_held(tmp_path, "cell")
        with hold(tmp_path, "cell") as second, hold(tmp_path, "other") as other:
            assert not second and other
        assert is_held(tmp_path, "cell"), "one who did not get it must not release it"
    assert not is_held(tmp_path, "cell")
    with hold(tmp_path, "cell") as again:
        assert again


def test_an_error_inside_releases_it(tmp_path: Path) -> None:
    try:
        with hold(tmp_path, "cell"):
            raise RuntimeError
    except RuntimeError:
        pass
    assert not is_held(tmp_path, "cell")


def test_of_many_threads_one_gets_it(tmp_path: Path) -> None:
    write_lock(tmp_path, socket.gethostname(), dead_pid())  # stale, so that they also race to break it
    got, barrier, leave = [], threading.Barrier(8), threading.Event()

    def contend() -> None:
        barrier.wait()
        with hold(tmp_path, "cell") as mine:
            got.append(mine)
            if mine:
                leave.wait(10)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.time() + 10
    while len(got) < 8 and time.time() < deadline:
        time.sleep(0.01)
    leave.set()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]


def test_the_lock_of_a_dead_process_is_stale(tmp_path: Path) -> None:
    write_lock(tmp_path, socket.gethostname(), dead_pid())
    assert not is_held(tmp_path, "cell")
    with hold(tmp_path, "cell") as mine:
        assert mine


def test_the_lock_of_another_host_lives_by_its_heartbeat(tmp_path: Path) -> None:
    write_lock(tmp_path, "another-host", 1, age_s=locks.STALE_AFTER_S / 2)
    assert is_held(tmp_path, "cell")
    write_lock(tmp_path, "another-host", 1, age_s=locks.STALE_AFTER_S + 5)
    with hold(tmp_path, "cell") as mine:
        assert mine


def test_a_half_written_lock_is_taken_for_fresh(tmp_path: Path) -> None:
    write_lock(tmp_path, "another-host", 1).write_text("")
    assert is_held(tmp_path, "cell")


def test_the_owner_touches_its_lock(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.02)
    with hold(tmp_path, "cell"):
        path = tmp_path / "cell.lock"
        os.utime(path, (1.0, 1.0))
        deadline = time.time() + 5
        while path.stat().st_mtime == 1.0 and time.time() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1.0


def test_a_lock_that_was_taken_over_is_not_released_by_its_first_owner(tmp_path: Path) -> None:
    with hold(tmp_path, "cell"):
        write_lock(tmp_path, "another-host", 1)
    assert is_held(tmp_path, "cell")


def test_a_job_that_was_started_again_takes_its_own_lock_at_once(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    path = write_lock(tmp_path, "another-node", 1)
    path.write_text(json.dumps({**json.loads(path.read_text()), "job": "12_3", "start": 0}))
    assert is_held(tmp_path, "cell")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert is_held(tmp_path, "cell"), "the same start of the same job: another of its processes"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with hold(tmp_path, "cell") as mine:
        assert mine


def test_the_locks_of_a_job_that_ended_are_removed(tmp_path: Path) -> None:
    path = write_lock(tmp_path, "another-node", 1)
    path.write_text(json.dumps({**json.loads(path.read_text()), "job": "12_3", "start": 0}))
    locks.release_job(tmp_path, "12_4")
    assert is_held(tmp_path, "cell")
    locks.release_job(tmp_path, "12_3")
    assert not is_held(tmp_path, "cell")


def test_a_process_number_of_another_container_says_nothing(tmp_path: Path) -> None:
    path = write_lock(tmp_path, socket.gethostname(), dead_pid())
    path.write_text(json.dumps({**json.loads(path.read_text()), "space": "another boot pid:[1]"}))
    assert is_held(tmp_path, "cell")
