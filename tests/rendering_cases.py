"""Renderings to compare with: reference files made by gsplat's CUDA kernels, and scenes of random Gaussians."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from tttlrm.cameras import Cameras
from tttlrm.gaussians import Gaussians

DATA = Path(__file__).resolve().parent / "data"
GOLDEN_RENDERINGS = ("render_gsplat", "render_gsplat_near")
IMAGES, GRADIENTS = 1e-4, 1e-3  # largest relative errors
PARAMETERS = ("means", "quats", "scales", "opacities", "colors")

Rasterize = Callable[..., tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class RenderCase:
    """One golden file: inputs, outputs, gradients, and the cotangents that gave the gradients."""

    tensors: dict[str, Tensor]
    width: int
    height: int
    near: float
    far: float
    eps2d: float

    @property
    def parameters(self) -> list[Tensor]:
        return [self.tensors[f"in/{name}"] for name in PARAMETERS]

    @property
    def intrinsics(self) -> Tensor:
        matrices = self.tensors["in/Ks"]
        return torch.stack([matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, 0, 2], matrices[:, 1, 2]], dim=-1)

    @property
    def cameras(self) -> Cameras:
        camera_to_world = torch.linalg.inv(self.tensors["in/viewmats"].double())
        return Cameras(camera_to_world, self.intrinsics.double(), self.height, self.width)

    @property
    def gaussians(self) -> Gaussians:
        means, quats, scales, opacities, colors = self.parameters
        return Gaussians(means, colors, scales.log(), quats, torch.logit(opacities))

    def rasterize(self, backend: Rasterize, parameters: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What a backend makes of the inputs, with its own or other parameters."""
        views = self.tensors["in/viewmats"], self.intrinsics
        return backend(*parameters, *views, self.width, self.height, self.near, self.far, self.eps2d)


def load_render_case(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> RenderCase:
    with safe_open(DATA / f"{name}.safetensors", framework="pt") as file:
        stated = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key).to(device, dtype) for key in file.keys()}  # noqa: SIM118
    near, far = stated["near_plane"], stated["far_plane"]
    return RenderCase(tensors, stated["width"], stated["height"], near, far, stated["eps2d"])


def check_case(case: RenderCase, backend: Rasterize) -> None:
    """Images, and gradients with respect to every parameter, are those of the file."""
    parameters = [value.requires_grad_() for value in case.parameters]
    colors, alphas, depths = case.rasterize(backend, parameters)
    cotangent = case.tensors["grad/cotangent_rgbd"], case.tensors["grad/cotangent_alpha"]
    loss = (torch.cat([colors, depths], dim=-1) * cotangent[0]).sum() + (alphas * cotangent[1]).sum()
    gradients = torch.autograd.grad(loss, parameters)

    images = {"out/rgb_no_background": colors, "out/alpha": alphas, "out/depth_accumulated": depths}
    errors = {name: relative_error(value.detach(), case.tensors[name]) for name, value in images.items()}
    assert max(errors.values()) < IMAGES, errors
    names = [f"grad/{name}" for name in PARAMETERS]
    errors = {name: relative_error(value, case.tensors[name]) for name, value in zip(names, gradients, strict=True)}
    assert max(errors.values()) < GRADIENTS, errors


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def random_gaussians(
    count: int, seed: int, *, batch: tuple[int, ...] = (), size: float = 0.1, sh_degree: int = 3
) -> Gaussians:
    """A cloud around the origin; sizes vary by a factor of about 20, and by as much between a Gaussian's axes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*batch, count, *shape, generator=generator)

    sh = 0.4 * normal((sh_degree + 1) ** 2, 3)
    log_scales = math.log(size) + 0.7 * normal(1) + 0.7 * normal(3)
    return Gaussians(normal(3), sh, log_scales, normal(4), 2 * normal())


def orbit(num_views: int, height: int, width: int, *, distance: float = 4.0, turn: float = 0.0) -> Cameras:
    """Cameras around the origin, looking at it; float64. The principal point is off the middle of the image."""
    angles = torch.arange(num_views, dtype=torch.float64) * 2.4 + turn
    zeros, ones = torch.zeros_like(angles), torch.ones_like(angles)
    x = torch.stack([angles.cos(), zeros, -angles.sin()], dim=-1)
    y = torch.stack([zeros, ones, zeros], dim=-1)
    z = torch.stack([angles.sin(), zeros, angles.cos()], dim=-1)
    rows = torch.stack([x, y, z, -distance * z], dim=-1)
    last = torch.stack([zeros, zeros, zeros, ones], dim=-1)[:, None]
    intrinsics = torch.tensor([0.9 * width, 0.95 * width, 0.48 * width, 0.53 * height], dtype=torch.float64)
    return Cameras(torch.cat([rows, last], dim=-2), intrinsics.expand(num_views, 4), height, width)
