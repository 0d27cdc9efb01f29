"""One process of the tests of training in parallel: saves the gradient of a batch."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.training_cases import make_batch, make_model
from tttlrm.config import Compute, Schedule
from tttlrm.training.groups import split_processes
from tttlrm.training.network import TrainingNetwork
from tttlrm.training.optimizer import FlatParameters
from tttlrm.training.settings import LossWeights
from tttlrm.training.step import Differentiation, backpropagate

CASES = (("full", "fast_weights"), ("ar", "fast_weights"), ("full", "attention"))
WEIGHTS = LossWeights(mse=1, perceptual=0, opacity=0.1, depth=0.05, points=0.2, coverage=0.1, solidity=0.1)


def main(rank: int, size: int, sp_size: int, store: str, dtype: torch.dtype, output: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", timedelta(seconds=120), world_size=size, rank=rank)
    processes = split_processes(sp_size)
    results = {}
    for kind, mixer in CASES:
        model = make_model(dtype, mixer)
        flat = FlatParameters(model)
        batch = make_batch(dtype, num_inputs=5, num_targets=3).scenes(processes.scenes(2))
        # Chunks of 3 of 5 views: no rank has the same share of each.
        network = TrainingNetwork(model, Schedule(kind, 3), Compute(), False, print)  # type: ignore[arg-type]
        terms = backpropagate(network, batch, processes.shard(5), Differentiation(WEIGHTS, None, 1))
        gradient = processes.sum(flat.collect_gradient()) / processes.data_groups
        loss = processes.sum(terms["loss"].clone()) / processes.data_groups
        results[f"{kind} {mixer}"] = (gradient, loss)
    torch.save(results, output / f"{size}-{sp_size}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    rank_, size_, sp_size_, store_, dtype_, output_ = sys.argv[1:]
    main(int(rank_), int(size_), int(sp_size_), store_, getattr(torch, dtype_), Path(output_))
