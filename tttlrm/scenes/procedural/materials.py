"""Random materials and lights."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from tttlrm.scenes.procedural.atlas import NUM_IMAGES
from tttlrm.scenes.procedural.draws import Draws
from tttlrm.scenes.procedural.parameters import Layout, Lights, Materials, Pattern, map_tensors

_PALETTE = 6
_OBJECT_PATTERNS = {
    Pattern.PLAIN: 1.2,
    Pattern.NOISE: 1.5,
    Pattern.BLOTCHES: 1.5,
    Pattern.CHECKER: 1.0,
    Pattern.STRIPES: 1.0,
    Pattern.GRADIENT: 0.6,
    Pattern.MOSAIC: 1.0,
    Pattern.DOTS: 0.8,
    Pattern.GLYPHS: 2.0,
    Pattern.BRICKS: 0.8,
    Pattern.IMAGE: 3.0,
    Pattern.TINTED_IMAGE: 1.5,
}
_ROOM_PATTERNS = {
    **_OBJECT_PATTERNS,
    Pattern.PLAIN: 4.0,
    Pattern.NOISE: 2.0,
    Pattern.STRIPES: 1.5,
    Pattern.GRADIENT: 1.5,
    Pattern.IMAGE: 2.0,
}
_FITTED = (Pattern.GLYPHS, Pattern.IMAGE, Pattern.TINTED_IMAGE)


def object_materials(draws: Draws, layout: Layout) -> Materials:
    """Materials of objects: any pattern, colours of a palette of the scene or of their own."""
    materials = _random_materials(draws, layout.surfaces, _OBJECT_PATTERNS, detail=1.0, vivid=0.45)
    # In a part of the scenes all surfaces share one material up to seed and image, as the parts of one thing do.
    shared = draws.chance(1, probability=0.3)
    together = {
        name: torch.where(_like(shared, value), value[:, :1], value)
        for name, value in (
            (n, getattr(materials, n)) for n in ("patterns", "frequencies", "colors", "fitted", "varied")
        )
    }
    return dataclasses.replace(materials, **together)


def room_materials(draws: Draws, layout: Layout, groups: Tensor, pictures: Tensor) -> Materials:
    """Materials of rooms: one for each piece of furniture, calmer ones on the walls, images on pictures.

    Args:
        groups: [S], the piece of furniture that a surface belongs to, or -1 for a thing of its own.
        pictures: [S] bool.
    """
    materials = _random_materials(draws, layout.surfaces, _ROOM_PATTERNS, detail=1.6, vivid=0.2)
    first = torch.arange(layout.surfaces)
    for group in range(int(groups.max()) + 1):
        members = (groups == group).nonzero()[:, 0]
        first[members] = members[0]
    grouped = map_tensors(materials, lambda value: value[:, first])
    one_piece = groups >= 0
    odd = draws.chance(layout.surfaces, probability=0.25) & one_piece  # a cushion, a drawer of another colour
    materials = _choose(odd | ~one_piece, materials, grouped)
    walls = torch.arange(layout.surfaces) == layout.surfaces - 1
    return dataclasses.replace(
        materials,
        patterns=torch.where(pictures, Pattern.IMAGE, _wall_patterns(draws, materials.patterns, walls)),
        fitted=torch.where(pictures, True, materials.fitted & ~walls),
        frequencies=torch.where(
            pictures, 1.0, torch.where(walls, draws.log_uniform(1, low=0.5, high=2.5), materials.frequencies)
        ),
        gloss=torch.where(walls, 0.3 * materials.gloss, materials.gloss),
        colors=torch.where(walls[:, None, None], _wall_colors(draws, materials.colors), materials.colors),
    )


def object_lights(draws: Draws) -> Lights:
    """Two distant lights and an ambient one; a quarter of the scenes is nearly shadeless, as scans often are."""
    flat = draws.chance(probability=0.25)
    ambient = torch.where(flat, draws.uniform(low=0.75, high=1.0), draws.uniform(low=0.25, high=0.7))
    key = (1.15 - ambient) * draws.uniform(low=0.9, high=1.4)
    fill = key * draws.uniform(low=0.1, high=0.6)
    toward = draws.directions(2)
    toward = torch.stack([toward[..., 0], toward[..., 1], toward[..., 2].abs() * 0.9 + 0.1], dim=-1)
    toward[:, 1, 2] -= 0.4
    tint = 1.0 + 0.08 * draws.normal(4, 3).clamp(-2, 2)
    tint = tint / tint.mean(-1, keepdim=True)
    contrast = draws.uniform(low=0.0, high=0.35)
    return Lights(
        positions=torch.cat([toward, torch.zeros_like(toward[..., :1])], dim=-1),
        colors=torch.stack([key[:, None] * tint[:, 0], fill[:, None] * tint[:, 1]], dim=1),
        reach=torch.ones_like(toward[..., 0]),
        ambient_up=(ambient * (1 + contrast))[:, None] * tint[:, 2],
        ambient_down=(ambient * (1 - contrast))[:, None] * tint[:, 3],
        shadow=torch.zeros_like(ambient),
    )


def room_lights(draws: Draws, room: Tensor) -> Lights:
    """A ceiling lamp, a second lamp and ambient light, under an exposure from dim to bright.

    Args:
        room: [B, 3], half extents of the room, which stands on z = 0.
    """
    exposure = torch.where(
        draws.chance(probability=0.25), draws.log_uniform(low=0.25, high=0.7), draws.uniform(low=0.8, high=1.8)
    )
    spot = draws.uniform(2, 3, low=-1.0, high=1.0)
    height = torch.stack([draws.uniform(low=0.8, high=0.95), draws.uniform(low=0.45, high=0.9)], dim=1)
    spot = torch.stack([spot[..., 0] * 0.6, spot[..., 1] * 0.6, 2.0 * height], dim=-1) * room[:, None]
    strength = exposure[:, None] * torch.stack([draws.uniform(low=0.5, high=1.0), draws.uniform(low=0.1, high=0.5)], 1)
    warmth = draws.uniform(3, low=-0.12, high=0.25)
    tint = torch.stack([1 + 0.5 * warmth, torch.ones_like(warmth), 1 - warmth], dim=-1)
    ambient = exposure * draws.uniform(low=0.2, high=0.5)
    return Lights(
        positions=torch.cat([spot, torch.ones_like(spot[..., :1])], dim=-1),
        colors=strength[..., None] * tint[:, :2],
        reach=draws.uniform(2, low=1.5, high=3.0),
        ambient_up=ambient[:, None] * tint[:, 2],
        ambient_down=(ambient * draws.uniform(low=0.5, high=1.0))[:, None] * tint[:, 2],
        shadow=draws.uniform(low=0.3, high=0.85),
    )


def _random_materials(draws: Draws, count: int, weights: dict[int, float], detail: float, vivid: float) -> Materials:
    patterns = torch.tensor(list(weights))[draws.choice(count, weights=list(weights.values()))]
    fits = torch.isin(patterns, torch.tensor(_FITTED)) & draws.chance(count, probability=0.75)
    repeats = draws.choice(count, weights=[5.0, 2.0, 1.0]) + 1.0
    free = draws.log_uniform(count, low=1.2, high=5.0) * detail
    whole_image = torch.isin(patterns, torch.tensor([Pattern.IMAGE, Pattern.TINTED_IMAGE]))
    free = torch.where(whole_image, 0.4 * free, free)
    return Materials(
        patterns=patterns,
        colors=_random_colors(draws, count, vivid),
        frequencies=torch.where(fits, repeats, free),
        offsets=draws.uniform(count, 3, low=0.0, high=16.0),
        angles=torch.where(draws.chance(count, probability=0.5), 0.0, draws.uniform(count, low=-math.pi, high=math.pi)),
        fitted=fits,
        varied=draws.chance(count, probability=0.6),
        warps=draws.uniform(count, low=0.0, high=0.6) * draws.chance(count, probability=0.4) * ~fits,
        contrasts=draws.log_uniform(count, low=0.6, high=2.0),
        noise_frequencies=draws.log_uniform(count, low=1.0, high=6.0) * detail,
        grains=draws.uniform(count, low=0.0, high=0.35) * draws.chance(count, probability=0.6),
        images=draws.integers(count, low=0, high=NUM_IMAGES),
        seeds=draws.integers(count, low=0, high=2**20),
        gloss=draws.uniform(count, low=0.05, high=0.4) * draws.chance(count, probability=0.5),
        shininess=draws.log_uniform(count, low=6.0, high=60.0),
    )


def _random_colors(draws: Draws, count: int, vivid: float) -> Tensor:
    """[B, count, 3, 3]: for each surface three colours, of its own or from the scene's palette."""
    palette = _colors(draws, vivid, _PALETTE)
    picks = draws.integers(count, 3, low=0, high=_PALETTE)
    picked = palette.gather(1, picks.flatten(1)[..., None].expand(-1, -1, 3)).unflatten(1, (count, 3))
    colors = torch.where(draws.chance(1, 1, 1, probability=0.5), picked, _colors(draws, vivid, count, 3))
    # Two colours of a pattern must differ to be seen: the second moves away from the first where it is near.
    gap = colors[:, :, 1].mean(-1) - colors[:, :, 0].mean(-1)
    push = torch.where(gap.abs() < 0.25, torch.where(colors[:, :, 0].mean(-1) > 0.5, -0.35, 0.35), 0.0)
    colors[:, :, 1] = (colors[:, :, 1] + push[..., None]).clamp(0.02, 0.98)
    return colors


