"""AdamW on one vector: equal to PyTorch's, and what it does with bad gradients."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from tttlrm.errors import CheckpointError
from tttlrm.training.optimizer import FlatAdamW, FlatParameters, learning_rate
from tttlrm.training.settings import OptimizerSettings, Phase

PHASE = Phase((16, 16), 1, (2,), learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=4, steps=100)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3, bias=False))


def backward(module: nn.Module, step: int, factor: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    (module(torch.randn(4, 7, generator=generator)).square().mean() * factor).backward()


def reference(module: nn.Module, settings: OptimizerSettings, steps: int) -> nn.Module:
    decayed = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=settings.betas)
    for step in range(steps):
        optimizer.zero_grad()
        backward(module, step)
        torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
        optimizer.step()
    return module


def test_equals_pytorch_with_clipping_and_decay() -> None:
    settings = OptimizerSettings(clip_norm=0.1, weight_decay=0.3)
    ours = model()
    expected = reference(copy.deepcopy(ours), settings, steps=20)
    flat = FlatParameters(ours)
    optimizer = FlatAdamW(flat, settings)
    for step in range(20):
        backward(ours, step)
        optimizer.step(flat.collect_gradient(), 1e-2, math.inf)
    for a, b in zip(ours.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert float(optimizer.taken) == 20


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e6])
def test_bad_steps_change_nothing_and_are_counted(factor: float) -> None:
    ours = model()
    flat = FlatParameters(ours)
    optimizer = FlatAdamW(flat, OptimizerSettings(skip_norm=5.0))
    backward(ours, 0)
    optimizer.step(flat.collect_gradient(), 1e-2, 5.0)
    before = copy.deepcopy(optimizer.state())
    for _ in range(3):
        backward(ours, 1, factor)
        optimizer.step(flat.collect_gradient(), 1e-2, 5.0)
    after = optimizer.state()
    for name in ("values", "first", "second", "mean", "taken"):
        assert torch.equal(before[name], after[name]), name
    counted = "too_long" if math.isfinite(factor) else "not_finite"
    assert float(after[counted]) == 3 == float(after["bad_in_a_row"])
    backward(ours, 2)
    optimizer.step(flat.collect_gradient(), 1e-2, 5.0)
    assert float(optimizer.bad_in_a_row) == 0
    assert not torch.equal(flat.values, before["values"])


def test_parameters_without_a_gradient_get_zero() -> None:
    ours = model()
    flat = FlatParameters(ours)
    backward(ours, 0)
    first = flat.collect_gradient().clone()
    assert float(first.abs().sum()) > 0
    ours[0].weight.square().sum().backward()
    second = flat.collect_gradient()
    assert float(flat.view(second, "2.weight").abs().sum()) == 0
    assert torch.allclose(flat.view(second, "0.weight"), 2 * ours[0].weight)
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_running_mean_follows_the_weights() -> None:
    ours = model()
    flat = FlatParameters(ours)
    optimizer = FlatAdamW(flat, OptimizerSettings(ema_decay=0.5))
    mean = flat.values.clone()
    for step in range(12):
        backward(ours, step)
        optimizer.step(flat.collect_gradient(), 1e-2, math.inf)
        decay = min(0.5, (2 + step) / (11 + step))
        mean = decay * mean + (1 - decay) * flat.values
    assert torch.allclose(optimizer.mean, mean, atol=1e-6)
    plain = FlatAdamW(flat, OptimizerSettings(ema_decay=0.0))
    backward(ours, 0)
    plain.step(flat.collect_gradient(), 1e-2, math.inf)
    assert torch.equal(plain.mean, flat.values)


def test_state_goes_to_another_model_and_only_to_its_like() -> None:
    first = FlatParameters(model())
    optimizer = FlatAdamW(first, OptimizerSettings())
    optimizer.step(torch.ones_like(first.values), 1e-2, math.inf)
    other = FlatParameters(model())
    copied = FlatAdamW(other, OptimizerSettings())
    copied.load_state(optimizer.state())
    assert torch.equal(other.values, first.values)
    assert torch.equal(copied.second, optimizer.second)
    with pytest.raises(CheckpointError, match="of another model"):
        FlatAdamW(FlatParameters(nn.Linear(7, 5)), OptimizerSettings()).load_state(optimizer.state())


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(PHASE, step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(1e-3 / 5)
    assert rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)
    assert rates[50] == pytest.approx(5.5e-4)
    assert rates[-1] == pytest.approx(1e-4)
    assert learning_rate(PHASE, 500, 1.7) == pytest.approx(1e-4)
