"""The model against reference tensors: every intermediate, every Gaussian attribute."""

from __future__ import annotations

import pytest
import torch

from tests.model_cases import BFLOAT16_CASE, FLOAT32_CASES, load_case, relative_error, run_with_intermediates
from tttlrm.config import Compute

NETWORK, ATTRIBUTES, BFLOAT16 = 2e-5, 1e-4, 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FLOAT32_CASES)
def test_equal_to_reference(name: str, dtype: torch.dtype) -> None:
    case = load_case(name)
    found = run_with_intermediates(case, dtype, Compute())
    _check_all(found, case.expected, lambda key: ATTRIBUTES if key.startswith("gaussians") else NETWORK)


def test_equal_to_reference_with_bfloat16_newton_schulz() -> None:
    case = load_case(BFLOAT16_CASE)
    found = run_with_intermediates(case, torch.float32, Compute(newton_schulz_dtype=torch.bfloat16))
    _check_all(found, case.expected, lambda key: BFLOAT16)


def test_bfloat16_newton_schulz_differs_from_float32() -> None:
    """The two reference files are of the same seed: the check above can tell them apart."""
    exact, rounded = load_case("full"), load_case(BFLOAT16_CASE)
    assert relative_error(rounded.expected["gaussians_feature"], exact.expected["gaussians_feature"]) > BFLOAT16


@pytest.mark.parametrize("tile_tokens", [1, 7, 24, 50, 10**6])
@pytest.mark.parametrize("name", ["full_virtual_subset", "ar_elastic"])
def test_tile_size_does_not_matter(name: str, tile_tokens: int) -> None:
    case = load_case(name)
    found = run_with_intermediates(case, torch.float64, Compute(tile_tokens=tile_tokens))
    reference = run_with_intermediates(case, torch.float64, Compute())
    for key, value in reference.items():
        assert relative_error(found[key], value) < 1e-9, key


def _check_all(found: dict, expected: dict, bound) -> None:  # type: ignore[no-untyped-def]
    errors = {}
    for key, value in expected.items():
        if key == "xyz_grid":
            continue  # the positions again, as images: see test_positions_as_images
        ours = found[key]
        # Reference tokens are followed by a copy of the query views' tokens, which ours never has.
        errors[key] = relative_error(ours, value[:, : ours.shape[1]] if key.startswith(("tokens", "block")) else value)
    failed = {key: error for key, error in errors.items() if not error <= bound(key)}
    assert not failed, failed
    assert {"tokens_in", "block1", "fast_w1_block1", "gaussians_xyz"} <= errors.keys()


def test_positions_as_images() -> None:
    """Gaussians come in the order view, patch row, patch column, pixel row, pixel column."""
    case = load_case("full_virtual_subset")
    views, height, width, patch = len(case.queries), 32, 48, case.config.patch
    positions = case.model()(case.views, case.schedule, queries=case.queries).positions
    grid = positions.reshape(1, views, height // patch, width // patch, patch, patch, 3)
    grid = grid.permute(0, 1, 6, 2, 4, 3, 5).reshape(1, views, 3, height, width)
    assert relative_error(grid, case.expected["xyz_grid"]) < ATTRIBUTES


def test_query_tokens_of_the_reference_are_copies() -> None:
    """Why no second copy is needed: the reference's copy of a view's tokens stays equal to the original."""
    case = load_case("full_virtual_subset")
    tokens = case.expected["block1"].unflatten(1, (-1, 24))
    inputs, queries = tokens[:, :6], tokens[:, 6:]
    torch.testing.assert_close(queries, inputs[:, case.queries], rtol=0, atol=2e-6)
