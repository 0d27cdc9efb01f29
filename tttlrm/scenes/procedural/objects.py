"""Random objects: a few primitives put together, in the manner of LRM-Zero (arXiv:2406.09371)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tttlrm.scenes.procedural.draws import Draws, rotations_about_z
from tttlrm.scenes.procedural.parameters import Kind, Layout, Operation, Shapes, Viewpoints
from tttlrm.scenes.procedural.parts import Parts, assembled, concatenate, random_profiles

_MAX_PRIMITIVES = 9
_SOLID_KINDS = torch.tensor([Kind.BOX, Kind.SPHERE, Kind.CYLINDER, Kind.CONE])
_CLUSTER, _ATTACHED, _STACK, _BLOCKS, _MIRRORED = range(5)
_ARRANGEMENTS = (0.22, 0.2, 0.18, 0.25, 0.15)
_SCAN_FOCAL = 1.0723
"""Focal length over image side of a field of view of 50 degrees, as renderings of scanned objects have."""


def object_shapes(draws: Draws, layout: Layout) -> tuple[Shapes, Tensor]:
    """Objects within [-1, 1]^3 and about the origin, and the radii [B] of balls around the origin that hold them."""
    arrangement = draws.choice(weights=_ARRANGEMENTS)
    kinds, modified = _kinds(draws, layout, arrangement)
    parts = _arranged(draws, kinds, arrangement)
    parts, radius = _normalized(draws, parts)
    solids, tori = parts.part(0, layout.solids), parts.part(layout.solids, layout.parts)
    modifiers, operations = random_modifiers(draws, solids.part(0, layout.modifiers), modified)
    return assembled(concatenate([solids, modifiers, tori]), operations), radius


def object_viewpoints(draws: Draws, radius: Tensor) -> Viewpoints:
    """Cameras around objects at distances of 1.5 to 2.8, from which most of an object is seen.

    Args:
        radius: [B], of a ball around the origin that holds the object.
    """
    nearest = (1.7 * radius).clamp(1.5, 2.4)
    middle = nearest + (2.8 - nearest) * draws.uniform()
    spread = 0.4 * draws.chance(probability=0.5)
    upper = draws.chance(probability=0.5)
    empty = torch.zeros(len(radius), 0, 3)
    focal = torch.where(draws.chance(probability=0.5), _SCAN_FOCAL, draws.uniform(low=0.9, high=1.35))
    return Viewpoints(
        distances=torch.stack([torch.maximum(middle - spread, nearest), (middle + spread).clamp_max(2.8)], dim=-1),
        elevations=torch.stack([torch.where(upper, -0.1, -0.98), torch.where(upper, 0.87, 0.98)], dim=-1),
        rolls=0.2 * draws.chance(probability=0.3),
        focal=focal,
        path=empty,
        look_at=empty,
        shake=torch.zeros(len(radius), 0),
    )


def random_modifiers(draws: Draws, hosts: Parts, wanted: Tensor) -> tuple[Parts, Tensor]:
    """A solid to cut out of, or to intersect with, each host, so that neither takes all of the host away.

    Args:
        wanted: [B, M] bool.

    Returns:
        modifiers, and operations [B, M].
    """
    count = wanted.shape[1]
    style = draws.choice(count, weights=[0.4, 0.3, 0.3])  # a bite, a hole right through, a common part
    bite, hole = (style == 0)[..., None], (style == 1)[..., None]
    turned = draws.rotations(count)
    smallest = hosts.sizes.min(-1, keepdim=True).values
    # A bite is about a point of the host's surface and too small to swallow it. A hole goes through along z.
    bite_sizes = smallest * draws.uniform(count, 3, low=0.4, high=0.9)
    width = draws.uniform(count, 1, low=0.35, high=0.75)
    hole_sizes = hosts.sizes * torch.cat([width, width, torch.full_like(width, 1.2)], dim=-1)
    common_sizes = hosts.sizes * draws.uniform(count, 3, low=0.7, high=1.1)
    direction = draws.directions(count)
    surface = direction / direction.abs().amax(-1, keepdim=True) * hosts.sizes
    near = 0.2 * hosts.sizes * draws.uniform(count, 3, low=-1.0, high=1.0)
    local = torch.where(bite, surface, torch.where(hole, 0.0, near))
    kinds = _SOLID_KINDS[draws.choice(count, weights=[0.35, 0.3, 0.35, 0.0])]
    tilted = bite[..., None] & draws.chance(count, 1, 1, probability=0.6)
    modifiers = Parts(
        kinds=torch.where(wanted, kinds, 0),
        frames=torch.where(tilted, turned, hosts.frames),
        centers=hosts.centers + (hosts.frames @ local[..., None])[..., 0],
        sizes=torch.where(bite, bite_sizes, torch.where(hole, hole_sizes, common_sizes)),
        profiles=random_profiles(draws, kinds),
    )
    operations = torch.where(style == 2, Operation.INTERSECTION, Operation.DIFFERENCE)
    return modifiers, torch.where(wanted, operations, Operation.NONE)


def _kinds(draws: Draws, layout: Layout, arrangement: Tensor) -> tuple[Tensor, Tensor]:
    """Kinds [B, solids + tori], and which of the first solids are modified [B, modifiers]; 1 to 9 primitives in all."""
    total = draws.integers(low=1, high=_MAX_PRIMITIVES + 1)
    tori = torch.minimum(draws.choice(weights=[0.7, 0.22, 0.08]), total)
    cuts = torch.minimum(draws.choice(weights=[0.5, 0.25, 0.15, 0.1]), (total - tori) // 2)
    solids = total - tori - cuts
    kinds = _SOLID_KINDS[draws.choice(layout.solids, weights=[0.4, 0.2, 0.25, 0.15])]
    blocks = (arrangement == _BLOCKS) & draws.chance(probability=0.75)
    kinds = torch.where(blocks[:, None], Kind.BOX, kinds)
    pairs = torch.tensor([n - 1 if n > 0 and n % 2 == 0 else n for n in range(layout.solids)])
    kinds = torch.where((arrangement == _MIRRORED)[:, None], kinds[:, pairs], kinds)
    kinds = torch.where(torch.arange(layout.solids) < solids[:, None], kinds, 0)
    rings = torch.where(torch.arange(layout.tori) < tori[:, None], Kind.TORUS, 0)
    return torch.cat([kinds, rings], dim=1), torch.arange(layout.modifiers) < cuts[:, None]


def _arranged(draws: Draws, kinds: Tensor, arrangement: Tensor) -> Parts:
    """The primitives put together in one of several manners, each drawn and one kept."""
    n = _MAX_PRIMITIVES
    sizes = draws.log_uniform(n, 1, low=0.2, high=0.7) * draws.uniform(n, 3, low=-0.8, high=0.8).exp()
    reach = 0.8 * sizes.mean(dim=(1, 2), keepdim=True) * draws.uniform(1, 1, low=0.8, high=1.6)
    manners = (
        (draws.rotations(n), reach * draws.normal(n, 3).clamp(-1.5, 1.5), sizes),
        _attached(draws, sizes),
        _stack(draws, sizes),
        _blocks(draws),
        _mirrored(draws, sizes),
    )
    chosen = []
    for values in zip(*manners, strict=True):
        choice = arrangement.reshape(-1, *([1] * (values[0].ndim - 1)))
        result = values[0]
        for manner in range(1, len(manners)):
            result = torch.where(choice == manner, values[manner], result)
        chosen.append(result)
    rank = ((kinds > 0).cumsum(1) - 1).clamp(0, n - 1)  # the places are for the primitives that exist
    batch = torch.arange(len(kinds))[:, None]
    frames, centers, sizes = (value[batch, rank] for value in chosen)
    sizes = torch.where((kinds == Kind.TORUS)[..., None], 0.8 * sizes, sizes)
    parts = Parts(kinds, frames, centers, sizes, random_profiles(draws, kinds))
    upright = draws.chance(probability=0.75)[:, None, None]
    turn = torch.where(upright, rotations_about_z(draws.uniform(high=2 * math.pi)), draws.rotations())
    return parts.moved(turn[:, None], torch.zeros(3).double())


def _attached(draws: Draws, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each primitive sits on the surface of an earlier one, half of them turned as it is."""
    n = sizes.shape[1]
    turned, same = draws.rotations(n), draws.chance(n, probability=0.5)
    direction, parent = draws.directions(n), draws.uniform(n)
    surface = direction / direction.abs().amax(-1, keepdim=True) * draws.uniform(n, 1, low=0.7, high=1.1)
    frames, centers = [turned[:, 0]], [torch.zeros_like(sizes[:, 0])]
    batch = torch.arange(len(sizes))
    for i in range(1, n):
        p = (parent[:, i] * i).long()
        frame, center = torch.stack(frames, 1)[batch, p], torch.stack(centers, 1)[batch, p]
        offset = (frame @ (surface[:, i] * sizes[batch, p])[..., None])[..., 0]
        centers.append(center + offset)
        frames.append(torch.where(same[:, i, None, None], frame, turned[:, i]))
    return torch.stack(frames, 1), torch.stack(centers, 1), sizes


