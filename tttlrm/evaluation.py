"""Render the held-out views of a scene, compare them with their images, and write both down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tttlrm.cameras import Cameras, Views
from tttlrm.errors import DownloadError, UserError
from tttlrm.gaussians import Gaussians
from tttlrm.metrics import psnr, ssim
from tttlrm.outputs import Origin, write_csv, write_pair
from tttlrm.progress import Progress
from tttlrm.rendering import render
from tttlrm.stages import StageClock
from tttlrm.video import trajectory, write_video


@dataclass(frozen=True)
class ViewQuality:
    """Of one view; LPIPS is None where it is absent (see :attr:`Quality.lpips_absent`)."""

    psnr: float
    ssim: float
    lpips: float | None


@dataclass(frozen=True)
class Quality:
    """Of the test views of a scene.

    Attributes:
        views: one for each test view.
        lpips_absent: the reason why there are no LPIPS values, or None.
    """

    views: tuple[ViewQuality, ...]
    lpips_absent: str | None

    def mean(self) -> ViewQuality | None:
        """Over the views; None if there are none."""
        if not self.views:
            return None
        count = len(self.views)
        lpips = [view.lpips for view in self.views if view.lpips is not None]
        return ViewQuality(
            sum(view.psnr for view in self.views) / count,
            sum(view.ssim for view in self.views) / count,
            sum(lpips) / count if len(lpips) == count else None,
        )


def render_views(gaussians: Gaussians, cameras: Cameras, progress: Progress) -> Tensor:
    """Images [V, 3, H, W] on the CPU, one view at a time."""
    images = torch.empty(cameras.num_views, 3, cameras.height, cameras.width)
    with progress.task("render test views", cameras.num_views) as done:
        for view in range(cameras.num_views):
            images[view] = render(gaussians, cameras.select([view])).images[0].to("cpu", torch.float32)
            done(view + 1)
    return images


def measure_quality(
    rendered: Tensor, targets: Tensor, device: torch.device, with_lpips: bool, progress: Progress
) -> Quality:
    """PSNR, SSIM and LPIPS of images [V, 3, H, W] on the CPU; LPIPS runs on the device."""
    from tttlrm.lpips import Lpips, load_lpips

    lpips: Lpips | None = None
    absent = None if with_lpips else "not asked for"
    if with_lpips and len(rendered):
        try:
            lpips = load_lpips(device)
        except DownloadError as error:
            absent = str(error)
            progress.note(f"LPIPS is left out: {absent}")
    views = []
    with progress.task("measure quality", len(rendered)) as done:
        for index in range(len(rendered)):
            pair = rendered[index : index + 1], targets[index : index + 1]
            distance = None if lpips is None else float(lpips(*(image.to(device) for image in pair)))
            views.append(ViewQuality(float(psnr(*pair)), float(ssim(*pair)), distance))
            done(index + 1)
    return Quality(tuple(views), absent)


def evaluate(
    gaussians: Gaussians,
    targets: Views,
    frames: Sequence[tuple[int, str]],
    folder: Path,
    origin: Origin,
    clock: StageClock,
    with_lpips: bool,
    progress: Progress,
) -> Quality:
    """Render the test views, measure them, and write ``renders/`` and ``metrics.csv``.

    Args:
        targets: the test views, on the CPU, in the Gaussians' world.
        frames: position in the scene and file name of each test view.
    """
    device = gaussians.positions.device
    with clock.stage("render"):
        rendered = render_views(gaussians, targets.cameras.to(device), progress)
    if not bool(torch.isfinite(rendered).all()):
        raise UserError("the rendered images hold values that are not finite, so the reconstruction failed")
    with clock.stage("metrics"):
        quality = measure_quality(rendered, targets.images, device, with_lpips, progress)
    with clock.stage("write images"):
        _write_pairs(rendered, targets.images, frames, folder / "renders", origin, quality)
    _write_metrics(folder / "metrics.csv", frames, origin, quality)
    return quality


def film(
    gaussians: Gaussians, cameras: Cameras, num_frames: int, path: Path, origin: Origin, progress: Progress
) -> None:
    """An mp4 of a path through the cameras (float64), rendered frame by frame."""
    device = gaussians.positions.device
    route = trajectory(cameras, num_frames).to(device)

    def frames() -> Iterator[Tensor]:
        for frame in range(num_frames):
            yield render(gaussians, route.select([frame])).images[0]

    with progress.task("film", num_frames) as done:
        write_video(frames(), path, comment=f"Scene {origin.scene}, tttlrm, {origin.weights}", progress=done)


def describe_quality(quality: Quality, origin: Origin) -> str:
    """One line for the console."""
    mean = quality.mean()
    if mean is None:
        return "no test views, so no quality was measured"
    lpips = "absent" if mean.lpips is None else f"{mean.lpips:.4f}"
    line = f"mean of {len(quality.views)} test views: PSNR {mean.psnr:.2f} dB, SSIM {mean.ssim:.4f}, LPIPS {lpips}"
    return f"{line}; RANDOM WEIGHTS, so this says nothing about the model" if origin.random_weights else line


def _write_pairs(
    rendered: Tensor, targets: Tensor, frames: Sequence[tuple[int, str]], folder: Path, origin: Origin, quality: Quality
) -> None:
    folder.mkdir()
    for view, (frame, _) in enumerate(frames):
        caption = f"frame {frame}: target | rendering, {quality.views[view].psnr:.2f} dB"
        if origin.random_weights:
            caption = f"RANDOM WEIGHTS {caption}"
        write_pair(targets[view], rendered[view], folder / f"frame_{frame:05d}.png", caption)


def _write_metrics(path: Path, frames: Sequence[tuple[int, str]], origin: Origin, quality: Quality) -> None:
    def row(frame: object, image: str, view: ViewQuality) -> list[object]:
        lpips = None if view.lpips is None else f"{view.lpips:.6f}"
        return [frame, image, f"{view.psnr:.4f}", f"{view.ssim:.6f}", lpips, origin.weights]

    rows = [row(frame, image, view) for (frame, image), view in zip(frames, quality.views, strict=True)]
    mean = quality.mean()
    if mean is not None:
        rows.append(row("mean", "", mean))
    write_csv(path, ["frame", "image", "psnr", "ssim", "lpips", "weights"], rows)
