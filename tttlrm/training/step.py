"""One training step: network, rendering of the targets, losses, and the gradient.

Back-propagation is deferred at the Gaussians: target views are rendered and differentiated in groups, whose gradients
add up on the Gaussians, and then goes through the network once. So the renderer's memory does not depend on the
number of target views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tttlrm.cameras import Cameras, Views
from tttlrm.gaussians import Gaussians
from tttlrm.parallel import ViewShard
from tttlrm.rendering import render
from tttlrm.training.data import TrainingBatch
from tttlrm.training.losses import opacity_loss, rendering_loss
from tttlrm.training.perceptual import ImageDistance
from tttlrm.training.points import Surfaces, of_views, surface_pixels, surface_terms
from tttlrm.training.settings import LossWeights

Network = Callable[[Views, ViewShard], Gaussians]
"""Input views (of this process) to the Gaussians of all views."""


@dataclass(frozen=True)
class Differentiation:
    """What the loss of a batch is made of, and how it is differentiated."""

    weights: LossWeights
    perceptual: ImageDistance | None = None
    views_per_rendering: int | None = None
    """Target views of each scene that are rendered at a time; None: all."""
    patch: int = 8
    """The model's patch size, on which the order of its Gaussians depends."""
    surface_terms: Callable[[tuple[str, ...], Tensor, Tensor, Surfaces, int], dict[str, Tensor]] = surface_terms
    """As :func:`tttlrm.training.points.surface_terms`; or recorded."""


def backpropagate(network: Network, batch: TrainingBatch, shard: ViewShard, how: Differentiation) -> dict[str, Tensor]:
    """Add this process' part of the loss' gradient to the parameters' ``grad``.

    Under sequence parallelism the sum of the processes' gradients is that of the batch's mean loss: each renders its
    share of the targets.

    Returns:
        This process' part of each term (sums over processes are means over the batch), by name; detached.
    """
    inputs = batch.inputs if shard.group is None else batch.inputs.select(list(shard.views))
    gaussians = network(inputs, shard)
    leaves = Gaussians(*(tensor.detach().requires_grad_() for tensor in gaussians.tensors))
    terms = _differentiate_opacity(leaves, shard, how.weights)
    for differentiate in (_differentiate_points, _differentiate_renderings):
        for name, value in differentiate(leaves, batch, shard, how).items():
            terms[name] = terms.get(name, 0) + value
    pairs = [(tensor, leaf.grad) for tensor, leaf in zip(gaussians.tensors, leaves.tensors, strict=True)]
    tensors = [tensor for tensor, _ in pairs]
    gradients = [torch.zeros_like(tensor) if gradient is None else gradient for tensor, gradient in pairs]
    torch.autograd.backward(tensors, gradients)
    return terms


def _differentiate_opacity(leaves: Gaussians, shard: ViewShard, weights: LossWeights) -> dict[str, Tensor]:
    if not weights.opacity:
        return {"loss": leaves.positions.new_zeros(())}
    opacity = opacity_loss(leaves) / shard.size
    (weights.opacity * opacity).backward()
    return {"loss": weights.opacity * opacity.detach(), "opacity": opacity.detach()}


def _differentiate_points(
    leaves: Gaussians, batch: TrainingBatch, shard: ViewShard, how: Differentiation
) -> dict[str, Tensor]:
    """The terms that compare the Gaussians of this process' input views with the surfaces there."""
    weights, num_views = how.weights, shard.num_views
    names = tuple(name for name in ("points", "coverage", "solidity") if getattr(weights, name))
    if not names:
        return {}
    mine = slice(shard.rank, num_views, shard.size)
    positions, logits = of_views(leaves, num_views, mine)
    views = batch.inputs
    cameras = Cameras(views.camera_to_world[:, mine], views.intrinsics[:, mine], views.height, views.width)
    inputs = Surfaces(cameras, batch.input_depths[:, mine], batch.input_masks[:, mine])
    if shard.size > 1:
        inputs = replace(inputs, pixels=surface_pixels(batch.input_masks), num_views=num_views)
    terms = how.surface_terms(names, positions, logits, inputs, how.patch)
    loss = sum((getattr(weights, name) * value for name, value in terms.items()), positions.new_zeros(()))
    loss.backward()
    # Copies: a recorded term is overwritten by the next step's.
    return {"loss": loss.detach(), **{name: value.detach().clone() for name, value in terms.items()}}


def _differentiate_renderings(
    leaves: Gaussians, batch: TrainingBatch, shard: ViewShard, how: Differentiation
) -> dict[str, Tensor]:
    scenes, count = batch.targets.images.shape[:2]
    mine = range(shard.rank, count, shard.size)
    terms: dict[str, Tensor] = {}
    if not how.weights.of_renderings:
        return terms
    step = how.views_per_rendering or len(mine) or 1
    for start in range(0, len(mine), step):
        at = mine[start : start + step]
        if len(at) == count:
            targets, depths, masks = batch.targets, batch.depths, batch.masks
        else:
            targets = batch.targets.select(at)
            depths, masks = (t[:, at.start : at.stop : at.step] for t in (batch.depths, batch.masks))
        loss = rendering_loss(
            render(leaves, targets.cameras), targets.images, depths, masks, how.weights, how.perceptual
        )
        (loss.total / (scenes * count)).backward()
        parts = {"loss": loss.total.detach(), **loss.terms}
        for name, value in parts.items():
            terms[name] = terms.get(name, 0) + value / (scenes * count)
    return terms
