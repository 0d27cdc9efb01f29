"""The trajectory through cameras and the mp4 that comes out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tttlrm.cameras import Cameras
from tttlrm.errors import UserError
from tttlrm.video import matrix_to_quaternion, quaternion_to_matrix, short_tour, trajectory, write_video


def orbit(angles: list[float], size: tuple[int, int] = (8, 8)) -> Cameras:
    """Cameras at distance 2 that look at the origin, around the y axis."""
    poses = []
    for angle in angles:
        position = torch.tensor([math.sin(angle), 0.0, -math.cos(angle)], dtype=torch.float64)
        z = -position
        y = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3] = torch.stack([torch.linalg.cross(y, z), y, z, 2 * position], dim=1)
        poses.append(pose)
    intrinsics = torch.tensor([[10.0 + i, 11.0, 4.0, 4.0] for i in range(len(angles))], dtype=torch.float64)
    return Cameras(torch.stack(poses), intrinsics, *size)


def random_rotations(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))
    return q * torch.linalg.det(q)[:, None, None]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_quaternions_and_matrices_are_inverses(seed: int) -> None:
    rotations = random_rotations(4, seed)
    signs = [[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0], [1.0, 1.0, 1.0]]
    half_turns = torch.diag_embed(torch.tensor(signs, dtype=torch.float64))
    for given_rotations in (rotations, half_turns, rotations @ half_turns):
        quaternions = matrix_to_quaternion(given_rotations)
        assert torch.allclose(quaternion_to_matrix(3 * quaternions), given_rotations, atol=1e-12)


def test_quaternion_of_a_quarter_turn() -> None:
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    quaternion = matrix_to_quaternion(turn)
    expected = torch.tensor([1.0, 0, 0, 1], dtype=torch.float64) / math.sqrt(2)
    assert torch.allclose(quaternion * quaternion[0].sign(), expected)


def test_trajectory_passes_through_every_camera_in_order() -> None:
    cameras = orbit([0.0, 0.5, 1.0, 1.5, 2.0])
    path = trajectory(cameras, 41)
    assert path.num_views == 41 and (path.height, path.width) == (8, 8)
    assert torch.allclose(path.camera_to_world[::10], cameras.camera_to_world, atol=1e-9)
    assert torch.allclose(path.intrinsics[::10], cameras.intrinsics, atol=1e-9)
    assert path.camera_to_world.dtype == torch.float64


def test_trajectory_is_rigid_smooth_and_near_the_circle() -> None:
    path = trajectory(orbit([0.0, 0.5, 1.0, 1.5, 2.0]), 201)
    rotations, positions = path.camera_to_world[:, :3, :3], path.camera_to_world[:, :3, 3]
    identity = torch.eye(3, dtype=torch.float64).expand(201, 3, 3)
    assert torch.allclose(rotations @ rotations.mT, identity, atol=1e-12)
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(201, dtype=torch.float64))
    assert torch.allclose(positions.norm(dim=1), torch.full((201,), 2.0, dtype=torch.float64), atol=0.05)
    looks_at_origin = (rotations[:, :, 2] * -positions / positions.norm(dim=1, keepdim=True)).sum(1)
    assert float(looks_at_origin.min()) > 0.999
    pace = positions.diff(dim=0).norm(dim=1)
    assert float(pace.max() / pace.min()) < 1.2
    assert float((pace.diff().abs() / pace.mean()).max()) < 0.05


def test_tour_sorts_shuffled_cameras_on_a_path() -> None:
    angles = [0.0, 1.8, 0.6, 2.4, 1.2, 0.3, 2.1, 0.9, 1.5]
    order = short_tour(orbit(angles))
    assert [angles[i] for i in order] == sorted(angles)


@pytest.mark.parametrize("angles", [[0.3], [0.3, 0.3], [0.0, math.pi], [0.0, 0.0, 1.0]])
def test_trajectory_of_few_equal_or_opposite_cameras_is_finite(angles: list[float]) -> None:
    cameras = orbit(angles)
    for num_frames in (1, 2, 7):
        path = trajectory(cameras, num_frames)
        assert torch.isfinite(path.camera_to_world).all() and torch.isfinite(path.intrinsics).all()
        assert torch.allclose(path.camera_to_world[0], cameras.camera_to_world[0], atol=1e-9)
    with pytest.raises(UserError, match="at least 1 frame"):
        trajectory(cameras, 0)


def gradient_frames(count: int, height: int, width: int) -> list[Tensor]:
    ramp = torch.linspace(0, 1, width).expand(3, height, width) * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    return [ramp * (i + 1) / count for i in range(count)]


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 33)])
def test_video_holds_the_frames(tmp_path: Path, height: int, width: int) -> None:
    av = pytest.importorskip("av")
    frames = gradient_frames(5, height, width)
    done: list[int] = []
    path = tmp_path / "trajectory.mp4"
    assert write_video(iter(frames), path, fps=10, comment="from a test", progress=done.append) == 5
    assert done == [1, 2, 3, 4, 5]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width) == (height + height % 2, width + width % 2)
        assert stream.average_rate == 10
        assert container.metadata["comment"] == "from a test"
        decoded = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert len(decoded) == 5
    for frame, picture in zip(frames, decoded, strict=True):
        error = picture[:height, :width].permute(2, 0, 1).float() / 255 - frame
        assert float(error.abs().mean()) < 0.02
    assert [p.name for p in tmp_path.iterdir()] == ["trajectory.mp4"]


def test_video_that_fails_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / "trajectory.mp4"
    with pytest.raises(UserError, match="at least one frame"):
        write_video([], path)
    with pytest.raises(UserError, match=r"frame 1 is \[3, 8, 8\], the first one \[3, 16, 16\]"):
        write_video([torch.zeros(3, 16, 16), torch.zeros(3, 8, 8)], path)
    assert list(tmp_path.iterdir()) == []
