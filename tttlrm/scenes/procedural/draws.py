"""Counter-based random numbers: a pure function of a scene's key and of the draw's position, whatever the batch.

Each number is the SplitMix64 hash of (key, slot, element). The slot counts the draws made, so that a scene's numbers
depend neither on the other scenes of a batch nor on the device (all draws are made on the CPU).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


class Draws:
    """Random numbers for B scenes, in float64 on the CPU.

    Args:
        scenes: [B] int64, what tells the scenes apart.
        words: further words of the key, the same for all scenes (integers, or names of what is drawn).
    """

    def __init__(self, scenes: Tensor, *words: int | str) -> None:
        key = torch.zeros_like(scenes)
        for word in words:
            value = zlib.crc32(word.encode()) if isinstance(word, str) else word
            key = _mix(key ^ _signed(value % 2**64))
        self._key = _mix(_mix(key) ^ scenes)
        self._slot = 0

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """[B, *shape], uniform in [low, high)."""
        count = math.prod(shape)
        counter = (self._slot << 32) + 1 + torch.arange(count)
        self._slot += 1
        bits = _mix(self._key[:, None] + counter * _signed(_GOLDEN))
        unit = (_shift(bits, 11)).double() * 2.0**-53
        return (low + (high - low) * unit).reshape(-1, *shape)

    def log_uniform(self, *shape: int, low: float, high: float) -> Tensor:
        """[B, *shape], uniform in the logarithm."""
        return self.uniform(*shape, low=math.log(low), high=math.log(high)).exp()

    def chance(self, *shape: int, probability: float) -> Tensor:
        """[B, *shape], booleans."""
        return self.uniform(*shape) < probability

    def integers(self, *shape: int, low: int, high: int) -> Tensor:
        """[B, *shape] int64, uniform in low .. high - 1."""
        return (low + (self.uniform(*shape) * (high - low)).floor()).long()

    def choice(self, *shape: int, weights: Sequence[float]) -> Tensor:
        """[B, *shape] int64, a position of ``weights``, drawn in proportion to them."""
        edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        return torch.searchsorted(edges[:-1], self.uniform(*shape) * edges[-1], right=True)

    def normal(self, *shape: int) -> Tensor:
        """[B, *shape], standard normal (Box-Muller)."""
        radius = (-2.0 * (1.0 - self.uniform(*shape)).log()).sqrt()
        return radius * (2.0 * math.pi * self.uniform(*shape)).cos()

    def directions(self, *shape: int) -> Tensor:
        """[B, *shape, 3], uniform on the unit sphere."""
        z = self.uniform(*shape, low=-1.0, high=1.0)
        angle = self.uniform(*shape, high=2.0 * math.pi)
        radius = (1.0 - z * z).clamp_min(0).sqrt()
        return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=-1)

    def rotations(self, *shape: int) -> Tensor:
        """[B, *shape, 3, 3], uniform rotations."""
        first, second = self.directions(*shape), self.directions(*shape)
        second = torch.linalg.cross(first, second)
        second = second / second.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


def rotations_about_z(angle: Tensor) -> Tensor:
    """[..., 3, 3] rotations by angles [...] in radians."""
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=-1).unflatten(-1, (3, 3))


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _signed(_FIRST)
    value = (value ^ _shift(value, 27)) * _signed(_SECOND)
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical (unsigned) right shift of int64."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
