"""The fast-weight update against automatic differentiation and its own definition."""

from __future__ import annotations

import torch

from tests.model_cases import relative_error
from tttlrm.config import ElasticUpdate
from tttlrm.fast_weights import FastWeights, ascent_direction, evaluate, orthogonalize, step

WIDTH, HIDDEN, TOKENS = 6, 10, 17


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_weights(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        draw(2, WIDTH, HIDDEN, seed=seed),
        draw(2, HIDDEN, WIDTH, seed=seed + 1),
        draw(2, WIDTH, HIDDEN, seed=seed + 2),
    )


def test_direction_is_the_gradient_of_the_inner_product() -> None:
    weights = tuple(w.requires_grad_() for w in some_weights())
    k, v = draw(2, TOKENS, WIDTH, seed=5), draw(2, TOKENS, WIDTH, seed=6)
    (evaluate(k, weights) * v).sum().backward()
    ones = torch.ones(2, TOKENS, 3, dtype=torch.float64)
    found = ascent_direction(k, v, ones, weights).detach()
    for ours, grad in zip(found.unbind(1), (weights[0].grad, weights[1].grad.mT, weights[2].grad), strict=True):
        assert relative_error(ours, grad) < 1e-12


def test_learning_rates_scale_each_token_and_weight_apart() -> None:
    weights, k, v = some_weights(), draw(2, TOKENS, WIDTH, seed=5), draw(2, TOKENS, WIDTH, seed=6)
    rates = draw(2, TOKENS, 3, seed=7).abs()
    ones = torch.ones_like(rates)
    parts = [ascent_direction(k[:, t : t + 1], v[:, t : t + 1], ones[:, :1], weights) for t in range(TOKENS)]
    expected = sum(part * rates[:, t, :, None, None] for t, part in enumerate(parts))
    assert relative_error(ascent_direction(k, v, rates, weights), expected) < 1e-12


def test_orthogonalize_brings_singular_values_near_one() -> None:
    for shape in ((20, 60), (60, 20), (30, 30)):
        matrix = draw(3, *shape, seed=1)
        values = torch.linalg.svdvals(orthogonalize(matrix, torch.float64))
        assert values.max() < 1.3
        if shape[0] != shape[1]:
            assert values.min() > 0.5


def test_orthogonalize_keeps_singular_vectors_and_forgets_scale() -> None:
    matrix = draw(1, 8, 20, seed=2)
    result = orthogonalize(matrix, torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.mT @ result @ right.mT
    assert relative_error(torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)), inner) < 1e-10
    assert relative_error(orthogonalize(1000 * matrix, torch.float64), result) < 1e-6
    assert relative_error(orthogonalize(matrix.mT, torch.float64), result.mT) < 1e-12


def test_a_zero_direction_changes_nothing() -> None:
    state = FastWeights.initial(*some_weights())
    after = step(state, torch.zeros(2, 3, WIDTH, HIDDEN, dtype=torch.float64), torch.float64, None)
    for old, new in zip(state.weights, after.weights, strict=True):
        assert relative_error(new, old) < 1e-4  # the norm's 1e-5


def test_updates_keep_the_column_norms() -> None:
    state = FastWeights.initial(*some_weights())
    for seed in range(3):
        state = step(state, draw(2, 3, WIDTH, HIDDEN, seed=seed), torch.float64, ElasticUpdate())
    for weight, norms in zip(state.weights, state.column_norms, strict=True):
        torch.testing.assert_close(weight.norm(dim=-2, keepdim=True), norms, rtol=1e-4, atol=0)


def test_selective_update_of_no_strength_is_the_plain_one() -> None:
    plain = elastic = FastWeights.initial(*some_weights())
    for seed in range(3):
        direction = draw(2, 3, WIDTH, HIDDEN, seed=seed)
        plain = step(plain, direction, torch.float64, None)
        elastic = step(elastic, direction, torch.float64, ElasticUpdate(strength=0.0))
    for a, b in zip(plain.weights, elastic.weights, strict=True):
        assert torch.equal(a, b)


def test_selective_update_stays_closer_to_the_start() -> None:
    start = FastWeights.initial(*some_weights())
    direction = draw(2, 3, WIDTH, HIDDEN, seed=9)
    distances = []
    for elastic in (None, ElasticUpdate(strength=0.5)):
        moved = step(start, direction, torch.float64, elastic)
        distances.append(sum((a - b).norm() for a, b in zip(moved.weights, start.weights, strict=True)))
    assert distances[1] < distances[0]
