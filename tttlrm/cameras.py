"""Posed views, pixel rays, and the normalisation of poses.

Conventions: OpenCV cameras (x right, y down, z forward); camera-to-world matrices 4x4; intrinsics (fx, fy, cx, cy)
in pixels, with pixel centres at +0.5; images RGB in [0, 1], channels first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tttlrm.config import PoseReference
from tttlrm.errors import UserError


@dataclass(frozen=True)
class Cameras:
    """Cameras without images, all of one image size.

    Attributes:
        camera_to_world: [..., V, 4, 4].
        intrinsics: [..., V, 4], (fx, fy, cx, cy) in pixels.
        height, width: image size in pixels.
    """

    camera_to_world: Tensor
    intrinsics: Tensor
    height: int
    width: int

    @property
    def num_views(self) -> int:
        return self.camera_to_world.shape[-3]

    @property
    def world_to_camera(self) -> Tensor:
        """[..., V, 4, 4], by the inverse of a rigid transform in the matrices' own precision.

        Raises torch.linalg.LinAlgError for a matrix without inverse, on a CPU: on a GPU that would wait for the device.
        """
        inverse: Tensor = torch.linalg.inv_ex(
            self.camera_to_world, check_errors=self.camera_to_world.device.type == "cpu"
        ).inverse
        return inverse

    def select(self, views: Tensor | list[int] | range) -> Cameras:
        """The cameras at these positions (of the V axis), in this order."""
        index = _index(views, self.intrinsics)
        return Cameras(
            self.camera_to_world.index_select(-3, index),
            self.intrinsics.index_select(-2, index),
            self.height,
            self.width,
        )

    def to(self, *args: object, **kwargs: object) -> Cameras:
        return Cameras(
            self.camera_to_world.to(*args, **kwargs),  # type: ignore[call-overload]
            self.intrinsics.to(*args, **kwargs),  # type: ignore[call-overload]
            self.height,
            self.width,
        )


@dataclass(frozen=True)
class Views:
    """Posed images of one scene (or, with leading dimensions, of a batch of scenes). Moves and shards as one.

    Attributes:
        images: [..., V, 3, H, W], RGB in [0, 1].
        camera_to_world: [..., V, 4, 4].
        intrinsics: [..., V, 4], (fx, fy, cx, cy) in pixels of these images.
    """

    images: Tensor
    camera_to_world: Tensor
    intrinsics: Tensor

    def __post_init__(self) -> None:
        lead = self.images.shape[:-3]
        if self.images.ndim < 4 or self.images.shape[-3] != 3:
            raise UserError(f"views: images must have shape [..., V, 3, H, W], not {list(self.images.shape)}")
        if self.camera_to_world.shape != (*lead, 4, 4) or self.intrinsics.shape != (*lead, 4):
            raise UserError(
                f"views: images {list(self.images.shape)}, camera_to_world {list(self.camera_to_world.shape)} and "
                f"intrinsics {list(self.intrinsics.shape)} are not of the same views"
            )

    @property
    def num_views(self) -> int:
        return self.images.shape[-4]

    @property
    def height(self) -> int:
        return self.images.shape[-2]

    @property
    def width(self) -> int:
        return self.images.shape[-1]

    @property
    def cameras(self) -> Cameras:
        return Cameras(self.camera_to_world, self.intrinsics, self.height, self.width)

    def select(self, views: Tensor | list[int] | range) -> Views:
        """The views at these positions (of the V axis), in this order."""
        if isinstance(views, range) and views.step == 1:  # without a copy, and without waiting for the device
            at = slice(views.start, views.stop)
            return Views(
                self.images[..., at, :, :, :], self.camera_to_world[..., at, :, :], self.intrinsics[..., at, :]
            )
        index = _index(views, self.images)
        return Views(
            self.images.index_select(-4, index),
            self.camera_to_world.index_select(-3, index),
            self.intrinsics.index_select(-2, index),
        )

    def to(self, *args: object, **kwargs: object) -> Views:
        """As ``Tensor.to``, for all three tensors."""
        return Views(
            self.images.to(*args, **kwargs),  # type: ignore[call-overload]
            self.camera_to_world.to(*args, **kwargs),  # type: ignore[call-overload]
            self.intrinsics.to(*args, **kwargs),  # type: ignore[call-overload]
        )


def pixel_rays(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Origins and unit directions, in world coordinates, of the rays through all pixel centres.

    Returns:
        origins, directions: each [..., V, H, W, 3].
    """
    c2w, intrinsics = cameras.camera_to_world, cameras.intrinsics
    x = torch.arange(cameras.width, dtype=c2w.dtype, device=c2w.device) + 0.5
    y = torch.arange(cameras.height, dtype=c2w.dtype, device=c2w.device) + 0.5
    fx, fy, cx, cy = intrinsics.to(c2w.dtype)[..., None, None, :].unbind(-1)
    camera_x = (x[None, :] - cx) / fx
    camera_y = (y[:, None] - cy) / fy
    shape = torch.broadcast_shapes(camera_x.shape, camera_y.shape)
    camera = torch.stack(
        [camera_x.expand(shape), camera_y.expand(shape), torch.ones(shape, dtype=c2w.dtype, device=c2w.device)], dim=-1
    )
    directions = torch.einsum("...ij,...hwj->...hwi", c2w[..., :3, :3], camera)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    origins = c2w[..., None, None, :3, 3].expand_as(directions)
    return origins, directions


