"""The same Gaussians for every sp_size, from real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tttlrm.config import Schedule
from tttlrm.errors import UserError
from tttlrm.launch import run_local
from tttlrm.parallel import Rounds, SequenceGroup, ViewShard

ROOT = Path(__file__).resolve().parent.parent.parent


def run(size: int, dtype: str, folder: Path) -> list[dict[str, tuple[torch.Tensor, ...]]]:
    """What every rank computed."""
    store = folder / f"store-{size}"
    command = [sys.executable, "-m", "tests.integration.sequence_worker"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(size), str(store), dtype, str(folder)], cwd=ROOT)
        for rank in range(size)
    ]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0] * size
    finally:
        for rank in ranks:
            rank.kill()
    return [torch.load(folder / f"{size}-{rank}.pt") for rank in range(size)]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-9)])
def test_same_gaussians_for_every_sp_size(tmp_path: Path, dtype: str, bound: float) -> None:
    reference = run(1, dtype, tmp_path)[0]
    for size in (2, 3, 4):
        for rank, results in enumerate(run(size, dtype, tmp_path)):
            assert results.keys() == reference.keys()
            for name, tensors in results.items():
                for ours, expected in zip(tensors, reference[name], strict=True):
                    error = (ours - expected).norm() / expected.norm()
                    assert error <= bound, (size, rank, name, float(error))


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("num_views", [8, 13, 64])
def test_views_are_spread_evenly(size: int, num_views: int) -> None:
    shards = [ViewShard(num_views, rank, size) for rank in range(size)]
    counts = [len(shard.views) for shard in shards]
    assert sorted(view for shard in shards for view in shard.views) == list(range(num_views))
    assert max(counts) - min(counts) <= 1
    for chunk in Schedule("ar", 4).chunks(num_views):
        held = [list(shard.views)[shard.local(chunk)] for shard in shards]
        assert sorted(view for part in held for view in part) == list(chunk)
        assert max(map(len, held)) - min(map(len, held)) <= 1
    for view in range(num_views):
        rank, position = shards[0].locate(view)
        assert shards[rank].views[position] == view


def test_more_ranks_than_views_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SequenceGroup, "size", 5)
    monkeypatch.setattr(SequenceGroup, "rank", 0)
    with pytest.raises(UserError, match="sp_size 5 is larger than the number of input views, 4"):
        SequenceGroup().shard(4)


QUERIES = [tuple(range(7)), (0, 1, 2, 3), (6, 5, 0), (2, 5)]


def test_views_gathered_in_rounds_are_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    for size in (1, 2, 3):
        run_local(_gather_in_rounds, size, "cpu", (tmp_path,))
        for rank in range(size):
            for queries, (first, second, copied) in zip(QUERIES, torch.load(tmp_path / f"{rank}.pt"), strict=True):
                assert first.tolist() == [[view, view + 0.5] for view in queries]
                assert second.tolist() == [10 * view for view in queries]
                assert not copied or queries not in QUERIES[:2]


def _gather_in_rounds(rank: int, folder: Path) -> None:
    shard, found = SequenceGroup().shard(7), []
    for queries in QUERIES:
        rounds, works = Rounds(shard, queries), []
        first, second = torch.full((rounds.slots, 2), torch.nan), torch.full((rounds.slots,), torch.nan)
        for number in range(rounds.count):
            if number < len(rounds.own):
                view = shard.views[rounds.own[number]]
                first[rounds.slot(number)] = torch.tensor([view, view + 0.5])
                second[rounds.slot(number)] = 10 * view
            works += rounds.begin(number, first, second)
        for work in works:
            work.wait()
        ordered = rounds.ordered(first)
        found.append((ordered, rounds.ordered(second), ordered.data_ptr() != first.data_ptr()))
    torch.save(found, folder / f"{rank}.pt")