def _stack(draws: Draws, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A tower along z; most primitives are aligned with each other."""
    n = sizes.shape[1]
    straight = draws.chance(n, probability=0.6)
    yaw = torch.where(straight, 0.0, draws.uniform(n, high=2 * math.pi))
    sizes = sizes * torch.tensor([1.0, 1.0, 0.6])
    height = (2 * sizes[..., 2]).cumsum(1) - sizes[..., 2]
    shift = 0.25 * draws.uniform(n, 2, low=-1.0, high=1.0) * draws.chance(n, 1, probability=0.6)
    return rotations_about_z(yaw), torch.cat([shift, height[..., None]], dim=-1), sizes


def _blocks(draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Equal cells of a grid, filled row by row: a wall or a pile of blocks."""
    n = _MAX_PRIMITIVES
    half = draws.uniform(1, 1, low=0.25, high=0.4) * draws.uniform(1, 3, low=-0.4, high=0.4).exp()
    along = draws.integers(low=1, high=5)[:, None]
    across = draws.integers(low=1, high=3)[:, None]
    i = torch.arange(n)
    cell = torch.stack([i % along, (i // along) % across, i // (along * across)], dim=-1).double()
    fill = draws.uniform(1, 1, low=0.9, high=1.0) * draws.uniform(n, 1, low=0.96, high=1.0)
    frames = torch.eye(3).double().expand(len(half), n, 3, 3)
    return frames, cell * 2 * half, (half * fill).expand(-1, n, -1)


def _mirrored(draws: Draws, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A body and pairs of parts on both of its sides."""
    n = sizes.shape[1]
    pairs = torch.tensor([i - 1 if i > 0 and i % 2 == 0 else i for i in range(n)])
    flip = torch.tensor([[-1.0 if i > 0 and i % 2 == 0 else 1.0, 1.0, 1.0] for i in range(n)]).double()
    body = torch.arange(n) == 0
    sizes = torch.where(body[:, None], 1.2 * sizes, 0.7 * sizes)[:, pairs]
    direction = draws.directions(n)[:, pairs]
    direction = direction / direction.abs().amax(-1, keepdim=True)
    centers = direction * sizes[:, :1] * draws.uniform(n, 1, low=0.8, high=1.3)[:, pairs]
    centers = torch.where(body[:, None], 0.0, torch.cat([centers[..., :1].abs(), centers[..., 1:]], dim=-1))
    tilt = draws.rotations(n)[:, pairs]
    straight = body | draws.chance(n, probability=0.4)[:, pairs]
    frames = torch.where(straight[..., None, None], torch.eye(3).double(), tilt)
    return flip[..., None] * frames, flip * centers, sizes


def _normalized(draws: Draws, parts: Parts) -> tuple[Parts, Tensor]:
    """Moved about the origin and scaled, the larger half extent to 0.6 to 1; with the enclosing radius [B]."""
    extents, present = parts.extents, (parts.kinds > 0)[..., None]
    low = torch.where(present, parts.centers - extents, torch.inf).amin(1)
    high = torch.where(present, parts.centers + extents, -torch.inf).amax(1)
    half = 0.5 * (high - low)
    scale = draws.uniform(low=0.6, high=1.0) / half.amax(-1)
    identity = torch.eye(3).double()[None, None]
    return parts.moved(identity, -0.5 * (low + high)[:, None]).scaled(scale), (half * scale[:, None]).norm(dim=-1)
