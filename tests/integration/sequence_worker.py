"""One rank of the sequence-parallel tests: reconstructs golden inputs and saves what it got."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.model_cases import load_case
from tttlrm.config import Compute, ModelConfig
from tttlrm.model import TTTLRM
from tttlrm.parallel import SequenceGroup

NAMES = ("full", "full_virtual_subset", "ar", "ar_elastic")


def main(rank: int, size: int, store: str, dtype: torch.dtype, output: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", timedelta(seconds=60), world_size=size, rank=rank)
    results = {}
    for name in NAMES:
        case = load_case(name)
        shard = SequenceGroup().shard(case.views.num_views)
        local = case.scene(dtype).select(shard.views)
        # A tile that fits no view or chunk: neither may change the result.
        gaussians = case.model(dtype)(local, case.schedule, Compute(tile_tokens=30), case.queries, shard)
        results[name] = gaussians.tensors
        results[f"{name}, pruned"] = gaussians.prune(0.4, 0.1, seed=5).tensors
    # Heads of fast weights, which the golden files have not.
    torch.manual_seed(0)
    config = ModelConfig(width=32, blocks=2, attention_head=16, fast_weight_head=8, sh_degree=1)
    case = load_case("ar")
    shard = SequenceGroup().shard(case.views.num_views)
    model = TTTLRM(config).to(dtype).requires_grad_(False)
    results["heads"] = model(case.scene(dtype).select(shard.views), case.schedule, shard=shard).tensors
    torch.save(results, output / f"{size}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    rank_, size_, store_, dtype_, output_ = sys.argv[1:]
    main(int(rank_), int(size_), store_, getattr(torch, dtype_), Path(output_))
