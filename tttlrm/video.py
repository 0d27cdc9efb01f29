"""A camera path through the input cameras, and H.264 video."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tttlrm.cameras import Cameras
from tttlrm.errors import BackendUnavailableError, UserError
from tttlrm.files import atomic_path

CODEC = "libx264"


def trajectory(cameras: Cameras, num_frames: int) -> Cameras:
    """A smooth path through all cameras of a scene, at an even pace.

    The cameras are visited in the order of a short tour that begins at the first one, because input views need not be
    sorted along a path. Between them, positions and orientations follow cubic Hermite curves, and intrinsics straight
    lines. The pace is even in distance plus turning angle.

    Args:
        cameras: camera_to_world [V, 4, 4], rigid; intrinsics [V, 4].
        num_frames: at least 1. The first frame is the tour's first camera and the last its last.

    Returns:
        Cameras of the same size, camera_to_world [num_frames, 4, 4], in the input's dtype.
    """
    if num_frames < 1:
        raise UserError(f"a trajectory needs at least 1 frame, not {num_frames}")
    order = short_tour(cameras)
    poses = cameras.camera_to_world.to("cpu", torch.float64)[order]
    intrinsics = cameras.intrinsics.to("cpu", torch.float64)[order]
    steps = _pose_distances(poses, _scene_scale(poses)).diagonal(1)
    # Identical neighbours would make a knot interval of zero length.
    knots = torch.cat([torch.zeros(1, dtype=torch.float64), steps.clamp_min(1e-6).cumsum(0)])
    times = torch.linspace(0, float(knots[-1]), num_frames, dtype=torch.float64)
    quaternions = _continuous(matrix_to_quaternion(poses[:, :3, :3]))
    moved = torch.eye(4, dtype=torch.float64).repeat(num_frames, 1, 1)
    moved[:, :3, 3] = _hermite(knots, poses[:, :3, 3], times)
    moved[:, :3, :3] = quaternion_to_matrix(_hermite(knots, quaternions, times))
    segment, weight = _locate(knots, times)
    following = (segment + 1).clamp_max(len(knots) - 1)
    between = torch.lerp(intrinsics[segment], intrinsics[following], weight[:, None])
    return Cameras(moved.to(cameras.camera_to_world), between.to(cameras.intrinsics), cameras.height, cameras.width)


def short_tour(cameras: Cameras) -> list[int]:
    """An order of the cameras [V] in which neighbours are close: nearest neighbour first, then 2-opt exchanges."""
    poses = cameras.camera_to_world.to("cpu", torch.float64)
    distance = _pose_distances(poses, _scene_scale(poses)).tolist()
    order, left = [0], set(range(1, len(poses)))
    while left:
        nearest = min(left, key=lambda view: (distance[order[-1]][view], view))
        order.append(nearest)
        left.remove(nearest)
    while _shorten(order, distance):
        pass
    return order


def _shorten(order: list[int], distance: list[list[float]]) -> bool:
    """Reverse the first stretch whose reversal makes the open tour shorter; False when there is none."""
    last = len(order) - 1
    for start in range(1, last):
        for end in range(start + 1, last + 1):
            before, first, final = order[start - 1], order[start], order[end]
            gain = distance[before][first] - distance[before][final]
            if end < last:
                gain += distance[final][order[end + 1]] - distance[first][order[end + 1]]
            if gain > 1e-9:
                order[start : end + 1] = order[start : end + 1][::-1]
                return True
    return False


def write_video(
    frames: Iterable[Tensor],
    path: Path,
    *,
    fps: int = 24,
    comment: str = "",
    progress: Callable[[int], None] | None = None,
) -> int:
    """Encode frames as H.264 in an mp4 file that browsers play, atomically.

    Args:
        frames: at least one image [3, H, W] in [0, 1] (clipped), all of one size. H.264 with 4:2:0 colour needs even
            sizes: an odd last row or column is repeated once.
        comment: written into the file's metadata.
        progress: called with the number of frames done, after each.

    Returns:
        The number of frames.

    Raises:
        BackendUnavailableError: PyAV is not installed, or was built without libx264.
    """
    av = _import_av()
    count = 0
    options = {"movflags": "+faststart"}
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4", options=options) as container:
        if comment:
            container.metadata["comment"] = comment
        stream = None
        size = None
        for frame in frames:
            if stream is None:
                size = frame.shape
                stream = _add_stream(av, container, frame, fps)
            if frame.ndim != 3 or frame.shape != size:
                first = list(size or ())
                raise UserError(f"{path.name}: frame {count} is {list(frame.shape)}, the first one {first}")
            picture = av.VideoFrame.from_ndarray(_to_even_rgb(frame).numpy(), format="rgb24")
            picture.pts = count
            container.mux(stream.encode(picture))
            count += 1
            if progress:
                progress(count)
        if stream is None:
            raise UserError(f"{path.name}: a video needs at least one frame")
        container.mux(stream.encode())
    return count


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise BackendUnavailableError(f"mp4 video needs PyAV ({error}): pip install av") from error
    if CODEC not in av.codecs_available:
        raise BackendUnavailableError(f"the installed PyAV {av.__version__} was built without {CODEC}: pip install av")
    return av


def _add_stream(av: Any, container: Any, frame: Tensor, fps: int) -> Any:
    stream = container.add_stream(CODEC, rate=fps)
    stream.height, stream.width = (size + size % 2 for size in frame.shape[-2:])
    stream.pix_fmt = "yuv420p"
    stream.options = {"crf": "16", "preset": "medium"}
    # RGB is converted with the BT.601 matrix; say so, or players guess by the picture's size.
    stream.codec_context.colorspace = av.video.reformatter.Colorspace.ITU601
    stream.codec_context.color_range = av.video.reformatter.ColorRange.MPEG
    return stream


def _to_even_rgb(frame: Tensor) -> Tensor:
    """[3, H, W] floats to contiguous bytes [H', W', 3] with even H' and W'."""
    height, width = frame.shape[-2:]
    padded = torch.nn.functional.pad(frame[None], (0, width % 2, 0, height % 2), mode="replicate")[0]
    return (padded.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(1, 2, 0).contiguous()


def _scene_scale(poses: Tensor) -> float:
    """The cameras' spread, so that a distance of 1 is about the size of the scene."""
    positions = poses[:, :3, 3]
    return max(float((positions - positions.mean(0)).norm(dim=1).max()), 1e-9)


