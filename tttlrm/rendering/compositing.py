"""Front-to-back alpha compositing of projected Gaussians, with its gradient.

The work is laid out as fragments: one for each pixel that each Gaussian touches. They are made in groups of Gaussians,
front to back, so that memory is bounded and pixels that are full leave early; within a group they are sorted by pixel,
and transmittance is a running product along each pixel's fragments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tttlrm.rendering.footprints import MIN_ALPHA, Footprints

MAX_ALPHA = 0.999
MIN_TRANSMITTANCE = 1e-4
"""A pixel takes no Gaussian that would bring its transmittance down to this, and none behind that one."""

GROUP_PIXELS = 2**17
"""Fragments in a group, at most, or the number of pixels if that is more; small enough for caches."""


def composite(means: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, footprints: Footprints) -> Tensor:
    """Blend the Gaussians' features over the image. Differentiable (once) in the four tensors.

    Args:
        means: [N, 2], in pixels.
        conics: [N, 3], (xx, xy, yy).
        opacities: [N].
        features: [N, C].
        footprints: of the same Gaussians.

    Returns:
        [H, W, C], sums of weight times feature. Alpha is what a feature of 1 gives.
    """
    image: Tensor = _Composite.apply(means, conics, opacities, features, footprints)
    return image.unflatten(0, (footprints.height, footprints.width))


@dataclass(frozen=True)
class _Fragments:
    """F pairs of a pixel and a Gaussian: by pixel, and front to back within a pixel.

    Attributes:
        gaussians: [F] int32.
        pixels: [F] int32.
        alphas: [F], 0 where the pixel does not take the Gaussian.
        starts: [P + 1] int32, the first fragment of each pixel.
        transmittances: [F], in front of the Gaussian.
    """

    gaussians: Tensor
    pixels: Tensor
    alphas: Tensor
    starts: Tensor
    transmittances: Tensor

    @property
    def weights(self) -> Tensor:
        return self.alphas * self.transmittances


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, footprints: Footprints
    ) -> Tensor:
        num_pixels = footprints.height * footprints.width
        image = features.new_zeros(num_pixels, features.shape[1])
        log_transmittance = torch.zeros(num_pixels, dtype=torch.float64, device=features.device)
        kept = []
        for group in footprints.groups(max(GROUP_PIXELS, num_pixels)):
            alive = log_transmittance > math.log(MIN_TRANSMITTANCE)
            if not alive.any():
                break
            fragments, log_transmittance = _fragments(footprints, group, alive, log_transmittance)
            image += _sum_by_pixel(fragments, features)
            if any(ctx.needs_input_grad):
                kept.append(fragments)
        ctx.save_for_backward(means, conics, opacities, features)
        ctx.fragments, ctx.width = kept, footprints.width
        return image

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (cotangent,) = cotangents
        means, conics, opacities, features = ctx.saved_tensors
        grads = _Gradients(means, conics, opacities, features, cotangent.contiguous(), ctx.width)
        for fragments in reversed(ctx.fragments):
            grads.add(fragments)
        return (*grads.result(), None)


def _fragments(
    footprints: Footprints, group: slice, alive: Tensor, log_transmittance: Tensor
) -> tuple[_Fragments, Tensor]:
    """A group's fragments, from the log transmittance [P] in front of it; and that behind it."""
    gaussians, pixels, alphas = _touch(footprints, group, alive)
    pixels, order = torch.sort(pixels, stable=True)
    gaussians, alphas = _take(gaussians, order), _take(alphas, order)
    starts = torch.nn.functional.pad(torch.bincount(pixels, minlength=len(alive)).cumsum(0), (1, 0)).to(torch.int32)

    # Logarithms in double precision make one running sum over all pixels as good as a product within each.
    logs = torch.log1p(-alphas.to(torch.float64))
    sums = torch.nn.functional.pad(logs.cumsum(0), (1, 0))
    before = sums.index_select(0, starts)
    in_front = torch.exp(sums[:-1] + _take(log_transmittance - before[:-1], pixels))
    behind = log_transmittance + (before[1:] - before[:-1])
    taken = in_front * (1 - alphas) > MIN_TRANSMITTANCE
    alphas = torch.where(taken, alphas, 0)
    return _Fragments(gaussians, pixels, alphas, starts, in_front.to(alphas.dtype)), behind