def _colors(draws: Draws, vivid: float, *shape: int) -> Tensor:
    """[B, *shape, 3]: a share of vivid colours, and wooden, muted and grey ones, from nearly black to nearly white."""
    wooden = draws.chance(*shape, probability=0.25)
    hue = torch.where(wooden, draws.uniform(*shape, low=0.2, high=0.8), draws.uniform(*shape) * 6.0)
    saturation = torch.where(
        draws.chance(*shape, probability=vivid),
        draws.uniform(*shape, low=0.5, high=1.0),
        torch.where(wooden, draws.uniform(*shape, low=0.2, high=0.7), draws.uniform(*shape, high=0.4)),
    )
    value = draws.uniform(*shape).pow(0.6) * 0.93 + 0.05
    channels = []
    for shift in (5.0, 3.0, 1.0):
        k = (hue + shift) % 6.0
        channels.append(value * (1 - saturation * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)))
    return torch.stack(channels, dim=-1)


def _wall_patterns(draws: Draws, patterns: Tensor, walls: Tensor) -> Tensor:
    calm = (Pattern.PLAIN, Pattern.NOISE, Pattern.STRIPES, Pattern.BRICKS, Pattern.TINTED_IMAGE, Pattern.CHECKER)
    chosen = torch.tensor(calm)[draws.choice(1, weights=[2.0, 3.0, 1.5, 1.5, 1.5, 0.5])]
    return torch.where(walls, chosen, patterns)


def _wall_colors(draws: Draws, colors: Tensor) -> Tensor:
    """Paler colours, nearer to each other."""
    pale = colors[:, :, :1] * 0.4 + 0.6 * draws.uniform(1, 1, 1, low=0.45, high=1.0)
    return pale + (colors - colors[:, :, :1]) * draws.uniform(1, 1, 1, low=0.15, high=0.5)


def _like(flag: Tensor, value: Tensor) -> Tensor:
    return flag.reshape(flag.shape + (1,) * (value.ndim - flag.ndim))


def _choose(mask: Tensor, chosen: Materials, other: Materials) -> Materials:
    """Surface by surface, one material or the other."""
    names = [field.name for field in dataclasses.fields(chosen)]
    pairs = {name: (getattr(chosen, name), getattr(other, name)) for name in names}
    return Materials(**{name: torch.where(_like(mask, a), a, b) for name, (a, b) in pairs.items()})
