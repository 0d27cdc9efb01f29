"""Pruning: how many stay, which, and on what that depends."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tttlrm.errors import UserError
from tttlrm.gaussians import Gaussians, default_pruning


def some_gaussians(count: int, seed: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((count, 3), (count, 4, 3), (count, 3), (count, 4), (count,))
    return Gaussians(*(torch.randn(shape, generator=generator) for shape in shapes))


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(0, 300),
    keep=st.floats(0, 1),
    share=st.floats(0, 1),
    seed=st.integers(-(2**40), 2**63 - 1),
)
def test_how_many_stay(count: int, keep: float, share: float, seed: int) -> None:
    gaussians = some_gaussians(count)
    kept = gaussians.prune(keep, share, seed)
    num_opaque = math.floor(keep * count)
    assert len(kept) == num_opaque + math.floor((1 - keep) * share * count)
    opaque = gaussians.opacity_logits.sort(descending=True).values[:num_opaque]
    assert torch.isin(opaque, kept.opacity_logits).all()


def test_order_is_kept_and_attributes_stay_together() -> None:
    count = 1000
    index = torch.arange(count, dtype=torch.float64)
    gaussians = some_gaussians(count).to(torch.float64)
    marked = Gaussians(index[:, None].expand(-1, 3), *gaussians.tensors[1:])
    kept = marked.prune(0.4, 0.1, seed=3)
    order = kept.positions[:, 0].long()
    assert (order.diff() > 0).all()
    assert torch.equal(kept.opacity_logits, gaussians.opacity_logits[order])
    assert torch.equal(kept.sh, gaussians.sh[order])


def test_random_part_depends_on_the_seed_and_is_uniform() -> None:
    count = 20_000
    gaussians = some_gaussians(count)
    faint = Gaussians(*gaussians.tensors[:4], torch.arange(count, 0, -1).float())
    masks = []
    for seed in (0, 1):
        kept = faint.prune(0.5, 0.2, seed).opacity_logits
        masks.append(torch.isin(faint.opacity_logits[count // 2 :], kept))
        assert torch.equal(kept, faint.prune(0.5, 0.2, seed).opacity_logits)
    both = (masks[0] & masks[1]).double().mean()
    assert abs(both - 0.04) < 0.01  # independent: 0.2 * 0.2
    by_tenth = masks[0].double().unflatten(0, (10, -1)).mean(1)
    assert ((by_tenth - 0.2).abs() < 0.05).all()


def splitmix64(seed: int, index: int) -> int:
    """The published generator in Python's integers: its state is (seed * C + B) + (index + 1) * A."""
    a, b, c, mask = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 2**64 - 1
    z = (seed * c + b + (index + 1) * a) & mask
    z = ((z ^ (z >> 30)) * b) & mask
    z = ((z ^ (z >> 27)) * c) & mask
    z ^= z >> 31
    return z - 2**64 if z >= 2**63 else z


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_random_part_is_pinned(seed: int) -> None:
    """The choice is part of the results: it must not change between versions or devices."""
    gaussians = some_gaussians(400)
    kept = gaussians.prune(0.4, 0.2, seed).opacity_logits
    order = gaussians.opacity_logits.sort(descending=True, stable=True).indices.tolist()
    lucky = sorted(sorted(order[160:]), key=lambda index: splitmix64(seed, index))[:48]
    assert torch.equal(kept, gaussians.opacity_logits[sorted(order[:160] + lucky)])


def test_ties_keep_the_earlier() -> None:
    gaussians = some_gaussians(10)
    equal = Gaussians(torch.arange(10.0)[:, None].expand(-1, 3), *gaussians.tensors[1:4], torch.zeros(10))
    assert equal.prune(0.3, 0.0, 0).positions[:, 0].tolist() == [0, 1, 2]


def test_not_finite_gaussians_are_counted_and_not_saved(tmp_path: Path) -> None:
    gaussians = some_gaussians(10)
    assert gaussians.count_not_finite() == 0
    gaussians.positions[2, 1] = float("nan")
    gaussians.sh[2, 0, 0] = float("inf")
    gaussians.opacity_logits[7] = float("-inf")
    assert gaussians.count_not_finite() == 2
    with pytest.raises(UserError, match=r"g\.ply: 2 of the 10 Gaussians"):
        gaussians.save_ply(tmp_path / "g.ply")
    assert not list(tmp_path.iterdir())


def test_usage() -> None:
    logit = math.log(0.001 / 0.999)
    gaussians = Gaussians(*some_gaussians(4).tensors[:4], torch.tensor([logit - 1, logit - 0.1, logit + 0.1, 3.0]))
    assert gaussians.usage() == pytest.approx(0.5)


def test_default_pruning() -> None:
    assert default_pruning(63) == (0.4, 0.1) and default_pruning(64) == (0.3, 0.05)
