"""The model on a CUDA GPU: the same reference tensors, attention kernels that agree, half-precision products."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.model_cases import BFLOAT16_CASE, FLOAT32_CASES, Case, load_case, relative_error, run_with_intermediates
from tttlrm.attention import BACKENDS, attention
from tttlrm.config import Compute
from tttlrm.errors import BackendUnavailableError

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def on_gpu(case: Case) -> Case:
    state = {key: value.cuda() for key, value in case.state.items()}
    return dataclasses.replace(case, views=case.views.to("cuda"), state=state)


def errors_on_gpu(name: str, compute: Compute) -> dict[str, float]:
    case = on_gpu(load_case(name))
    with torch.device("cuda"):
        found = run_with_intermediates(case, torch.float32, compute)
    errors = {}
    for key, expected in case.expected.items():
        if key != "xyz_grid":
            ours = found[key].cpu()
            copied = key.startswith(("tokens", "block"))
            errors[key] = relative_error(ours, expected[:, : ours.shape[1]] if copied else expected)
    print(name, {key: f"{error:.1e}" for key, error in errors.items()})
    return errors


@pytest.mark.parametrize("name", FLOAT32_CASES)
def test_equal_to_reference(name: str) -> None:
    errors = errors_on_gpu(name, Compute())
    assert all(error <= (1e-4 if key.startswith("gaussians") else 2e-5) for key, error in errors.items()), errors


def test_close_to_reference_with_bfloat16_newton_schulz() -> None:
    """The GPU's own order of sums rounds some products to the other bfloat16 neighbour, which the iteration amplifies.

    The first block is held to the bound of the CPU. The second misses it (w0: 3.3e-2, measured on an H200), so it
    is held to what bfloat16 does at all: how far the two references, of the same seed, are apart (3.4e-2 for that w0).
    """
    errors = errors_on_gpu(BFLOAT16_CASE, Compute(newton_schulz_dtype=torch.bfloat16))
    exact, rounded = load_case("full").expected, load_case(BFLOAT16_CASE).expected
    apart = {key: relative_error(exact[key], rounded[key]) for key in errors}
    bounds = {key: 2e-2 if key.endswith("block0") else 1.5 * apart[key] + 2e-5 for key in errors}
    assert all(errors[key] <= bounds[key] for key in errors), (errors, bounds)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_backends_agree(backend: str) -> None:
    q, k, v = (torch.randn(2, 300, 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    expected = attention(q.double(), k.double(), v.double(), "sdpa-math")
    try:
        found = attention(q, k, v, backend)
    except BackendUnavailableError as error:
        assert "is not installed" in str(error)  # the only excuse on a GPU
        return
    assert relative_error(found, expected) < 1e-2


def test_bfloat16_products_stay_close_to_float32() -> None:
    case = on_gpu(load_case("ar"))
    with torch.device("cuda"):
        model = case.model()
    exact = model(case.scene(), case.schedule)
    rounded = model(case.scene(), case.schedule, Compute(dtype=torch.bfloat16))
    assert relative_error(rounded.sh, exact.sh) < 0.15


def test_pruning_keeps_the_same_on_cpu_and_gpu() -> None:
    case = on_gpu(load_case("full"))
    with torch.device("cuda"):
        gaussians = case.model()(case.scene())
    here = gaussians.prune(0.4, 0.1, seed=3)
    there = gaussians.to("cpu").prune(0.4, 0.1, seed=3)
    assert torch.equal(here.positions.cpu(), there.positions)
