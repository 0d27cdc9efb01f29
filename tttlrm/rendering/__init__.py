"""Gaussians to images: one interface over gsplat's CUDA kernels and a renderer in plain torch, which agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tttlrm.cameras import Cameras
from tttlrm.errors import BackendUnavailableError, UserError
from tttlrm.gaussians import Gaussians
from tttlrm.rendering import gsplat_backend, reference

EPS2D = 0.3
"""Variance in square pixels added to each projected Gaussian ("classic" mode: opacity is not corrected for it)."""

BACKENDS: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    "gsplat": gsplat_backend.rasterize,
    "torch": reference.rasterize,
}
"""By name; ``auto`` chooses gsplat for float32 tensors on a CUDA device, and torch for all others."""

__all__ = ["BACKENDS", "EPS2D", "Rendering", "render"]


@dataclass(frozen=True)
class Rendering:
    """Images of V cameras (with the leading dimensions of the Gaussians).

    Attributes:
        images: [..., V, 3, H, W], RGB over the background; not limited to [0, 1].
        alphas: [..., V, 1, H, W].
        depths: [..., V, 1, H, W], accumulated: the sum of weight times camera z, 0 for the background.
    """

    images: Tensor
    alphas: Tensor
    depths: Tensor


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    background: Sequence[float] | Tensor = (1.0, 1.0, 1.0),
    near: float = 0.1,
    far: float = 1e10,
    backend: str = "auto",
) -> Rendering:
    """Render Gaussians as the paper's evaluation does (white background, SH of the Gaussians' degree).

    Differentiable in all of the Gaussians' tensors.

    Args:
        gaussians: positions [N, 3] of one scene, or [B, N, 3] of a batch; float32 or float64.
        cameras: [V, 4, 4] of one scene, or [B, V, 4, 4] of a batch. They are converted to the Gaussians' precision
            and device, after the inversion of the poses.
        background: RGB.
        near, far: camera z outside of which Gaussians are not drawn.
        backend: ``auto``, or a key of :data:`BACKENDS`.

    Raises:
        BackendUnavailableError: the backend is unknown, not installed, or cannot run on these tensors.
        UserError: tensors of shapes or precisions that do not fit together, or near and far out of order.
    """
    rasterize = _choose(backend, gaussians.positions)
    _check(gaussians, cameras, near, far)
    means = gaussians.positions
    # Autocast would round positions to bfloat16.
    with torch.autocast(means.device.type, enabled=False):
        colors, alphas, depths = rasterize(
            means,
            gaussians.quaternions,
            gaussians.log_scales.exp(),
            gaussians.opacities,
            gaussians.sh,
            cameras.world_to_camera.to(means),
            cameras.intrinsics.to(means),
            cameras.width,
            cameras.height,
            near,
            far,
            EPS2D,
        )
        images = colors + (1 - alphas) * _rgb(background, means)
    return Rendering(*(t.movedim(-1, -3).contiguous() for t in (images, alphas, depths)))


def _choose(backend: str, means: Tensor) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    if backend == "auto":
        backend = "gsplat" if means.is_cuda and means.dtype == torch.float32 else "torch"
    if backend not in BACKENDS:
        raise BackendUnavailableError(f"unknown renderer {backend!r}; choose one of auto, {', '.join(BACKENDS)}")
    return BACKENDS[backend]


def _check(gaussians: Gaussians, cameras: Cameras, near: float, far: float) -> None:
    means = gaussians.positions
    if means.dtype not in (torch.float32, torch.float64):
        raise UserError(f"render: Gaussians must be float32 or float64, not {means.dtype}")
    if len({(t.dtype, t.device) for t in gaussians.tensors}) > 1:
        kinds = ", ".join(f"{t.dtype} on {t.device}" for t in gaussians.tensors)
        raise UserError(f"render: the Gaussians' tensors must be of one precision and device, not {kinds}")
    if gaussians.sh.shape[-2] not in (1, 4, 9, 16):
        raise UserError(f"render: Gaussians must have 1, 4, 9 or 16 SH coefficients, not {gaussians.sh.shape[-2]}")
    if means.shape[:-2] != cameras.camera_to_world.shape[:-3]:
        raise UserError(
            f"render: Gaussians {list(means.shape)} and cameras {list(cameras.camera_to_world.shape)} "
            "differ in their leading dimensions"
        )
    if cameras.width < 1 or cameras.height < 1:
        raise UserError(f"render: image size must be positive, not {cameras.width} x {cameras.height}")
    if not 0 < near < far:
        raise UserError(f"render: need 0 < near < far, not near {near} and far {far}")


def _rgb(background: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    color = torch.as_tensor(background, dtype=like.dtype, device=like.device)
    if color.shape != (3,):
        raise UserError(f"render: background must be three numbers (RGB), not {background!r}")
    return color
