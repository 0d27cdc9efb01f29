"""Losses of training: invariances, limits, and agreement with the metrics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tttlrm.gaussians import Gaussians
from tttlrm.lpips import Lpips
from tttlrm.rendering import Rendering
from tttlrm.training.losses import depth_loss, opacity_loss, rendering_loss
from tttlrm.training.perceptual import PerceptualLoss
from tttlrm.training.settings import LossWeights


@pytest.fixture(scope="module")
def vgg_weights() -> dict[str, Tensor]:
    """Of the right shapes, and random."""
    generator = torch.Generator().manual_seed(0)
    channels = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    weights = {}
    for index in range(13):
        shape = (channels[index + 1], channels[index], 3, 3)
        weights[f"conv{index}.weight"] = torch.randn(shape, generator=generator) * (2 / (9 * channels[index])) ** 0.5
        weights[f"conv{index}.bias"] = torch.zeros(channels[index + 1])
    for level, width in enumerate((64, 128, 256, 512, 512)):
        weights[f"head{level}.weight"] = torch.rand(1, width, 1, 1, generator=generator) / width
    return weights


def scene(depth_scale: float = 1.0) -> tuple[Rendering, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 3, 16, 16, generator=generator)
    depths = 1 + torch.rand(2, 3, 1, 16, 16, generator=generator)
    masks = (torch.rand(2, 3, 1, 16, 16, generator=generator) > 0.3).float()
    alphas = 0.3 + 0.7 * torch.rand(2, 3, 1, 16, 16, generator=generator)
    rendering = Rendering(images.clone(), alphas, depths * alphas * depth_scale)
    return rendering, images, depths, masks


def test_mse_and_psnr_are_sums_over_views() -> None:
    rendering, images, depths, masks = scene()
    off = Rendering(images * 0.8, rendering.alphas, rendering.depths)
    loss = rendering_loss(off, images, depths, masks, LossWeights(perceptual=0, depth=0), None)
    expected = (0.2 * images).square().mean(dim=(2, 3, 4))
    assert torch.allclose(loss.total, expected.sum())
    assert torch.allclose(loss.terms["psnr"], (-10 * expected.log10()).sum())
    assert loss.terms.keys() == {"mse", "psnr"}


def test_the_logarithm_weighs_views_by_their_own_error() -> None:
    rendering, images, depths, masks = scene()
    rendered = (images * torch.tensor([0.95, 0.8, 0.5]).view(1, 3, 1, 1, 1)).requires_grad_()
    off = Rendering(rendered, rendering.alphas, rendering.depths)
    loss = rendering_loss(off, images, depths, masks, LossWeights(mse=0, perceptual=0, depth=0, log_mse=0.5), None)
    error = (rendered - images).square().mean(dim=(2, 3, 4))
    assert torch.allclose(loss.total, 0.5 * (1 + error / 1e-3).log().sum())
    assert torch.allclose(loss.terms["log_mse"], 2 * loss.total)
    (gradient,) = torch.autograd.grad(loss.total, rendered)
    plain = 2 * (rendered - images) / images[0, 0].numel()
    assert torch.allclose(gradient, 0.5 * plain / (error + 1e-3)[..., None, None, None], rtol=1e-4)
    assert LossWeights(mse=0, perceptual=0, depth=0, log_mse=1).of_renderings


def test_depth_loss_ignores_unit_and_affine_changes_of_inverse_depth() -> None:
    rendering, _, depths, masks = scene()
    assert float(depth_loss(rendering, depths, masks).max()) < 1e-5
    affine = 1 / (0.5 / depths + 0.1)
    changed = Rendering(rendering.images, rendering.alphas, affine * rendering.alphas)
    assert float(depth_loss(changed, depths, masks).max()) < 1e-2
    mirrored = Rendering(rendering.images, rendering.alphas, (3.5 - depths) * rendering.alphas)
    assert float(depth_loss(mirrored, depths, masks).min()) > 0.3


def test_depth_loss_by_hand() -> None:
    """Inverse depths 1, 2, 3 (median 2, deviation 2/3) against 1, 2, 6 (median 2, deviation 5/3)."""
    predicted, true = torch.tensor([1, 1 / 2, 1 / 3, 9.0]), torch.tensor([1, 1 / 2, 1 / 6, 7.0])
    mask = torch.tensor([1.0, 1, 1, 0.5])
    shape = (1, 1, 1, 2, 2)
    rendering = Rendering(torch.zeros(1, 1, 3, 2, 2), torch.ones(shape), predicted.view(shape))
    ours = torch.tensor([-1.5, 0, 1.5])
    reference = torch.tensor([-0.6, 0, 2.4])
    expected = torch.nn.functional.smooth_l1_loss(ours, reference)
    assert torch.allclose(depth_loss(rendering, true.view(shape), mask.view(shape)), expected, rtol=5e-3)


def test_depth_loss_of_empty_views_is_zero_with_finite_gradients() -> None:
    rendering, _, depths, _ = scene()
    leaf = rendering.depths.clone().requires_grad_()
    masks = torch.zeros_like(depths)
    masks[0, 0] = 1
    masks[0, 1, 0, 0, 0] = 1  # a single pixel has no spread
    loss = depth_loss(Rendering(rendering.images, rendering.alphas * 0, leaf), depths, masks)
    assert bool((loss[1] == 0).all()) and loss[0, 1] == 0
    loss.sum().backward()
    assert leaf.grad is not None and bool(torch.isfinite(leaf.grad).all())


def test_opacity_loss_is_the_mean_opacity() -> None:
    logits = torch.tensor([[0.0, 100.0, -100.0, 0.0]])
    gaussians = Gaussians(
        torch.zeros(1, 4, 3), torch.zeros(1, 4, 1, 3), torch.zeros(1, 4, 3), torch.ones(1, 4, 4), logits
    )
    assert float(opacity_loss(gaussians)) == pytest.approx(0.5)


def test_perceptual_loss_is_lpips(vgg_weights: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(2)
    target = torch.rand(2, 3, 32, 32, generator=generator)
    predicted = (target + 0.2 * torch.randn(2, 3, 32, 32, generator=generator)).clamp(0, 1).requires_grad_()
    distance = PerceptualLoss(vgg_weights)(predicted, target)
    assert torch.allclose(distance.double(), Lpips(vgg_weights)(predicted.detach(), target), rtol=1e-4)
    distance.sum().backward()
    assert predicted.grad is not None and float(predicted.grad.abs().mean()) > 0
    rounded = PerceptualLoss(vgg_weights, torch.bfloat16)(predicted.detach(), target)
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, distance.detach(), rtol=0.05)


def test_perceptual_loss_of_equal_and_black_images(vgg_weights: dict[str, Tensor]) -> None:
    black = torch.zeros(1, 3, 32, 32, requires_grad=True)
    distance = PerceptualLoss(vgg_weights)(black, torch.zeros(1, 3, 32, 32))
    assert float(distance.detach()) == 0
    distance.sum().backward()
    assert black.grad is not None and bool(torch.isfinite(black.grad).all())


def test_all_terms_add_up(vgg_weights: dict[str, Tensor]) -> None:
    rendering, images, depths, masks = scene()
    off = Rendering(images * 0.8, rendering.alphas, (4 - depths) * rendering.alphas)
    weights = LossWeights(mse=2.0, perceptual=0.5, depth=0.1)
    loss = rendering_loss(off, images, depths, masks, weights, PerceptualLoss(vgg_weights))
    expected = 2 * loss.terms["mse"] + 0.5 * loss.terms["perceptual"] + 0.1 * loss.terms["depth"]
    assert torch.allclose(loss.total, expected)
