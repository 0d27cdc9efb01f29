"""Test views of a scene, rendered from saved Gaussians: the work behind ``tttlrm render``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tttlrm.cameras import Views
from tttlrm.errors import SceneError
from tttlrm.evaluation import describe_quality, evaluate
from tttlrm.files import write_json
from tttlrm.outputs import REPORT, Origin, staging_folder
from tttlrm.plan import check_size, choose_device
from tttlrm.ply import read_comments, read_gaussians
from tttlrm.progress import Progress
from tttlrm.reports import rendering_report
from tttlrm.scenes import load_views, read_scene
from tttlrm.scenes.selection import test_views
from tttlrm.scenes.views import scene_cameras
from tttlrm.stages import StageClock


@dataclass(frozen=True)
class RenderSettings:
    """What a user asks for; see ``tttlrm render --help``. ``size`` None: that of the reconstruction."""

    ply: Path
    scene: Path
    output: Path
    size: tuple[int, int] | None = None
    device: str = "auto"
    lpips: bool = True
    overwrite: bool = False


def render_ply(settings: RenderSettings, progress: Progress) -> None:
    """Writes the whole output folder, or raises and leaves nothing."""
    device = choose_device(settings.device)
    gaussians = read_gaussians(settings.ply)
    origin = Origin.from_ply_comments(read_comments(settings.ply), settings.ply)
    if settings.size is not None:
        origin = replace(origin, size=check_size(settings.size, 1))
    scene = read_scene(settings.scene)
    if scene.name != origin.scene:
        raise SceneError(f"{settings.ply}: was made from scene {origin.scene}, not {scene.name}")
    indices = test_views(scene)
    if not indices:
        raise SceneError(f"{scene.file}: has no test views to render")
    clock = StageClock(device)
    with staging_folder(settings.output, settings.overwrite) as staging:
        with clock.stage("read test views"), progress.task("read test views", len(indices)) as done:
            images = load_views(scene, indices, origin.size, lambda count, _: done(count)).images
        cameras = origin.normalization.move(scene_cameras(scene, indices, origin.size)).to(torch.float32)
        targets = Views(images, cameras.camera_to_world, cameras.intrinsics)
        frames = [(index, scene.frames[index].file_path) for index in indices]
        on_device = gaussians.to(device)
        quality = evaluate(on_device, targets, frames, staging, origin, clock, settings.lpips, progress)
        report = rendering_report(origin, len(gaussians), list(indices), quality, clock.to_list(), device)
        write_json(staging / REPORT, report)
    progress.note(describe_quality(quality, origin))
