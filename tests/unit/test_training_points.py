"""Supervision of the input views' Gaussians: values on cases made by hand, gradients, and its place in a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training_cases import make_batch, make_model, make_settings
from tttlrm.cameras import Cameras, pixel_rays
from tttlrm.model import TTTLRM, patchify
from tttlrm.parallel import ViewShard
from tttlrm.scenes.procedural import ProceduralSpec
from tttlrm.scenes.procedural import make_batch as make_scenes
from tttlrm.training.points import coverage_loss, points_loss, solidity_loss, surface_pixels
from tttlrm.training.settings import LossWeights, Phase
from tttlrm.training.step import Differentiation, backpropagate

PATCH = 8
ONLY_POINTS = LossWeights(mse=0, perceptual=0, opacity=0, depth=0, points=1)


def in_order(image: Tensor) -> Tensor:
    """[B, V, H, W, c] to [B, V, H W, c], as the model's Gaussians are."""
    return patchify(image, PATCH).unflatten(-1, (-1, image.shape[-1])).flatten(2, 3)


def on_surfaces(cameras: Cameras, depths: Tensor, factor: float = 1.0) -> Tensor:
    """Points [B, V, H W, 3] on the surfaces, at ``factor`` times their distance from the camera.

    By the camera's matrices, not by rays of unit length.
    """
    x, y = torch.arange(cameras.width) + 0.5, torch.arange(cameras.height) + 0.5
    fx, fy, cx, cy = cameras.intrinsics[..., None, None, :].unbind(-1)
    z = depths.squeeze(-3) * factor
    local = torch.stack([(x - cx) / fx * z, (y[:, None] - cy) / fy * z, z], dim=-1)
    rotation, position = cameras.camera_to_world[..., :3, :3], cameras.camera_to_world[..., :3, 3]
    return in_order(torch.einsum("bvij,bvhwj->bvhwi", rotation, local) + position[:, :, None, None])


def test_gaussians_on_the_surfaces_have_no_loss() -> None:
    batch = make_batch(torch.float64)
    cameras, depths, masks = batch.inputs.cameras, batch.input_depths, batch.input_masks
    exact = points_loss(on_surfaces(cameras, depths), cameras, depths, masks, PATCH)
    assert exact.shape == (2, 4)
    assert float(exact.max()) < 1e-4  # the poses' rotations are rounded to float32
    # Twice as far, or half as far: the logarithm of 2 at each pixel that shows a surface.
    for factor in (2.0, 0.5):
        off = points_loss(on_surfaces(cameras, depths, factor), cameras, depths, masks, PATCH)
        assert torch.allclose(off, torch.log(torch.tensor(2.0)).double() * masks.sum(dim=(2, 3, 4)), atol=1e-4)
    assert float(points_loss(on_surfaces(cameras, depths, 2.0), cameras, depths, masks * 0, PATCH).abs().max()) == 0


def test_surfaces_of_procedural_scenes_are_where_several_views_see_them() -> None:
    """Points of one view, seen from another one, have that view's depths or are hidden behind them."""
    scenes = make_scenes(ProceduralSpec("object", split="test"), [0], 2, (32, 32))
    cameras, depths, masks = scenes.views.cameras, scenes.depths, scenes.masks
    points = on_surfaces(cameras, depths)
    assert float(points_loss(points, cameras, depths, masks, PATCH).max()) < 1e-3
    inside = in_order(masks.movedim(-3, -1)).squeeze(-1) > 0.999
    assert float(points[inside].abs().max()) < 1.1  # objects are within [-1, 1]^3


def test_gradients_move_gaussians_along_their_rays_to_the_surface() -> None:
    batch = make_batch(torch.float64)
    cameras, depths, masks = batch.inputs.cameras, batch.input_depths, batch.input_masks
    points = on_surfaces(cameras, depths, 1.5).requires_grad_()
    points_loss(points, cameras, depths, masks, PATCH).sum().backward()
    assert points.grad is not None
    directions = in_order(pixel_rays(cameras)[1])
    along = (points.grad * directions).sum(-1)
    inside = in_order(masks.movedim(-3, -1)).squeeze(-1) > 0
    assert bool((along[inside] > 0).all()) and float(along[~inside].abs().max()) == 0
    assert torch.allclose(points.grad, along[..., None] * directions)


def test_gaussians_behind_their_camera_and_empty_depths_give_finite_gradients() -> None:
    batch = make_batch(torch.float32)
    cameras = batch.inputs.cameras
    points = on_surfaces(cameras, batch.input_depths, -1.0).requires_grad_()
    loss = points_loss(points, cameras, batch.input_depths * 0, batch.input_masks, PATCH)
    loss.sum().backward()
    assert bool(torch.isfinite(loss).all())
    assert points.grad is not None and bool(torch.isfinite(points.grad).all())


def test_coverage_by_hand() -> None:
    masks = torch.zeros(1, 1, 1, 16, 16)
    masks[..., :8, 8:] = 1  # the second patch
    logits = torch.full((1, 1, 256), -4.595120)  # an opacity of 0.01, the target
    logits[..., 64:128] = 20.0
    assert float(coverage_loss(logits, masks, PATCH)) == pytest.approx(0, abs=1e-6)
    logits[..., :64] = 0.0  # half opaque before nothing, in a quarter of the pixels
    assert float(coverage_loss(logits, masks, PATCH)) == pytest.approx(0.25 * 0.637146, rel=1e-5)
    logits[..., :64] = 3.0
    assert float(coverage_loss(logits, masks, PATCH)) == pytest.approx(0.25 * 2.962586, rel=1e-5)
    masks[:] = 0.5  # pixels that show a surface in part count in part
    assert float(coverage_loss(torch.zeros_like(logits), masks, PATCH)) == pytest.approx(0.5 * 0.637146, rel=1e-5)


