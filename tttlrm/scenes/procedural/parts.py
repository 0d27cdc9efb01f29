"""Primitives under construction: posed, sized, and not yet assembled into a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tttlrm.scenes.procedural.draws import Draws
from tttlrm.scenes.procedural.parameters import Kind, Shapes


@dataclass(frozen=True)
class Parts:
    """N primitives of each of B scenes.

    Attributes:
        kinds: [B, N] int64, of :class:`Kind`.
        frames: [B, N, 3, 3], columns are the local axes in the world; orthonormal, mirrored ones allowed.
        centers: [B, N, 3].
        sizes: [B, N, 3], half extents along the local axes (of a torus: of its ring, its tube apart).
        profiles: [B, N, 3], see :class:`Shapes`.
    """

    kinds: Tensor
    frames: Tensor
    centers: Tensor
    sizes: Tensor
    profiles: Tensor

    @property
    def world_to_local(self) -> Tensor:
        """[B, N, 3, 4]."""
        linear = self.frames.transpose(-1, -2) / self.sizes[..., :, None]
        return torch.cat([linear, -(linear @ self.centers[..., None])], dim=-1)

    @property
    def extents(self) -> Tensor:
        """[B, N, 3], half extents along the world's axes (not less than the true ones)."""
        axes = (self.frames * self.sizes[..., None, :]).abs()
        round_xy = axes[..., :2].norm(dim=-1)
        tube = self.profiles[..., :1]
        by_kind = {
            Kind.SPHERE: axes.norm(dim=-1),
            Kind.CYLINDER: round_xy + axes[..., 2],
            Kind.CONE: round_xy + axes[..., 2],
            Kind.TORUS: round_xy * (1 + tube) + axes[..., 2] * tube,
        }
        extents = axes.sum(-1)
        for kind, value in by_kind.items():
            extents = torch.where((self.kinds == kind)[..., None], value, extents)
        return extents

    def distances(self, points: Tensor) -> Tensor:
        """[B, N, Q]: distances of points [B, Q, 3] from the primitives' boxes: 0 inside, infinite from none."""
        local = torch.einsum("bnij,bnqi->bnqj", self.frames, points[:, None] - self.centers[:, :, None])
        reach = torch.where((self.kinds == Kind.TORUS)[..., None], 1 + self.profiles[..., :1], 1.0)
        reach = reach.expand_as(self.sizes).clone()
        reach[..., 2] = torch.where(self.kinds == Kind.TORUS, self.profiles[..., 0], 1.0)
        outside = (local.abs() - (self.sizes * reach)[:, :, None]).clamp_min(0).norm(dim=-1)
        return torch.where((self.kinds > 0)[..., None], outside, torch.inf)

    def moved(self, rotation: Tensor, translation: Tensor) -> Parts:
        """Rotated about the origin by [B, 1 or N, 3, 3], then shifted by [B, 1 or N, 3]."""
        centers = (rotation @ self.centers[..., None])[..., 0] + translation
        return Parts(self.kinds, rotation @ self.frames, centers, self.sizes, self.profiles)

    def scaled(self, scale: Tensor) -> Parts:
        """Scaled about the origin by [B]."""
        factor = scale[:, None, None]
        return Parts(self.kinds, self.frames, self.centers * factor, self.sizes * factor, self.profiles)

    def kept(self, mask: Tensor) -> Parts:
        """Without the primitives outside of the mask [B, N]."""
        return Parts(torch.where(mask, self.kinds, 0), self.frames, self.centers, self.sizes, self.profiles)

    def part(self, start: int, stop: int) -> Parts:
        """The primitives from ``start`` to before ``stop``."""
        names = ("kinds", "frames", "centers", "sizes", "profiles")
        return Parts(*(getattr(self, name)[:, start:stop] for name in names))


def random_profiles(draws: Draws, kinds: Tensor) -> Tensor:
    """[B, N, 3]: the profile that each kind needs; cones and tori vary."""
    count = kinds.shape[1]
    top = draws.uniform(count, low=0.0, high=0.75) * draws.chance(count, probability=0.7)
    a, b = 0.5 * (1 + top), 0.5 * (top - 1)
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    tube = draws.uniform(count, low=0.15, high=0.45)
    by_kind = {
        Kind.SPHERE: (one, zero, -one),
        Kind.CYLINDER: (one, zero, zero),
        Kind.CONE: (a * a, 2 * a * b, b * b),
        Kind.TORUS: (tube, zero, zero),
    }
    profiles = torch.zeros(*kinds.shape, 3, dtype=torch.float64)
    for kind, values in by_kind.items():
        profiles = torch.where((kinds == kind)[..., None], torch.stack(values, dim=-1), profiles)
    return profiles


def concatenate(groups: Sequence[Parts]) -> Parts:
    """The primitives of several groups, in order."""
    names = ("kinds", "frames", "centers", "sizes", "profiles")
    return Parts(*(torch.cat([getattr(group, name) for group in groups], dim=1) for name in names))


def assembled(parts: Parts, operations: Tensor) -> Shapes:
    """Shapes of a scene in single precision, from all of its surfaces in the layout's order."""
    return Shapes(
        kinds=parts.kinds,
        world_to_local=parts.world_to_local.float(),
        sizes=parts.sizes.float(),
        profiles=parts.profiles.float(),
        operations=operations,
    )