def _pose_distances(poses: Tensor, scale: float) -> Tensor:
    """[V, V]: distance in units of ``scale`` plus the angle of rotation in radians."""
    rotations, positions = poses[:, :3, :3], poses[:, :3, 3] / scale
    trace = torch.einsum("aij,bij->ab", rotations, rotations)
    angle = ((trace - 1) / 2).clamp(-1, 1).acos()
    return (positions[:, None] - positions[None]).norm(dim=-1) + angle


def _locate(knots: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """For each time, the knot interval that it lies in and where in it (0 to 1)."""
    if len(knots) == 1:
        return torch.zeros(len(times), dtype=torch.int64), torch.zeros_like(times)
    segment = (torch.searchsorted(knots, times, right=True) - 1).clamp(0, len(knots) - 2)
    return segment, (times - knots[segment]) / (knots[segment + 1] - knots[segment])


def _hermite(knots: Tensor, values: Tensor, times: Tensor) -> Tensor:
    """Cubic curves through values [V, D] at the knots [V], with the slopes of a parabola through three neighbours."""
    if len(knots) == 1:
        return values.expand(len(times), -1)
    length = knots.diff()[:, None]
    slope = values.diff(dim=0) / length
    inner = (slope[:-1] * length[1:] + slope[1:] * length[:-1]) / (length[:-1] + length[1:])
    tangent = torch.cat([slope[:1], inner, slope[-1:]])
    segment, weight = _locate(knots, times)
    t, h = weight[:, None], length[segment]
    return (
        (1 + 2 * t) * (1 - t) ** 2 * values[segment]
        + t * (1 - t) ** 2 * h * tangent[segment]
        + t**2 * (3 - 2 * t) * values[segment + 1]
        + t**2 * (t - 1) * h * tangent[segment + 1]
    )


def _continuous(quaternions: Tensor) -> Tensor:
    """The same rotations [V, 4], with signs such that each quaternion is the nearer one to its predecessor."""
    signs = torch.ones(len(quaternions), dtype=quaternions.dtype)
    flips = (quaternions[1:] * quaternions[:-1]).sum(-1) < 0
    signs[1:] = torch.where(flips, -1.0, 1.0).to(quaternions.dtype).cumprod(0)
    return quaternions * signs[:, None]


def matrix_to_quaternion(rotations: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] to unit quaternions (w, x, y, z) [..., 4].

    The quaternion is the eigenvector, for the largest eigenvalue, of a symmetric matrix made of the rotation's
    elements; this is well conditioned for every rotation.
    """
    m = rotations
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    rows = [
        torch.stack([xx + yy + zz, wx, wy, wz], dim=-1),
        torch.stack([wx, xx - yy - zz, xy, xz], dim=-1),
        torch.stack([wy, xy, yy - xx - zz, yz], dim=-1),
        torch.stack([wz, xz, yz, zz - xx - yy], dim=-1),
    ]
    return torch.linalg.eigh(torch.stack(rows, dim=-2)).eigenvectors[..., -1]


def quaternion_to_matrix(quaternions: Tensor) -> Tensor:
    """Quaternions (w, x, y, z) [..., 4], normalised here, to rotation matrices [..., 3, 3]."""
    w, x, y, z = (quaternions / quaternions.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)
