"""Run one function in several local processes that form a ``torch.distributed`` group."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException, start_processes

from tttlrm.errors import UserError
from tttlrm.files import write_text

GRACE_SECONDS = 10.0


class RankError(RuntimeError):
    """A process of a group failed, for a reason other than wrong input."""


def run_local(function: Callable[..., None], size: int, device_type: str, arguments: tuple[Any, ...]) -> None:
    """Call ``function(rank, *arguments)`` in ``size`` new processes and wait for them.

    The processes form the default process group: NCCL with one GPU each (rank r has ``cuda:r``), or gloo on the CPU
    with the threads divided among them. The function may take the group down when it needs it no more. Function and
    arguments must be picklable.

    Raises:
        UserError: the one that a rank raised.
        RankError: a rank failed otherwise; with what is known of it.
    """
    threads = max(1, torch.get_num_threads() // size)
    with tempfile.TemporaryDirectory(prefix="tttlrm-") as folder:
        context = start_processes(
            _rank_main,
            args=(function, size, device_type, threads, folder, arguments),
            nprocs=size,
            join=False,
            daemon=True,
            start_method="spawn",
        )
        try:
            while not context.join():
                pass
        except ProcessException as error:
            user_error, failure = (_read(Path(folder) / name) for name in ("user-error", "failure"))
            if user_error is not None:
                raise UserError(user_error) from None
            raise RankError(failure or f"one of the {size} processes failed: {error}") from None
        finally:
            _stop(context.processes)
        # A rank that was interrupted ends without an error.
        unfinished = [rank for rank in range(size) if not (Path(folder) / f"done-{rank}").exists()]
        if unfinished:
            raise RankError(f"rank {unfinished[0]} of {size} ended before its work was done")


def _rank_main(
    rank: int,
    function: Callable[..., None],
    size: int,
    device_type: str,
    threads: int,
    folder: str,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(threads)
    if device_type == "cuda":
        torch.cuda.set_device(rank)
    try:
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=size,
            timeout=timedelta(minutes=30),
        )
        function(rank, *arguments)
    except UserError as error:
        # All ranks may find the same mistake; one message is enough.
        write_text(Path(folder) / "user-error", str(error))
        _leave(2)
    except Exception:
        # The first failure is the cause; ranks that lose their connection to this one fail after it.
        with contextlib.suppress(FileExistsError), (Path(folder) / "failure").open("x", encoding="utf-8") as file:
            file.write(f"rank {rank} of {size} failed:\n{traceback.format_exc()}")
        _leave(1)
    if dist.is_initialized():
        dist.destroy_process_group()
    (Path(folder) / f"done-{rank}").touch()


def _leave(status: int) -> None:
    """End this process at once: taking down a process group can wait for ranks that wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _read(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.exists() else None


def _stop(processes: list[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(GRACE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
