"""Attention backends agree where they run, and say what is missing where they do not."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tttlrm.attention import BACKENDS, attention
from tttlrm.errors import BackendUnavailableError


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", ["auto", "sdpa", "sdpa-math", "sdpa-flash"])
def test_definition(backend: str) -> None:
    q, k, v = draw(0, 2, 5, 3, 8), draw(1, 2, 7, 3, 8), draw(2, 2, 7, 3, 8)
    weights = torch.einsum("bthd,bshd->bhts", q, k).div(8**0.5).softmax(-1)
    expected = torch.einsum("bhts,bshd->bthd", weights, v)
    torch.testing.assert_close(attention(q, k, v, backend), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["flash-attn", "xformers"])
def test_missing_package_says_how_to_install_it(backend: str) -> None:
    package = backend.replace("-", "_")
    q = draw(0, 1, 4, 2, 8)
    locked = rf"is not installed: .*requirements/locks/{backend}\.txt`"
    message = "on a CUDA GPU" if importlib.util.find_spec(package) else locked
    with pytest.raises(BackendUnavailableError, match=message):
        attention(q, q, q, backend)


def test_kernel_that_cannot_run_here_is_named() -> None:
    q = draw(0, 1, 4, 2, 8)
    with pytest.raises(BackendUnavailableError, match="sdpa-cudnn cannot run on cpu tensors"):
        attention(q, q, q, "sdpa-cudnn")


def test_unknown_backend_lists_the_known() -> None:
    q = draw(0, 1, 4, 2, 8)
    with pytest.raises(BackendUnavailableError, match="unknown attention backend 'fast'.*" + BACKENDS[0]):
        attention(q, q, q, "fast")
