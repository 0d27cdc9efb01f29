"""The kernels of the accelerated model's products: both kinds of them against each other, and against float32."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.model_cases import relative_error

products = pytest.importorskip("tttlrm.kernels.products", reason="needs Triton", exc_type=ImportError)

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


@pytest.fixture(autouse=True)
def _exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("the kernels are for Hopper GPUs and newer")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@dataclass(frozen=True)
class Operands:
    """Of the products of T tokens: x [T, d], q, k and v [T, 3 d] with their squares, learning rates [T, 3]."""

    x: Tensor
    qkv: Tensor
    squares: Tensor
    rates: Tensor

    @staticmethod
    def random(tokens: int, width: int, dtype: torch.dtype) -> Operands:
        x, qkv = (torch.randn(tokens, columns, device=DEVICE).to(dtype) for columns in (width, 3 * width))
        squares = qkv[:, : 2 * width].float().square().unflatten(1, (-1, 128)).sum(2)
        return Operands(x, qkv, squares, torch.rand(tokens, 3, device=DEVICE))

    def at(self, rows: slice) -> Operands:
        return Operands(self.x[rows], self.qkv[rows], self.squares[rows], self.rates[rows])


def made_by_kernels(data: Operands, weights: dict[str, Tensor], triton: bool) -> list[Tensor]:
    """Every product; ``triton``: by the kernels for any GPU."""
    tilings = [products.SILU, products.GELU, products.HEADS, products.GATED, products.UPDATE] if triton else [None] * 5
    silu, squares = products.project_silu(data.x, weights["qkv"], tilings[0])
    gelu = products.project_gelu(data.x, weights["up"], tilings[1])
    heads = products.project_heads(data.x, weights["qkv"], weights["norms"], tilings[2])
    gated = products.gated(data.qkv, data.squares, weights["outer"], tilings[3])
    terms = products.update_terms(data.qkv, data.squares, data.rates, weights["outer"], weights["inner"], tilings[4])
    return [silu, squares, gelu, heads, gated, *terms]


def made_in_float32(data: Operands, weights: dict[str, Tensor]) -> list[Tensor]:
    x, (q, k, v) = data.x.float(), data.qkv.float().chunk(3, dim=1)
    single = {name: weight.float() for name, weight in weights.items()}
    width, head = x.shape[1], weights["norms"].shape[1]
    silu = F.silu(x @ single["qkv"].T)
    heads = (x @ single["qkv"].T).unflatten(1, (3, -1, head))
    normed = F.rms_norm(heads[:, :2], (head,)) * single["norms"][:, None]
    q, k = q / (q.norm(dim=1, keepdim=True) + 1e-5), k / (k.norm(dim=1, keepdim=True) + 1e-5)
    gate, up = (q @ single["outer"]).chunk(2, dim=1)
    g, u = (k @ single["outer"]).chunk(2, dim=1)
    e, scale = (v @ single["inner"]), 1 / (data.qkv[:, width : 2 * width].float().norm(dim=1, keepdim=True) + 1e-5)
    rate0, rate1, rate2 = data.rates.split(1, dim=1)
    slope = g.sigmoid() * (1 + g - F.silu(g))
    outer_terms = torch.cat([rate0 * scale * e * u * slope, rate2 * scale * e * F.silu(g)], dim=1)
    squares = silu[:, : 2 * width].square().unflatten(1, (-1, 128)).sum(2)
    heads = torch.cat([normed, heads[:, 2:]], dim=1).flatten(1)
    return [silu, squares, F.gelu(x @ single["up"].T), heads, F.silu(gate) * up, outer_terms, rate1 * F.silu(g) * u]


@pytest.mark.parametrize(("width", "head"), [(768, 64), (256, 32), (128, 128)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_both_kinds_of_kernels(dtype: torch.dtype, width: int, head: int) -> None:
    """At numbers of tokens around those of a tile; and of rows of a larger tensor."""
    if products._split_kernels(torch.empty(1, device=DEVICE), width, 4 * width) is None:
        pytest.skip(
            "the other kernels are for compute capability 9.x, and versions of Triton that they were tried with"
        )
    torch.manual_seed(0)
    weights = {
        "qkv": torch.randn(3 * width, width, device=DEVICE) / width**0.5,
        "up": torch.randn(4 * width, width, device=DEVICE) / width**0.5,
        "outer": torch.randn(width, 8 * width, device=DEVICE),
        "inner": torch.randn(width, 4 * width, device=DEVICE) / width**0.5,
    }
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    weights["norms"] = torch.rand(2, head, device=DEVICE) + 0.5
    for tokens in (1, 63, 64, 65, 128, 257, 4168, 40007):
        data = Operands.random(tokens + 5, width, dtype).at(slice(5, None))
        found, other = (made_by_kernels(data, weights, triton=triton) for triton in (False, True))
        exact = made_in_float32(data, weights)
        again = made_by_kernels(data, weights, triton=False)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), tokens
        for number, (ours, theirs, right) in enumerate(zip(found, other, exact, strict=True)):
            assert relative_error(ours, theirs) < 4e-3 and relative_error(ours, right) < 4e-3, (tokens, number)
    empty = made_by_kernels(data.at(slice(0, 0)), weights, triton=False)
    assert all(len(made) == 0 for made in empty)
