"""Orthogonalised steps: which parameters take them, and what they are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tttlrm.config import ModelConfig
from tttlrm.errors import UserError
from tttlrm.model import TTTLRM
from tttlrm.training.muon import OrthogonalSteps
from tttlrm.training.optimizer import FlatAdamW, FlatParameters
from tttlrm.training.settings import OptimizerSettings

CONFIG = ModelConfig(
    width=32, blocks=2, patch=4, attention_head=16, fast_weight_expansion=2, mlp_expansion=2, sh_degree=0
)


def flat() -> FlatParameters:
    torch.manual_seed(0)
    return FlatParameters(TTTLRM(CONFIG))


def test_matrices_of_the_blocks_take_them_and_nothing_else() -> None:
    parameters = flat()
    names = set(OrthogonalSteps(parameters).names)
    all_names = parameters.layout()
    assert names and all(name.startswith("blocks.") for name in names)
    for name, (_, *shape) in all_names.items():
        norm_or_rate = len(shape) < 2 or min(shape[-2:]) < 16
        assert (name in names) == (name.startswith("blocks.") and not norm_or_rate), name


def test_learning_rates_of_many_heads_do_not_take_them() -> None:
    parameters = FlatParameters(TTTLRM(replace(CONFIG, width=128, fast_weight_head=16)))
    layer = "blocks.0.module_list.1.f"
    assert parameters.layout()[f"{layer}.lr_fc.weight"][1:] == [24, 128]
    names = OrthogonalSteps(parameters).names
    assert f"{layer}.lr_fc.weight" not in names and f"{layer}.w0" in names


def test_steps_are_nearly_orthogonal_and_of_the_same_size_whatever_the_gradient() -> None:
    parameters = flat()
    steps = OrthogonalSteps(parameters)
    momentum, update = torch.randn_like(parameters.values), torch.full_like(parameters.values, 7.0)
    steps.write(1e-4 * momentum, update)
    again = torch.full_like(update, 7.0)
    steps.write(1e3 * momentum, again)
    assert torch.allclose(update, again, atol=1e-4)
    for name in parameters.layout():
        step = parameters.view(update, name)
        if name not in steps.names:
            assert bool((step == 7).all()), f"{name} was changed"
            continue
        matrices = step.chunk(3) if name.endswith("to_qkv.weight") else [step.flatten(0, -2)]
        for matrix in matrices:
            values = torch.linalg.svdvals(matrix) / (0.2 * math.sqrt(max(matrix.shape)))
            # But for what is nearly singular to begin with.
            assert float(values.quantile(0.1)) > 0.4 and float(values.max()) < 1.4, name


def test_a_step_moves_against_the_gradient_and_bad_ones_change_nothing() -> None:
    parameters = flat()
    optimizer = FlatAdamW(parameters, OptimizerSettings(matrices="muon", weight_decay=0.0))
    before = parameters.values.clone()
    gradient = torch.randn_like(before)
    optimizer.step(gradient, 1e-3, math.inf)
    moved = parameters.values - before
    for name in OrthogonalSteps(parameters).names:
        assert float((parameters.view(moved, name) * parameters.view(gradient, name)).sum()) < 0, name
    after = parameters.values.clone()
    optimizer.step(torch.full_like(before, math.nan), 1e-3, math.inf)
    assert torch.equal(parameters.values, after)


def test_other_names_are_refused() -> None:
    with pytest.raises(UserError, match="optimizer.matrices must be adamw or muon, not 'sgd'"):
        OptimizerSettings(matrices="sgd")  # type: ignore[arg-type]
