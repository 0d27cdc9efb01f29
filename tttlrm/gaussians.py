"""3D Gaussians: the model's output, their pruning, and their files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_SPLITMIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians of one scene (leading batch dimensions are allowed where a method does not say otherwise).

    Tensors may share memory, and where a GPU made them in half precision, spherical harmonics and quaternions are so.

    Attributes:
        positions: [..., N, 3], world coordinates.
        sh: [..., N, K, 3], spherical-harmonics coefficients, K = (degree + 1)^2.
        log_scales: [..., N, 3], natural logarithm of the standard deviations.
        quaternions: [..., N, 4], (w, x, y, z), not normalised.
        opacity_logits: [..., N].
    """

    positions: Tensor
    sh: Tensor
    log_scales: Tensor
    quaternions: Tensor
    opacity_logits: Tensor

    def __len__(self) -> int:
        return self.positions.shape[-2]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.positions, self.sh, self.log_scales, self.quaternions, self.opacity_logits

    @property
    def opacities(self) -> Tensor:
        """[..., N], in (0, 1)."""
        return self.opacity_logits.sigmoid()

    @property
    def sh_degree(self) -> int:
        return math.isqrt(self.sh.shape[-2]) - 1

    def to(self, *args: object, **kwargs: object) -> Gaussians:
        """As ``Tensor.to``, for all tensors."""
        return Gaussians(*(t.to(*args, **kwargs) for t in self.tensors))  # type: ignore[call-overload]

    def scene(self, index: int) -> Gaussians:
        """One scene of a batch (first dimension)."""
        return Gaussians(*(t[index] for t in self.tensors))

    def select(self, index: Tensor) -> Gaussians:
        """The Gaussians at these indices (or under this mask) of a single scene, in this order."""
        return Gaussians(*(t[index] for t in self.tensors))

    def at_least_float32(self) -> Gaussians:
        """The same with every tensor in float32, or in float64 where it already is."""
        return Gaussians(*(t if t.dtype == torch.float64 else t.float() for t in self.tensors))

    def usage(self, threshold: float = 0.001) -> float:
        """Share of Gaussians with an opacity above the threshold ("Gaussian usage" of paper table 5)."""
        return float((self.opacities > threshold).double().mean())

    def count_not_finite(self) -> int:
        """Gaussians (of all scenes) with a value that is infinite or not a number."""
        finite = self.opacity_logits.isfinite()
        for tensor in (self.positions, self.log_scales, self.quaternions, self.sh.flatten(-2)):
            finite = finite & tensor.isfinite().all(dim=-1)
        return int((~finite).sum())

    def prune(self, keep_ratio: float, random_ratio: float, seed: int) -> Gaussians:
        """Keep the most opaque Gaussians, and a random share of the rest, of a single scene.

        Args:
            keep_ratio: r; the floor(r N) most opaque are kept (ties: the earlier one).
            random_ratio: q; floor((1 - r) q N) of the rest are kept as well.
            seed: of the random part. Which ones stay depends on the seed and on each Gaussian's
                index alone, never on the rank or device, so every sp_size keeps the same.

        The order of the Gaussians is kept. What is kept is in at least float32, whatever the precision of the whole.
        """
        count = len(self)
        num_opaque = math.floor(keep_ratio * count)
        num_random = math.floor((1 - keep_ratio) * random_ratio * count)
        order = torch.sort(self.opacity_logits, descending=True, stable=True).indices
        rest = order[num_opaque:].sort().values
        keys = _random_keys(rest, seed)
        lucky = rest[torch.sort(keys, stable=True).indices[:num_random]]
        kept = torch.cat([order[:num_opaque], lucky]).sort().values
        return self.select(kept).at_least_float32()

    def save_ply(self, path: Path, comment: str = "") -> None:
        """Write the binary PLY layout of 3D Gaussian Splatting that viewers read. Atomic."""
        from tttlrm.ply import write_gaussians

        write_gaussians(self, path, comment)

    @staticmethod
    def load_ply(path: Path) -> Gaussians:
        """Read what :meth:`save_ply` wrote."""
        from tttlrm.ply import read_gaussians

        return read_gaussians(path)


def default_pruning(num_views: int) -> tuple[float, float]:
    """(keep_ratio, random_ratio) of the paper's evaluation for a number of input views."""
    return (0.3, 0.05) if num_views >= 64 else (0.4, 0.1)


def _random_keys(index: Tensor, seed: int) -> Tensor:
    """A pseudo-random int64 for each index: SplitMix64 of (seed, index), the same on every device."""
    increment, first, second = (_signed64(c) for c in _SPLITMIX)
    state = (index.to(torch.int64) + 1) * increment + _signed64((seed * _SPLITMIX[2] + _SPLITMIX[1]) % 2**64)
    state = (state ^ _shift_right(state, 30)) * first
    state = (state ^ _shift_right(state, 27)) * second
    return state ^ _shift_right(state, 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed64(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
