"""Records of cells that did not run to their end, made by whoever finds out."""

from __future__ import annotations

import traceback
from datetime import UTC, datetime

import torch

from bench.cells import Cell
from bench.environment import read_environment
from bench.errors import UnavailableError
from bench.records import Failure, RankMemory, Record, Status
from tttlrm.errors import BackendUnavailableError

_NO_MEMORY = ("can't allocate memory", "out of memory", "CUDA error: out of memory")


def status_of(error: BaseException) -> Status:
    """What an exception in a run means for its cell."""
    if isinstance(error, UnavailableError | BackendUnavailableError):
        return "unavailable"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "out_of_memory"
    if isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY):
        return "out_of_memory"
    return "failed"


def record_of_error(
    error: BaseException,
    cell: Cell,
    *,
    table: str,
    job: str,
    attempt: int,
    started: datetime,
    memory: tuple[RankMemory, ...] = (),
    rank: int = 0,
) -> Record:
    """The record of a cell whose run raised."""
    status = status_of(error)
    message = (str(error).splitlines() or [""])[0]
    described = message if status == "unavailable" else f"{type(error).__name__}: {message}".rstrip(": ")
    text = None if status == "unavailable" else "".join(traceback.format_exception(error))
    failure = Failure(kind=type(error).__name__, message=message, traceback=text, rank=rank)
    return record_without_result(
        cell, status, described, table=table, job=job, attempt=attempt, started=started, failure=failure, memory=memory
    )


def record_without_result(
    cell: Cell,
    status: Status,
    reason: str,
    *,
    table: str,
    job: str,
    attempt: int,
    started: datetime | None = None,
    failure: Failure | None = None,
    memory: tuple[RankMemory, ...] = (),
) -> Record:
    now = datetime.now(UTC)
    return Record(
        table=table,
        cell_id=cell.id,
        cell=cell,
        status=status,
        reason=reason,
        attempt=attempt,
        started=started or now,
        finished=now,
        job=job,
        memory=memory,
        failure=failure,
        environment=read_environment(use_gpu=cell.device == "cuda"),
    )
