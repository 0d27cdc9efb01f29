"""Gradients of a training step, and compilation of the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.training_cases import make_batch, make_model
from tttlrm.cameras import Views
from tttlrm.config import Compute, Schedule
from tttlrm.gaussians import Gaussians
from tttlrm.parallel import ViewShard
from tttlrm.rendering import render
from tttlrm.training.losses import opacity_loss, rendering_loss
from tttlrm.training.network import TrainingNetwork
from tttlrm.training.settings import LossWeights
from tttlrm.training.step import Differentiation, backpropagate

WEIGHTS = LossWeights(mse=1, perceptual=0, opacity=0.1, depth=0.05)


def gradients(model: torch.nn.Module) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def test_deferred_gradients_are_those_of_the_whole_loss() -> None:
    model, batch = make_model(torch.float64), make_batch(torch.float64)
    gaussians = model(batch.inputs)
    rendering = render(gaussians, batch.targets.cameras)
    loss = rendering_loss(rendering, batch.targets.images, batch.depths, batch.masks, WEIGHTS, None)
    count = math.prod(batch.targets.images.shape[:2])
    total = loss.total / count + WEIGHTS.opacity * opacity_loss(gaussians)
    total.backward()
    expected = gradients(model)
    assert float(expected.norm()) > 0
    for step in (None, 1, 2):
        shard = ViewShard(batch.inputs.num_views)
        terms = backpropagate(lambda v, s: model(v, shard=s), batch, shard, Differentiation(WEIGHTS, None, step))
        assert torch.allclose(gradients(model), expected, rtol=1e-8, atol=1e-12)
        assert float(terms["loss"]) == pytest.approx(float(total.detach()), rel=1e-8)
        assert float(terms["mse"]) == pytest.approx(float(loss.terms["mse"]) / count, rel=1e-8)


def test_checkpointed_activations_give_the_same_gradients() -> None:
    model, batch = make_model(torch.float64), make_batch(torch.float64)
    shard = ViewShard(batch.inputs.num_views)
    found = []
    for recompute in (False, True):
        network = TrainingNetwork(model, Schedule(), Compute(checkpoint_activations=recompute), False, print)
        backpropagate(network, batch, shard, Differentiation(WEIGHTS))
        found.append(gradients(model))
    assert torch.allclose(*found, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("kind", "mixer"), [("full", "fast_weights"), ("ar", "fast_weights"), ("full", "attention")])
def test_compiled_network_computes_the_same(kind: str, mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated by the compiler, but not turned into machine code, which takes a minute here."""
    torch._dynamo.reset()
    original = torch.compile
    graphs: list[int] = []

    def traced(function: Callable[..., Any], **options: Any) -> Any:
        graphs.append(1)
        return original(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", traced)
    model = make_model(torch.float32, mixer)
    schedule = Schedule(kind, 2)  # type: ignore[arg-type]
    compute = Compute(attention_backend="sdpa")
    says: list[str] = []
    network = TrainingNetwork(model, schedule, compute, True, says.append)
    assert graphs
    for num_views in (4, 2, 6):
        batch = make_batch(torch.float32, num_views)
        shard = ViewShard(num_views)
        results = []
        for call in (lambda v, s: make_model(torch.float32, mixer)(v, schedule, compute), network):
            backpropagate(call, batch, shard, Differentiation(WEIGHTS))
            results.append(call(batch.inputs, shard).sh)
        assert torch.allclose(*results, rtol=1e-4, atol=1e-5)
        assert float(gradients(model).norm()) > 0
    assert network.compiled and not says
    compiled_versions = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled_versions <= 6  # not one for each number of views
    network.use_uncompiled()
    assert torch.allclose(network(batch.inputs, shard).sh, results[0], rtol=1e-4, atol=1e-5)


def test_network_that_cannot_be_compiled_runs_uncompiled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Callable[..., Any], **options: Any) -> Any:
        def fail(*args: Any) -> Any:
            raise torch._dynamo.exc.TorchDynamoException("no such instruction\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    model, batch = make_model(torch.float32), make_batch(torch.float32)
    says: list[str] = []
    network = TrainingNetwork(model, Schedule(), Compute(), True, says.append)
    gaussians = network(batch.inputs, ViewShard(batch.inputs.num_views))
    assert says == ["the network could not be compiled, so it runs uncompiled: no such instruction"]
    assert not network.compiled
    assert torch.equal(gaussians.sh, make_model(torch.float32)(batch.inputs).sh)


def test_graphs_are_recorded_once_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bookkeeping; that replaying gives the same numbers is tested on a GPU."""
    shapes = []

    def record(module: torch.nn.Module, samples: tuple[torch.Tensor, ...]) -> torch.nn.Module:
        shapes.append(samples[0].shape[1])
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    model = make_model(torch.float32)
    network = TrainingNetwork(model, Schedule(), Compute(), False, print, graphs=True)
    for num_views in (4, 2, 4):
        views = make_batch(torch.float32, num_views).inputs
        assert torch.equal(network(views, ViewShard(num_views)).sh, model(views).sh)
    assert shapes == [4, 2]
    assert network.graphed
    with torch.no_grad():
        network(make_batch(torch.float32, 3).inputs, ViewShard(3))
    assert shapes == [4, 2]


def test_network_that_cannot_be_recorded_runs_as_it_is_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    says: list[str] = []
    network = TrainingNetwork(make_model(torch.float32), Schedule(), Compute(), False, says.append, graphs=True)
    views = make_batch(torch.float32).inputs
    for _ in range(2):
        assert torch.equal(network(views, ViewShard(4)).sh, make_model(torch.float32)(views).sh)
    assert len(says) == 1 and "not permitted when stream is capturing" in says[0]
    assert not network.graphed


def test_other_errors_are_not_taken_for_the_compilers() -> None:
    def fail(views: Views, *args: Any, **options: Any) -> Gaussians:
        raise RuntimeError("CUDA out of memory")

    network = TrainingNetwork(make_model(torch.float32), Schedule(), Compute(), False, print)
    network.compiled, network.model = True, fail  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="out of memory"):
        network(make_batch(torch.float32).inputs, ViewShard(4))
