"""Local process groups: what ranks compute, and how their failures are told."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tttlrm.errors import UserError
from tttlrm.launch import RankError, run_local


def write_sum(rank: int, folder: Path) -> None:
    total = torch.tensor([rank + 1.0])
    dist.all_reduce(total)
    (folder / f"{rank}").write_text(f"{float(total)} of {dist.get_world_size()}")


def one_is_wrong(rank: int, message: str) -> None:
    if rank == 1:
        raise UserError(message)
    dist.barrier()


def one_has_a_bug(rank: int) -> None:
    if rank == 1:
        raise KeyError("a bug")
    dist.barrier()


def one_is_killed(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def one_is_interrupted(rank: int) -> None:
    if rank == 1:
        raise KeyboardInterrupt


def test_ranks_form_a_group(tmp_path: Path) -> None:
    run_local(write_sum, 2, "cpu", (tmp_path,))
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["3.0 of 2", "3.0 of 2"]


def test_failures_are_told_and_end_every_rank() -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^frame 3 is missing$"):
        run_local(one_is_wrong, 2, "cpu", ("frame 3 is missing",))
    with pytest.raises(RankError, match=r"(?s)^rank 1 of 2 failed:.*KeyError: .a bug."):
        run_local(one_has_a_bug, 2, "cpu", ())
    with pytest.raises(RankError, match="SIGKILL"):
        run_local(one_is_killed, 2, "cpu", ())
    with pytest.raises(RankError, match="rank 1 of 2 ended before its work was done"):
        run_local(one_is_interrupted, 2, "cpu", ())
    assert time.monotonic() - start < 120
