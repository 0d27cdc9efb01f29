"""Poses, rays and their normalisation: golden values, and properties of any set of cameras."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tttlrm.cameras import Cameras, Views, mean_camera, normalize_poses, pixel_rays, ray_images
from tttlrm.errors import UserError

GOLDEN = Path(__file__).parents[1] / "data" / "pose_normalization.json"


def random_poses(seed: int, count: int, spread: float = 1.0) -> Tensor:
    """[count, 4, 4] float64 rigid camera-to-world, all looking roughly along +z so that their mean exists."""
    generator = torch.Generator().manual_seed(seed)
    skew = torch.zeros(count, 3, 3, dtype=torch.float64)
    angles = 0.4 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = angles.unbind(-1)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, :3] = torch.linalg.matrix_exp(skew - skew.mT)
    poses[:, :3, 3] = spread * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return poses


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def views_of(poses: Tensor, height: int = 4, width: int = 6) -> Views:
    count = len(poses)
    intrinsics = torch.tensor([[5.0, 7.0, 2.5, 1.75]], dtype=poses.dtype).repeat(count, 1)
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))
    return Views(images.to(poses.dtype), poses, intrinsics)


@pytest.mark.parametrize(("reference", "key"), [("mean", "mean_cam"), ("first", "first_cam")])
def test_normalization_matches_golden(reference: Any, key: str) -> None:
    values = golden()
    poses = torch.tensor(values["c2w"], dtype=torch.float64)
    expected = values[key]
    normalization = normalize_poses(poses, reference)
    assert abs(normalization.scale * expected["scale"] - 1) < 1e-12  # the file holds the factor, not the divisor
    if reference == "mean":  # for the first camera, the file holds the (identity) pose after normalisation instead
        world_to_reference = torch.tensor(expected["world_to_reference"], dtype=torch.float64)
        torch.testing.assert_close(normalization.world_to_reference, world_to_reference, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        normalization.apply(poses), torch.tensor(expected["c2w"], dtype=torch.float64), rtol=0, atol=1e-12
    )


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(2, 12),
    spread=st.floats(1e-3, 1e3),
    reference=st.sampled_from(["mean", "first"]),
)
def test_normalization_keeps_relative_poses(seed: int, count: int, spread: float, reference: Any) -> None:
    poses = random_poses(seed, count, spread)
    before = poses.clone()
    normalization = normalize_poses(poses, reference)
    moved = normalization.apply(poses)
    assert torch.equal(poses, before)  # the caller's poses are not changed in place
    assert abs(float(moved[:, :3, 3].abs().max()) - 1) < 1e-9

    relative = torch.linalg.inv(poses[:1]) @ poses
    moved_relative = torch.linalg.inv(moved[:1]) @ moved
    torch.testing.assert_close(moved_relative[:, :3, :3], relative[:, :3, :3], rtol=0, atol=1e-9)
    torch.testing.assert_close(
        moved_relative[:, :3, 3] * normalization.scale, relative[:, :3, 3], rtol=0, atol=1e-9 * spread
    )
    rotations = moved[:, :3, :3]
    torch.testing.assert_close(
        rotations @ rotations.mT, torch.eye(3, dtype=torch.float64).expand_as(rotations), rtol=0, atol=1e-9
    )
    if reference == "first":
        torch.testing.assert_close(moved[0], torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), count=st.integers(2, 12), reference=st.sampled_from(["mean", "first"]))
def test_normalization_does_not_depend_on_the_world(seed: int, count: int, reference: Any) -> None:
    """Moving, turning and scaling the whole scene changes nothing."""
    poses = random_poses(seed, count)
    world = random_poses(seed + 1, 1)[0]
    elsewhere = world @ poses
    elsewhere[:, :3, 3] *= 3.7
    torch.testing.assert_close(
        normalize_poses(elsewhere, reference).apply(elsewhere),
        normalize_poses(poses, reference).apply(poses),
        rtol=0,
        atol=1e-9,
    )


def test_mean_of_equal_cameras_is_that_camera() -> None:
    pose = random_poses(3, 1)
    torch.testing.assert_close(mean_camera(pose.repeat(5, 1, 1)), pose[0], rtol=0, atol=1e-12)


def test_cameras_in_one_place_cannot_be_normalised() -> None:
    with pytest.raises(UserError, match="same position"):
        normalize_poses(torch.eye(4, dtype=torch.float64).repeat(3, 1, 1), "first")


def test_a_singular_pose_has_no_inverse() -> None:
    flat = Cameras(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4), 8, 8)
    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        _ = flat.world_to_camera


def test_opposite_cameras_have_no_mean() -> None:
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    poses[1, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    poses[1, 0, 3] = 1
    with pytest.raises(UserError, match="first camera"):
        normalize_poses(poses, "mean")
    assert normalize_poses(poses, "first").scale == 1


def test_unknown_reference_is_refused() -> None:
    with pytest.raises(UserError, match="'median'"):
        normalize_poses(random_poses(0, 3), "median")  # type: ignore[arg-type]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 4))
def test_rays_are_unit_and_project_back_to_pixel_centres(seed: int, count: int) -> None:
    views = views_of(random_poses(seed, count))
    origins, directions = pixel_rays(views.cameras)
    assert origins.shape == directions.shape == (count, 4, 6, 3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(count, 4, 6, dtype=torch.float64))

    points = origins + 2.5 * directions
    world_to_camera = views.cameras.world_to_camera[:, None, None]
    camera = (world_to_camera[..., :3, :3] @ points[..., None])[..., 0] + world_to_camera[..., :3, 3]
    fx, fy, cx, cy = views.intrinsics[0]
    assert bool((camera[..., 2] > 0).all())
    x = fx * camera[..., 0] / camera[..., 2] + cx
    y = fy * camera[..., 1] / camera[..., 2] + cy
    torch.testing.assert_close(x, (torch.arange(6, dtype=torch.float64) + 0.5).expand_as(x), rtol=0, atol=1e-9)
    torch.testing.assert_close(y, (torch.arange(4, dtype=torch.float64) + 0.5)[:, None].expand_as(y), rtol=0, atol=1e-9)


def test_ray_images_hold_rays_moments_and_colours() -> None:
    views = views_of(random_poses(5, 2))
    channels = ray_images(views)
    origins, directions = pixel_rays(views.cameras)
    assert channels.shape == (2, 4, 6, 12)
    assert torch.equal(channels[..., :3], origins)
    assert torch.equal(channels[..., 3:6], directions)
    moments = channels[..., 6:9]  # orthogonal to both, and of the length of their parallelogram
    torch.testing.assert_close((moments * directions).sum(-1), torch.zeros(2, 4, 6, dtype=torch.float64))
    torch.testing.assert_close(moments, torch.linalg.cross(origins, directions))
    torch.testing.assert_close(channels[..., 9:], views.images.movedim(1, -1) * 2 - 1)


def test_rays_of_a_batch_are_those_of_its_scenes() -> None:
    scenes = [views_of(random_poses(seed, 3)) for seed in (1, 2)]
    batch = Views(
        torch.stack([scene.images for scene in scenes]),
        torch.stack([scene.camera_to_world for scene in scenes]),
        torch.stack([scene.intrinsics for scene in scenes]),
    )
    channels = ray_images(batch)
    for index, scene in enumerate(scenes):
        torch.testing.assert_close(channels[index], ray_images(scene))


def test_select_takes_views_in_the_order_asked_for() -> None:
    views = views_of(random_poses(4, 4))
    chosen = views.select([2, 0])
    assert torch.equal(chosen.images, views.images[[2, 0]])
    assert torch.equal(chosen.cameras.camera_to_world, views.camera_to_world[[2, 0]])
    assert torch.equal(views.cameras.select(range(1, 3)).intrinsics, views.intrinsics[1:3])
    assert chosen.to(torch.float32).intrinsics.dtype == torch.float32


def test_cameras_move_as_one() -> None:
    cameras: Cameras = views_of(random_poses(4, 4)).cameras.to(torch.float32)
    assert cameras.camera_to_world.dtype == cameras.intrinsics.dtype == torch.float32
    assert (cameras.num_views, cameras.height, cameras.width) == (4, 4, 6)


@pytest.mark.parametrize(
    ("images", "poses", "intrinsics"),
    [
        ((2, 4, 6, 3), (2, 4, 4), (2, 4)),  # channels last
        ((3, 6), (4, 4), (4,)),  # too few dimensions
        ((6,), (4, 4), (4,)),
        ((2, 3, 4, 6), (3, 4, 4), (2, 4)),
        ((2, 3, 4, 6), (2, 4, 4), (2, 3)),
    ],
)
def test_misshapen_views_are_refused(images: Any, poses: Any, intrinsics: Any) -> None:
    with pytest.raises(UserError, match="views: images"):
        Views(torch.zeros(images), torch.zeros(poses), torch.zeros(intrinsics))
