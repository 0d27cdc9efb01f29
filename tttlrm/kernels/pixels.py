"""The two ends of the network, pixel by pixel: images and rays to patches, and decoder outputs to Gaussians.

Dimension letters: V views, H and W image size, p patch size, T = V (H/p) (W/p) tokens, N = V H W pixels,
C Gaussian channels.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from tttlrm.cameras import Views
from tttlrm.config import ModelConfig
from tttlrm.rendering.spherical_harmonics import BAND0

_PATCH_ROWS = 2
_PIXELS = 128
"""As many as a program has threads, so that each computes one ray."""
_MIN_DISTANCE = 1e-4


def patches(views: Views, patch: int, dtype: torch.dtype) -> Tensor:
    """The model's input channels (origin, direction, their cross product, 2 rgb - 1) of views [V, ...], by patch.

    Returns:
        [T, p p 12], as :func:`tttlrm.model.patchify` orders them.
    """
    height, width = views.height, views.width
    tokens, columns = views.num_views * (height // patch) * (width // patch), 12 * patch**2
    out = torch.empty(tokens, columns, dtype=dtype, device=views.images.device)
    _patches_kernel[(triton.cdiv(tokens, _PATCH_ROWS),)](
        views.images.contiguous(),
        views.camera_to_world.float().contiguous(),
        views.intrinsics.float().contiguous(),
        out,
        tokens,
        HEIGHT=height,
        WIDTH=width,
        PATCH=patch,
        COLUMNS=columns,
        BLOCK=triton.next_power_of_2(columns),
        ROWS=_PATCH_ROWS,
        num_warps=8,
    )
    return out


def finish_gaussians(
    raw: Tensor, views: Views, config: ModelConfig, positions: Tensor, scales: Tensor, look: Tensor
) -> None:
    """Turn the decoder's outputs of views [V, ...] into Gaussians.

    Args:
        raw: [N, C] float32, in the order of tokens and then of pixels in their patch.
        positions: [N, 3] float32, written.
        scales: [N, 4] float32, written: log-scales and opacity logit.
        look: [N, C - 7], written: spherical harmonics and rotation, as they are but for the colour residual.
    """
    count, channels = raw.shape
    _finish_kernel[(triton.cdiv(count, _PIXELS),)](
        raw,
        views.images.contiguous(),
        views.camera_to_world.float().contiguous(),
        views.intrinsics.float().contiguous(),
        positions,
        scales,
        look,
        count,
        config.near,
        config.far - config.near,
        math.log(config.far / config.near) if config.distance_spacing == "log" else 0.0,
        config.log_scale_bias,
        config.log_scale_max,
        config.opacity_bias,
        HEIGHT=views.height,
        WIDTH=views.width,
        PATCH=config.patch,
        CHANNELS=channels,
        BLOCK=triton.next_power_of_2(channels - 7),
        LOG_DISTANCE=config.distance_spacing == "log",
        PIXEL_SCALE=config.scale_unit == "pixel",
        COLOR_RESIDUAL=config.color_residual,
        MIN_DISTANCE=_MIN_DISTANCE,
        INVERSE_BAND0=1 / BAND0,
        PIXELS=_PIXELS,
        num_warps=_PIXELS // 32,
    )


@triton.jit
def _ray(view, x, y, camera_to_world, intrinsics, inside):
    """Origin and unit direction of the rays through the centres of pixels."""
    camera = intrinsics + view * 4
    across = (x.to(tl.float32) + 0.5 - tl.load(camera + 2, mask=inside, other=0.0)) / tl.load(
        camera, mask=inside, other=1.0
    )
    down = (y.to(tl.float32) + 0.5 - tl.load(camera + 3, mask=inside, other=0.0)) / tl.load(
        camera + 1, mask=inside, other=1.0
    )
    pose = camera_to_world + view * 16
    dx = _row(pose, across, down, inside)
    dy = _row(pose + 4, across, down, inside)
    dz = _row(pose + 8, across, down, inside)
    scale = tl.rsqrt(dx * dx + dy * dy + dz * dz)
    ox = tl.load(pose + 3, mask=inside, other=0.0)
    oy = tl.load(pose + 7, mask=inside, other=0.0)
    oz = tl.load(pose + 11, mask=inside, other=0.0)
    return ox, oy, oz, dx * scale, dy * scale, dz * scale


@triton.jit
def _row(pose, across, down, inside):
    first = tl.load(pose, mask=inside, other=1.0)
    second = tl.load(pose + 1, mask=inside, other=1.0)
    third = tl.load(pose + 2, mask=inside, other=1.0)
    return first * across + second * down + third


@triton.jit(do_not_specialize=["tokens"])
def _patches_kernel(
    images,
    camera_to_world,
    intrinsics,
    out,
    tokens,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PATCH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (token < tokens)[:, None] & (column < COLUMNS)[None, :]
    across: tl.constexpr = WIDTH // PATCH
    view = (token // ((HEIGHT // PATCH) * across))[:, None] + 0 * column[None, :]
    place = token % ((HEIGHT // PATCH) * across)
    pixel, channel = column // 12, column % 12
    y = (place // across)[:, None] * PATCH + (pixel // PATCH)[None, :]
    x = (place % across)[:, None] * PATCH + (pixel % PATCH)[None, :]
    channel = channel[None, :] + 0 * y
    ox, oy, oz, dx, dy, dz = _ray(view, x, y, camera_to_world, intrinsics, inside)
    color = channel >= 9
    sample = images + (view.to(tl.int64) * 3 + tl.where(color, channel - 9, 0)) * (HEIGHT * WIDTH) + y * WIDTH + x
    value = 2 * tl.load(sample, mask=inside & color, other=0.0).to(tl.float32) - 1
    value = tl.where(channel == 0, ox, value)
    value = tl.where(channel == 1, oy, value)
    value = tl.where(channel == 2, oz, value)
    value = tl.where(channel == 3, dx, value)
    value = tl.where(channel == 4, dy, value)
    value = tl.where(channel == 5, dz, value)
    value = tl.where(channel == 6, oy * dz - oz * dy, value)
    value = tl.where(channel == 7, oz * dx - ox * dz, value)
    value = tl.where(channel == 8, ox * dy - oy * dx, value)
    places = out + token.to(tl.int64)[:, None] * COLUMNS + column[None, :]
    tl.store(places, value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _finish_kernel(
    raw,
    images,
    camera_to_world,
    intrinsics,
    positions,
    scales,
    look,
    count,
    near,
    span,
    log_span,
    log_scale_bias,
    log_scale_max,
    opacity_bias,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PATCH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    LOG_DISTANCE: tl.constexpr,
    PIXEL_SCALE: tl.constexpr,
    COLOR_RESIDUAL: tl.constexpr,
    MIN_DISTANCE: tl.constexpr,
    INVERSE_BAND0: tl.constexpr,
    PIXELS: tl.constexpr,
):
    index = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = index < count
    across: tl.constexpr = WIDTH // PATCH
    token, pixel = index // (PATCH * PATCH), index % (PATCH * PATCH)
    view, place = token // ((HEIGHT // PATCH) * across), token % ((HEIGHT // PATCH) * across)
    y = (place // across) * PATCH + pixel // PATCH
    x = (place % across) * PATCH + pixel % PATCH
    ox, oy, oz, dx, dy, dz = _ray(view, x, y, camera_to_world, intrinsics, inside)

    place = index.to(tl.int64)
    row = raw + place * CHANNELS
    first_scale: tl.constexpr = CHANNELS - 8
    distance = _number(row, inside) + _number(row + 1, inside) + _number(row + 2, inside)
    distance = tl.sigmoid(distance / 3)
    distance = near * tl.exp(distance * log_span) if LOG_DISTANCE else near + span * distance
    tl.store(positions + place * 3, ox + distance * dx, mask=inside)
    tl.store(positions + place * 3 + 1, oy + distance * dy, mask=inside)
    tl.store(positions + place * 3 + 2, oz + distance * dz, mask=inside)

    shift = 0.0 * distance + log_scale_bias
    if PIXEL_SCALE:
        focal = tl.load(intrinsics + view * 4, mask=inside, other=1.0)
        focal = 0.5 * (focal + tl.load(intrinsics + view * 4 + 1, mask=inside, other=1.0))
        shift += tl.log(tl.maximum(distance, MIN_DISTANCE)) - tl.log(focal)
    scale0 = tl.minimum(_number(row + first_scale, inside) + shift, log_scale_max)
    scale1 = tl.minimum(_number(row + first_scale + 1, inside) + shift, log_scale_max)
    scale2 = tl.minimum(_number(row + first_scale + 2, inside) + shift, log_scale_max)
    opacity = _number(row + CHANNELS - 1, inside) + opacity_bias
    four = tl.join(tl.join(scale0, scale2), tl.join(scale1, opacity))  # each thread's, written at once
    four = tl.reshape(four, (PIXELS, 4))
    tl.store(scales + place[:, None] * 4 + tl.arange(0, 4)[None, :], four, mask=inside[:, None])

    # Spherical harmonics come before the scales, and the rotation after them.
    column = tl.arange(0, BLOCK)[None, :]
    valid = inside[:, None] & (column < CHANNELS - 7)
    source = tl.where(column < first_scale - 3, column + 3, column + 6)
    values = tl.load(row[:, None] + source, mask=valid, other=0.0)
    if COLOR_RESIDUAL:
        is_color = valid & (column < 3)
        sample = (view.to(tl.int64)[:, None] * 3 + tl.minimum(column, 2)) * (HEIGHT * WIDTH)
        sample += (y * WIDTH + x)[:, None]
        color = tl.load(images + sample, mask=is_color, other=0.5).to(tl.float32)
        values += (color - 0.5) * INVERSE_BAND0
    tl.store(look + place[:, None] * (CHANNELS - 7) + column, values.to(look.dtype.element_ty), mask=valid)


@triton.jit
def _number(row, inside):
    """A channel of each pixel; rows are read again as wholes, so that this costs no memory traffic."""
    return tl.load(row, mask=inside, other=0.0)