def ray_images(views: Views) -> Tensor:
    """The model's input channels: origin, direction, origin x direction, 2 rgb - 1. [..., V, H, W, 12]."""
    origins, directions = pixel_rays(views.cameras)
    colors = views.images.movedim(-3, -1) * 2 - 1
    return torch.cat([origins, directions, torch.linalg.cross(origins, directions), colors.to(origins.dtype)], dim=-1)


@dataclass(frozen=True)
class PoseNormalization:
    """Maps a scene's world to the model's: rigid transform to a reference camera, then division by ``scale``."""

    world_to_reference: Tensor
    scale: float

    def apply(self, camera_to_world: Tensor) -> Tensor:
        """The poses [..., 4, 4] of a scene, expressed in the normalised world."""
        moved = self.world_to_reference.to(camera_to_world) @ camera_to_world
        moved[..., :3, 3] /= self.scale
        return moved

    def move(self, cameras: Cameras) -> Cameras:
        """The cameras of a scene, in the normalised world."""
        return replace(cameras, camera_to_world=self.apply(cameras.camera_to_world))


def mean_camera(camera_to_world: Tensor) -> Tensor:
    """A camera-to-world matrix [4, 4] in the middle of the given ones [V, 4, 4]."""
    z = _unit(camera_to_world[:, :3, 2].sum(0))
    x = _unit(torch.linalg.cross(camera_to_world[:, :3, 1].sum(0), z))
    y = _unit(torch.linalg.cross(z, x))
    mean = torch.eye(4).to(camera_to_world)
    mean[:3] = torch.stack([x, y, z, camera_to_world[:, :3, 3].mean(0)], dim=1)
    return mean


def normalize_poses(camera_to_world: Tensor, reference: PoseReference) -> PoseNormalization:
    """The evaluation's normalisation, from all cameras of a scene together (inputs and targets).

    Args:
        camera_to_world: [V, 4, 4]. Use float64; the inverse is taken in its precision.
        reference: the ``mean`` camera (full schedule) or the ``first`` one (ar schedule) becomes the origin, and the
            scale is the largest absolute coordinate of a camera position in its frame. ``scene`` changes nothing.
    """
    if reference == "scene":
        return PoseNormalization(torch.eye(4, dtype=camera_to_world.dtype, device=camera_to_world.device), 1.0)
    if reference not in ("mean", "first"):
        raise UserError(f"reference must be mean, first or scene, not {reference!r}")
    frame = mean_camera(camera_to_world) if reference == "mean" else camera_to_world[0]
    world_to_reference = torch.linalg.inv(frame)
    positions = (world_to_reference @ camera_to_world)[:, :3, 3]
    scale = float(positions.abs().max())
    if not scale > 0:
        raise UserError("cannot normalise poses: all cameras are at the same position")
    return PoseNormalization(world_to_reference, scale)


def _unit(vector: Tensor) -> Tensor:
    norm = vector.norm()
    if not norm > 1e-8:
        raise UserError("cannot take the mean of the cameras: their axes cancel out; use the first camera as reference")
    return vector / norm


def _index(views: Tensor | list[int] | range, like: Tensor) -> Tensor:
    views = views if isinstance(views, Tensor) else torch.tensor(list(views), dtype=torch.int64)
    return views.to(like.device)
