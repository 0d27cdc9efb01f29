"""gsplat's CUDA kernels behind the common interface: against the reference files, and against the renderer in torch."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from torch import Tensor

from tests.rendering_cases import (
    GOLDEN_RENDERINGS,
    GRADIENTS,
    IMAGES,
    check_case,
    load_render_case,
    orbit,
    random_gaussians,
    relative_error,
)
from tttlrm.cameras import Cameras
from tttlrm.errors import BackendUnavailableError
from tttlrm.gaussians import Gaussians
from tttlrm.rendering import gsplat_backend, reference, render

pytestmark = pytest.mark.gpu


@pytest.fixture
def _gsplat() -> None:
    pytest.importorskip("gsplat", reason="needs gsplat")


@pytest.mark.usefixtures("_gsplat")
@pytest.mark.parametrize("name", GOLDEN_RENDERINGS)
def test_gsplat_equals_its_files(name: str) -> None:
    check_case(load_render_case(name, device="cuda"), gsplat_backend.rasterize)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", GOLDEN_RENDERINGS)
def test_torch_renderer_on_cuda_equals_the_files(name: str, dtype: torch.dtype) -> None:
    check_case(load_render_case(name, dtype, device="cuda"), reference.rasterize)


@pytest.mark.usefixtures("_gsplat")
@pytest.mark.parametrize(("count", "size", "sh_degree"), [(20_000, 0.03, 3), (2000, 0.3, 1), (300, 1.0, 0)])
def test_gsplat_equals_torch(count: int, size: float, sh_degree: int) -> None:
    gaussians, cameras = random_gaussians(count, seed=count, size=size, sh_degree=sh_degree), orbit(3, 70, 90)
    found, gradients = _with_gradients(gaussians, cameras, "gsplat", "cuda")
    expected, expected_gradients = _with_gradients(gaussians, cameras, "torch", "cpu")
    assert max(map(relative_error, found, expected)) < IMAGES
    assert max(map(relative_error, gradients, expected_gradients)) < GRADIENTS


@pytest.mark.usefixtures("_gsplat")
@pytest.mark.parametrize("splats_per_call", [1, 10**9])
def test_batch_equals_loop(splats_per_call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsplat_backend, "SPLATS_PER_CALL", splats_per_call)
    gaussians = random_gaussians(500, seed=1, batch=(2,))
    scenes = [orbit(3, 33, 47, turn=turn) for turn in (0.0, 0.5)]
    poses, intrinsics = (
        torch.stack([getattr(scene, name) for scene in scenes]) for name in ("camera_to_world", "intrinsics")
    )
    found, gradients = _with_gradients(gaussians, Cameras(poses, intrinsics, 33, 47), "gsplat", "cuda")
    for index, scene in enumerate(scenes):
        expected, expected_gradients = _with_gradients(gaussians.scene(index), scene, "torch", "cpu")
        assert max(map(relative_error, [t[index] for t in found], expected)) < IMAGES
        assert max(map(relative_error, [t[index] for t in gradients], expected_gradients)) < GRADIENTS


@pytest.mark.usefixtures("_gsplat")
@pytest.mark.parametrize("what", ["none", "behind", "transparent"])
def test_nothing_to_see(what: str) -> None:
    gaussians = random_gaussians(0 if what == "none" else 50, seed=13).to("cuda")
    positions = gaussians.positions - torch.tensor([0.0, 0.0, 9.0 if what == "behind" else 0.0], device="cuda")
    logits = gaussians.opacity_logits - (20 if what == "transparent" else 0)
    gaussians = dataclasses.replace(gaussians, positions=positions.requires_grad_(), opacity_logits=logits)
    found = render(gaussians, orbit(1, 16, 24), background=(0.25, 0.5, 1.0))
    expected = torch.tensor([0.25, 0.5, 1.0], device="cuda")[:, None, None].expand(1, 3, 16, 24)
    torch.testing.assert_close(found.images, expected, rtol=0, atol=0)
    assert not found.alphas.any()
    if what != "none":
        (gradient,) = torch.autograd.grad(found.images.sum() + found.depths.sum(), gaussians.positions)
        assert not gradient.any()


@pytest.mark.usefixtures("_gsplat")
def test_auto_is_gsplat_for_float32_on_cuda() -> None:
    gaussians, cameras = random_gaussians(300, seed=3).to("cuda"), orbit(1, 24, 32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = render(gaussians, cameras).images
    torch.testing.assert_close(found, render(gaussians, cameras, backend="gsplat").images, rtol=0, atol=0)
    double = render(gaussians.to(torch.float64), cameras).images
    assert double.dtype == torch.float64
    assert relative_error(found, double) < IMAGES
    with pytest.raises(BackendUnavailableError, match="computes in float32"):
        render(gaussians.to(torch.float64), cameras, backend="gsplat")


def test_missing_gsplat_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsplat", None)
    with pytest.raises(BackendUnavailableError, match="pip install gsplat"):
        render(random_gaussians(5, seed=0).to("cuda"), orbit(1, 8, 8))


def _with_gradients(
    gaussians: Gaussians, cameras: Cameras, backend: str, device: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Images, alphas and depths, and the gradients of a fixed weighting of their pixels, all on the CPU."""
    leaves = [t.to(device).requires_grad_() for t in gaussians.tensors]
    found = render(Gaussians(*leaves), cameras, backend=backend)
    images = (found.images, found.alphas, found.depths)
    ramp = torch.linspace(-1, 1, cameras.width, device=device)
    gradients = torch.autograd.grad(sum((t * ramp).sum() for t in images), leaves)
    return [t.detach().cpu() for t in images], [t.cpu() for t in gradients]