def test_solidity_by_hand() -> None:
    masks = torch.zeros(1, 1, 1, 16, 16)
    masks[..., :8, 8:] = 1  # the second patch
    logits = torch.full((1, 1, 256), -20.0)
    logits[..., 64:128] = 0.847298  # an opacity of 0.7, the target
    assert float(solidity_loss(logits, masks, PATCH)) == pytest.approx(0, abs=1e-6)
    logits[..., 64:128] = -3.0
    assert float(solidity_loss(logits, masks, PATCH)) == pytest.approx(0.25 * 1.537723, rel=1e-5)
    assert float(solidity_loss(logits, masks * 0, PATCH)) == 0


@pytest.mark.parametrize("loss", [coverage_loss, solidity_loss])
def test_opacities_are_not_driven_to_an_end_of_the_range(loss: Any) -> None:
    """From there, renderings could not bring them back: their gradient is nearly none."""
    masks = torch.full((1, 1, 1, 8, 8), float(loss is solidity_loss))
    logits = torch.zeros(1, 1, 64, requires_grad=True)
    descent = torch.optim.SGD([logits], lr=200.0)
    for _ in range(500):
        descent.zero_grad()
        loss(logits, masks, PATCH).sum().backward()
        descent.step()
    opacity = logits.detach().sigmoid()
    assert bool((opacity > 0.005).all()) and bool((opacity < 0.75).all())


def test_coverage_makes_the_background_transparent_and_leaves_surfaces_alone() -> None:
    masks = make_batch(torch.float64).input_masks
    logits = torch.zeros(2, 4, 256, dtype=torch.float64, requires_grad=True)
    coverage_loss(logits, masks, PATCH).sum().backward()
    assert logits.grad is not None
    surface = in_order(masks.movedim(-3, -1)).squeeze(-1) > 0
    assert bool((logits.grad[surface] == 0).all()) and bool((logits.grad[~surface] > 0).all())


def test_a_step_has_the_mean_over_scenes_of_the_mean_over_surface_pixels() -> None:
    model, batch = make_model(torch.float64), make_batch(torch.float64)
    masks = batch.input_masks.clone()
    masks[1] = 0
    masks[1, 2, 0, 3, 4] = 1  # a scene with a single pixel counts as much as another one
    batch = replace(batch, input_masks=masks)
    gaussians = model(batch.inputs)
    error = points_loss(
        gaussians.positions.unflatten(1, (4, -1)), batch.inputs.cameras, batch.input_depths, masks, PATCH
    )
    expected = (error.sum(1) / surface_pixels(masks)).mean()
    expected.backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    shard = ViewShard(4)
    terms = backpropagate(lambda v, s: model(v, shard=s), batch, shard, Differentiation(ONLY_POINTS))
    assert float(terms["loss"]) == pytest.approx(float(expected.detach()), rel=1e-10)
    assert float(terms["points"]) == pytest.approx(float(expected.detach()), rel=1e-10)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None and gradient is not None
        assert torch.allclose(parameter.grad, gradient, rtol=1e-8, atol=1e-12)


def test_order_of_the_gaussians_follows_the_patch_size() -> None:
    """A model's Gaussians are on the rays that the loss takes them to be on."""
    for patch in (4, 8):
        config = replace(make_model(torch.float64).config, patch=patch)
        batch = make_batch(torch.float64)
        positions = TTTLRM(config).double()(batch.inputs).positions.unflatten(1, (4, -1))
        origins, directions = (
            patchify(ray, patch).unflatten(-1, (-1, 3)).flatten(2, 3) for ray in pixel_rays(batch.inputs.cameras)
        )
        offsets = positions - origins
        assert torch.allclose(offsets, (offsets * directions).sum(-1, keepdim=True) * directions)
        cosines = (directions * batch.inputs.camera_to_world[:, :, None, :3, 2]).sum(-1)
        # Depth images of these very Gaussians, pixel by pixel.
        z = ((offsets * directions).sum(-1) * cosines).unflatten(2, (16 // patch, 16 // patch, patch, patch))
        depths = z.transpose(3, 4).reshape(2, 4, 1, 16, 16)
        loss = points_loss(positions, batch.inputs.cameras, depths, torch.ones_like(depths), patch)
        assert float(loss.detach().max()) < 1e-4


def test_factors_move_to_those_of_the_phases_end(tmp_path: object) -> None:
    first, last = LossWeights(points=0.4, coverage=0.1), LossWeights(points=0.0, coverage=0.1, mse=2)
    settings = make_settings(tmp_path, loss={"points": 0.2})  # type: ignore[arg-type]
    phase = Phase((16, 16), 2, (2,), 1e-3, loss=first, final_loss=last)
    assert settings.loss_of(phase) == first and settings.loss_of(phase, 1.0) == last
    middle = settings.loss_of(phase, 0.25)
    assert (middle.points, middle.coverage, middle.mse) == pytest.approx((0.3, 0.1, 1.25))
    plain = replace(phase, loss=None, final_loss=None)
    assert settings.loss_of(plain, 0.7) == settings.loss
    assert LossWeights().points == LossWeights().coverage == 0
