"""Rendering by gsplat's CUDA kernels (gsplat 1.5.3, which compiles them when first used)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tttlrm.errors import BackendUnavailableError

SPLATS_PER_CALL = 2**22
"""Gaussians times views given to gsplat at a time: it copies the SH coefficients for every view."""


_SMALL_IMAGE = 256**2


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    near: float,
    far: float,
    eps2d: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`tttlrm.rendering.reference.rasterize`, for float32 tensors on a CUDA device.

    Raises:
        BackendUnavailableError: gsplat is not installed or cannot be compiled, or the tensors are not its kind.
    """
    rasterization = _load(means)
    num_gaussians, num_views = means.shape[-2], viewmats.shape[-3]
    lead = viewmats.shape[:-3]
    if not means.numel() or not num_views:
        empty = means.new_zeros(*lead, num_views, height, width, 5)
        return empty[..., :3], empty[..., 4:], empty[..., 3:4]

    matrices = intrinsics.new_zeros(*intrinsics.shape[:-1], 3, 3)
    matrices[..., 0, 0], matrices[..., 1, 1], matrices[..., 0, 2], matrices[..., 1, 2] = intrinsics.unbind(-1)
    matrices[..., 2, 2] = 1
    step = max(1, SPLATS_PER_CALL // (math.prod(lead) * num_gaussians))
    images, alphas = [], []
    for start in range(0, num_views, step):
        views = slice(start, start + step)
        # Without a background: gsplat 1.5.3 fails when given one together with depth.
        image, alpha, _ = rasterization(
            means=means.contiguous(),
            quats=quats.contiguous(),
            scales=scales.contiguous(),
            opacities=opacities.contiguous(),
            colors=sh,
            viewmats=viewmats[..., views, :, :].contiguous(),
            Ks=matrices[..., views, :, :].contiguous(),
            width=width,
            height=height,
            near_plane=near,
            far_plane=far,
            eps2d=eps2d,
            sh_degree=math.isqrt(sh.shape[-2]) - 1,
            packed=False,
            render_mode="RGB+D",
            rasterize_mode="classic",
            tile_size=_tile_size(width, height),
        )
        images.append(image)
        alphas.append(alpha)
    image = torch.cat(images, dim=-4)
    return image[..., :3], torch.cat(alphas, dim=-4), image[..., 3:]


def _tile_size(width: int, height: int) -> int:
    """Side of the squares whose pixels go through one list of Gaussians: small images have too few large ones.

    Measured on an H200 for images of 64x64 and 128x128: squares of 8 are 1.3 to 1.5 times faster than those of 16.
    """
    return 8 if width * height <= _SMALL_IMAGE else 16


def _load(means: Tensor) -> Any:
    """gsplat's function, once it is sure that it can run on such tensors."""
    if not means.is_cuda:
        raise BackendUnavailableError(
            f"the gsplat renderer needs tensors on a CUDA device, not {means.device}; choose backend='torch'"
        )
    if means.dtype != torch.float32:
        raise BackendUnavailableError(
            f"the gsplat renderer computes in float32, not {means.dtype}; choose backend='torch'"
        )
    try:
        from gsplat import rasterization
        from gsplat.cuda import _backend
    except ImportError as error:
        raise BackendUnavailableError(
            f"the gsplat renderer is not installed ({error}): in a checkout `pip install --no-deps --require-hashes "
            "-r requirements/locks/cuda.txt` (`make setup` does it with a CUDA build of torch), elsewhere "
            "`pip install gsplat==1.5.3`, or choose backend='torch'"
        ) from error
    if _backend._C is None:
        raise BackendUnavailableError(
            "gsplat has no compiled kernels and finds no CUDA toolkit to compile them: "
            f"install the toolkit (nvcc) of CUDA {torch.version.cuda}, or choose backend='torch'"
        )
    return rasterization
