"""What of the accelerated model runs without a GPU; tests/gpu/test_accelerated_gpu.py has its kernels."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tttlrm import accelerated
from tttlrm.accelerated import accelerate, why_not
from tttlrm.blocks import Block, FastWeightLayer
from tttlrm.cameras import Views
from tttlrm.config import Compute, ModelConfig, Schedule
from tttlrm.errors import UserError
from tttlrm.fast_weights import orthogonalize
from tttlrm.gaussians import Gaussians
from tttlrm.kernels.choice import split_takes, split_tried
from tttlrm.model import TTTLRM
from tttlrm.parallel import ViewShard

HALF = Compute(dtype=torch.bfloat16)
SMALL = ModelConfig(width=128, blocks=2, attention_head=32, sh_degree=1)


def test_a_model_on_a_cpu_stays_itself() -> None:
    model = TTTLRM(SMALL)
    assert accelerate(model, HALF) is model
    assert why_not(model, HALF) == "it runs on CUDA GPUs only"


def test_the_kernels_are_imported_only_where_they_run() -> None:
    """They need Triton, which a CPU build of PyTorch does not bring."""
    script = "import sys, bench.methods, tttlrm.reconstruct; print([m for m in sys.modules if 'tttlrm.kernels' in m])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("capability", "width", "outputs", "taken"),
    [
        ((9, 0), 768, 3072, True),
        ((9, 0), 128, 384, True),
        ((9, 0), 192, 768, False),
        ((9, 0), 256, 320, False),
        ((9, 0), 0, 128, False),
        ((8, 9), 768, 3072, False),
        ((10, 0), 768, 3072, False),
        ((12, 0), 768, 3072, False),
    ],
)
def test_kernels_of_hopper_run_on_hopper_alone(
    capability: tuple[int, int], width: int, outputs: int, taken: bool
) -> None:
    assert split_takes(capability, width, outputs) is taken


def test_kernels_in_an_unstable_language_are_for_versions_that_were_tried() -> None:
    assert [split_tried(version) for version in ("3.6.0", "3.7.1+git12ab", "3.5.1", "3.60.0", "4.0")] == [
        True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float16, 1e-2)])
def test_newton_schulz_is_that_of_the_model(dtype: torch.dtype, tolerance: float) -> None:
    matrices = torch.randn(3, 24, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = orthogonalize(matrices, torch.float64)
    unit = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    found = accelerated._orthogonalize(unit.to(dtype)).double()
    assert (found - expected).norm() / expected.norm() < tolerance


def test_weights_are_rearranged_and_not_changed() -> None:
    model = TTTLRM(SMALL)
    block = model.blocks[0]
    assert isinstance(block, Block)
    weights = accelerated._block_weights(block, torch.float64)
    layer = block.module_list[1].f
    assert isinstance(layer, FastWeightLayer)
    w0, w1, w2 = accelerated._as_triple(*weights.initial)
    assert torch.equal(w0, layer.w0) and torch.equal(w1, layer.w1) and torch.equal(w2, layer.w2)
    outer, inner = weights.column_norms
    norms = torch.cat([layer.w0.norm(dim=1), layer.w2.norm(dim=1)], dim=1)[0]
    assert torch.allclose(outer, norms) and torch.allclose(inner, layer.w1.norm(dim=1)[0])
    assert torch.allclose(weights.rate_bias, layer.lr_fc.bias + torch.tensor(0.01).expm1().log(), atol=1e-5)


@pytest.mark.parametrize(
    ("queries", "compute", "message"),
    [
        ([], HALF, "queries must be different positions among the 2 input views, not []"),
        ([0, 0], HALF, "queries must be different positions among the 2 input views, not [0, 0]"),
        ([0], Compute(dtype=torch.float16), "computes in torch.bfloat16, not torch.float16"),
    ],
)
def test_wrong_calls_say_what_is_wrong(queries: list[int], compute: Compute, message: str) -> None:
    model = accelerated.AcceleratedModel(TTTLRM(SMALL), torch.bfloat16)
    views = Views(torch.rand(2, 3, 16, 16), torch.eye(4).expand(2, 4, 4), torch.full((2, 4), 8.0))
    with pytest.raises(UserError, match=re.escape(message)):
        model(views, compute=compute, queries=queries)


def test_blocks_are_counted_as_they_finish() -> None:
    model, counts = TTTLRM(SMALL).eval(), []
    views = Views(torch.rand(1, 2, 3, 16, 16), torch.eye(4).expand(1, 2, 4, 4), torch.full((1, 2, 4), 8.0))
    with torch.no_grad():
        model.mix(model.encode(views, Compute()), ViewShard(2), Schedule(), Compute(), counts.append)
    assert counts == [1, 2]


def test_what_pruning_keeps_is_in_float32() -> None:
    """A GPU's Gaussians share memory, and most of it is in half precision."""
    positions, scales, look = torch.randn(50, 3), torch.randn(50, 4), torch.randn(50, 16, dtype=torch.bfloat16)
    sh = look[:, :12].unflatten(-1, (4, 3))
    mixed = Gaussians(positions, sh, scales[:, :3], look[:, 12:], scales[:, 3])
    kept = mixed.prune(0.4, 0.1, seed=0)
    whole = mixed.at_least_float32().prune(0.4, 0.1, seed=0)
    assert {tensor.dtype for tensor in kept.tensors} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(kept.tensors, whole.tensors, strict=True))
    assert mixed.usage() == mixed.at_least_float32().usage() and mixed.count_not_finite() == 0
