"""Training on a GPU: recorded and compiled networks give the gradients of the plain one, and a run learns."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training_cases import make_batch, make_model, make_settings
from tttlrm.cameras import Views
from tttlrm.config import Compute, Schedule
from tttlrm.gaussians import Gaussians
from tttlrm.model import TTTLRM
from tttlrm.parallel import ViewShard
from tttlrm.training.data import TrainingBatch
from tttlrm.training.graphs import GraphedSurfaceTerms, RecordedFunction
from tttlrm.training.groups import Processes
from tttlrm.training.network import TrainingNetwork
from tttlrm.training.optimizer import FlatAdamW, FlatParameters
from tttlrm.training.settings import LossWeights, OptimizerSettings
from tttlrm.training.step import Differentiation, backpropagate
from tttlrm.training.trainer import Trainer

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
WEIGHTS = LossWeights(mse=1, perceptual=0, opacity=0.1, depth=0)


def on_gpu(batch: TrainingBatch) -> TrainingBatch:
    tensors = (batch.depths, batch.masks, batch.input_depths, batch.input_masks)
    return TrainingBatch(batch.inputs.to(CUDA), batch.targets.to(CUDA), *(t.to(CUDA) for t in tensors), batch.shared)


@pytest.mark.parametrize("kind", ["full", "ar"])
@pytest.mark.parametrize("options", [{"graphs": True}, {"compile": True}], ids=["graphs", "compile"])
def test_gradients_are_those_of_the_plain_network(kind: str, options: dict[str, bool]) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    gradients = []
    for how in ({}, options):
        model = make_model(torch.float32).to(CUDA)
        flat = FlatParameters(model)
        schedule = Schedule(kind, 2)  # type: ignore[arg-type]
        compute = Compute(attention_backend="sdpa-math")
        network = TrainingNetwork(
            model, schedule, compute, how.get("compile", False), pytest.fail, how.get("graphs", False)
        )
        for num_views in (4, 6, 4):
            batch = on_gpu(make_batch(torch.float32, num_views))
            backpropagate(network, batch, ViewShard(num_views), Differentiation(WEIGHTS))
            gradients.append(flat.collect_gradient().clone())
            # Replays must see the weights as they are now.
            flat.values.mul_(1.01)
    half = len(gradients) // 2
    for ours, expected in zip(gradients[half:], gradients[:half], strict=True):
        assert float((ours - expected).norm() / expected.norm()) < 1e-3


def reconstruct(model: TTTLRM, views: Views, shard: ViewShard) -> Gaussians:
    return model(views, shard=shard)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "factors",
    [
        {"points": 1, "coverage": 0.5, "solidity": 0.3},
        {"points": 1},
        {"coverage": 1},
        {"points": 0.1, "solidity": 0.1, "mse": 1, "opacity": 0.1},  # gradients of several origins add up
    ],
)
def test_recorded_surface_terms_are_the_plain_ones(factors: dict[str, float]) -> None:
    weights = LossWeights(**{"mse": 0, "perceptual": 0, "opacity": 0, "depth": 0, **factors})
    gradients, terms = [], []
    for options in ({}, {"surface_terms": GraphedSurfaceTerms(pytest.fail)}):
        model = make_model(torch.float32).to(CUDA)
        flat = FlatParameters(model)
        for num_views in (4, 6, 4):
            batch = on_gpu(make_batch(torch.float32, num_views))
            how = Differentiation(weights, **options)  # type: ignore[arg-type]
            terms.append(backpropagate(partial(reconstruct, model), batch, ViewShard(num_views), how))
            gradients.append(flat.collect_gradient().clone())
            flat.values.mul_(1.01)
    for ours, expected in zip(gradients[3:], gradients[:3], strict=True):
        assert float((ours - expected).norm() / expected.norm()) < 1e-4
    for mine, plain in zip(terms[3:], terms[:3], strict=True):
        assert {name: float(value) for name, value in mine.items()} == pytest.approx(
            {name: float(value) for name, value in plain.items()}, rel=1e-4
        )


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_recorded_steps_are_the_plain_ones(matrices: str) -> None:
    settings = OptimizerSettings(matrices=matrices)  # type: ignore[arg-type]
    results = []
    for record in (lambda step: step, lambda step: RecordedFunction(step, pytest.fail)):
        torch.manual_seed(0)
        flat = FlatParameters(make_model(torch.float32).to(CUDA))
        optimizer = FlatAdamW(flat, settings, record)  # type: ignore[arg-type]
        gradient, norms = torch.zeros_like(flat.values), []
        for at in range(10):
            gradient.copy_(torch.randn(gradient.shape, generator=torch.Generator().manual_seed(at)))
            if at in (5, 7):  # both kinds of bad steps, in replays
                gradient.mul_({5: float("nan"), 7: 1e3}[at])
            norms.append(optimizer.step(gradient, 1e-2 / (at + 1), 1e4))
        results.append((flat.values.clone(), optimizer.mean.clone(), torch.stack(norms), int(optimizer.taken)))
    (ours, our_mean, our_norms, our_taken), (values, mean, norms, taken) = results[1], results[0]
    assert our_taken == taken == 8
    assert torch.allclose(our_norms, norms, equal_nan=True)
    assert torch.allclose(ours, values, atol=1e-6) and torch.allclose(our_mean, mean, atol=1e-6)


@pytest.mark.parametrize("kind", ["object", "room"])
def test_a_run_learns(tmp_path: Path, kind: str) -> None:
    phases = [
        {"size": [16, 16], "scenes": 4, "views": [2, 4], "learning_rate": 1e-2, "warmup_steps": 2, "steps": 60},
        {"size": [24, 24], "scenes": 4, "views": [2, 4], "learning_rate": 1e-3, "warmup_steps": 2, "steps": 20},
    ]
    changes: dict[str, Any] = {
        "phases": phases,
        "compute": {"device": "cuda", "dtype": "bfloat16", "graphs": True, "compile": False},
        "data": {"kind": kind, "poses": "mean" if kind == "room" else "scene", "passes": 4},
        "model": {"far": 12.0, "poses": "normalized"} if kind == "room" else {},
    }
    assert Trainer(make_settings(tmp_path, **changes), Processes(), CUDA).run()
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert float(rows[29]["mse"]) < 0.7 * float(rows[0]["mse"])
    assert rows[-1]["not_finite"] == "0"