def _touch(footprints: Footprints, group: slice, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian, pixel and alpha of the pixels in a group's runs, in their order; dead runs are left out."""
    runs = footprints.runs(group)
    owner, first_pixel = runs.owner, runs.row * footprints.width
    lives = torch.nn.functional.pad(alive.cumsum(0), (1, 0))
    any_alive = lives[first_pixel + runs.end] > lives[first_pixel + runs.start]
    length = torch.where(any_alive, runs.end - runs.start, 0)
    total = int(length.sum())

    run = torch.repeat_interleave(length, output_size=total)
    column = torch.arange(total, dtype=torch.int32, device=run.device)
    column = column + _take((runs.start + length - length.cumsum(0)).to(torch.int32), run)
    dx = _take(footprints.means[owner, 0] - 0.5, run) - column
    dy = footprints.means[owner, 1] - 0.5 - runs.row
    xx, xy, yy = footprints.conics[owner].unbind(-1)
    distance = (_take(0.5 * xx, run) * dx + _take(xy * dy, run)) * dx + _take(0.5 * yy * dy * dy, run)
    alphas = (_take(footprints.opacities[owner], run) * torch.exp(-distance)).clamp(max=MAX_ALPHA)
    touched = (alphas >= MIN_ALPHA) & (distance >= 0)
    gaussians = _take(footprints.gaussians[owner].to(torch.int32), run)
    pixels = column + _take(first_pixel.to(torch.int32), run)
    return gaussians, pixels, torch.where(touched, alphas, 0)


def _sum_by_pixel(fragments: _Fragments, features: Tensor) -> Tensor:
    """[P, C]: weighted sums of the fragments' features."""
    return torch.nn.functional.embedding_bag(
        fragments.gaussians,
        features,
        fragments.starts,
        per_sample_weights=fragments.weights,
        mode="sum",
        include_last_offset=True,
    )


class _Gradients:
    """Sums of the fragments' gradients, back to front."""

    def __init__(
        self, means: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, cotangent: Tensor, width: int
    ) -> None:
        self.x, self.y = (means[:, i].contiguous() for i in range(2))
        self.conics, self.opacities, self.features = conics, opacities, features
        self.cotangent, self.width = cotangent, width
        self.d_features = [torch.zeros_like(opacities) for _ in range(features.shape[1])]
        # Sums over a Gaussian's pixels of the gradient of its exponent, times 1, dx, dy, dx dx, dx dy, dy dy.
        self.moments = [torch.zeros_like(opacities) for _ in range(6)]
        self.behind = cotangent.new_zeros(len(cotangent), dtype=torch.float64)

    def add(self, fragments: _Fragments) -> None:
        """Take in the group of fragments in front of those so far."""
        gaussians, pixels, weights = fragments.gaussians, fragments.pixels, fragments.weights
        received = self.cotangent.index_select(0, pixels)
        for channel, total in enumerate(self.d_features):
            total.index_add_(0, gaussians, weights * received[:, channel])
        gain = (self.features.index_select(0, gaussians) * received).sum(-1)

        d_alpha = fragments.transmittances * gain - self._from_behind(fragments, weights * gain) / (
            1 - fragments.alphas
        )
        d_exponent = torch.where(fragments.alphas < MAX_ALPHA, d_alpha * fragments.alphas, 0)
        dx = _take(self.x, gaussians) - (pixels % self.width + 0.5)
        dy = _take(self.y, gaussians) - (pixels // self.width + 0.5)
        along_x, along_y = d_exponent * dx, d_exponent * dy
        terms = (d_exponent, along_x, along_y, along_x * dx, along_x * dy, along_y * dy)
        for total, term in zip(self.moments, terms, strict=True):
            total.index_add_(0, gaussians, term)

    def _from_behind(self, fragments: _Fragments, contributions: Tensor) -> Tensor:
        """What lies behind each fragment in its pixel, this group's and those before, gives the loss."""
        sums = torch.nn.functional.pad(contributions.to(torch.float64).cumsum(0), (1, 0))
        ends = sums.index_select(0, fragments.starts)
        through_group = self.behind + ends[1:]
        behind = _take(through_group, fragments.pixels) - sums[1:]
        self.behind = through_group - ends[:-1]
        return behind.to(contributions.dtype)

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of means, conics, opacities and features.

        alpha = opacity exp(-(xx dx dx + yy dy dy) / 2 - xy dx dy), with (dx, dy) from the pixel's centre to the mean.
        """
        one, x, y, x_x, x_y, y_y = self.moments
        xx, xy, yy = self.conics.unbind(-1)
        d_means = torch.stack([-(xx * x + xy * y), -(xy * x + yy * y)], dim=-1)
        d_conics = torch.stack([-0.5 * x_x, -x_y, -0.5 * y_y], dim=-1)
        d_opacities = torch.where(one == 0, 0, one / self.opacities)
        return d_means, d_conics, d_opacities, torch.stack(self.d_features, dim=-1)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """values[index] for one-dimensional tensors, by the faster kernel."""
    return values.index_select(0, index)
