"""Quality run of a cell: reconstruct each scene, render its test views, compare them with the truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.cells import Cell
from bench.datasets import SceneViews, load_scene
from bench.methods import Method, prune_before_showing
from bench.records import QualityResult, SceneQuality, ViewQuality
from bench.timing import StageTimer
from tttlrm.errors import DownloadError
from tttlrm.gaussians import Gaussians
from tttlrm.metrics import psnr, ssim

Lpips = Callable[[Tensor, Tensor], Tensor]
OnScene = Callable[[SceneQuality], None]
"""Called with each scene's result as soon as it is there."""


def run_quality(
    cell: Cell,
    method: Method,
    root: Path | None,
    on_scene: OnScene,
    scenes: Sequence[str] | None = None,
    leads: bool = True,
) -> QualityResult:
    """The given scenes of the cell (None: all), one after the other.

    Args:
        leads: False on the further ranks of a method that spans several: they take part in each reconstruction, and
            have no results of their own.
    """
    names = cell.dataset.scenes if scenes is None else scenes
    lpips, absent = choose_lpips(cell) if leads else (None, None)
    results = []
    for name in names:
        if not leads:
            _reconstruct(cell, method, name, root)
            continue
        results.append(_run_scene(cell, method, name, root, lpips))
        on_scene(results[-1])
    return QualityResult(scenes=tuple(results), lpips_absent=absent)


def choose_lpips(cell: Cell) -> tuple[Lpips | None, str | None]:
    """LPIPS with the true weights, or why there is none."""
    if not cell.lpips:
        return None, "not asked for (profile.lpips)"
    from tttlrm.lpips import load_lpips

    try:
        return load_lpips(cell.device), None
    except DownloadError as error:
        return None, str(error)


def compare_views(rendered: Tensor, targets: Tensor, lpips: Lpips | None) -> tuple[ViewQuality, ...]:
    """Each test view's metrics; images [V, 3, H, W] in [0, 1]."""
    distances = [None] * len(targets) if lpips is None else lpips(rendered, targets).tolist()
    values = zip(psnr(rendered, targets).tolist(), ssim(rendered, targets).tolist(), distances, strict=True)
    return tuple(ViewQuality(view=at, psnr=p, ssim=s, lpips=d) for at, (p, s, d) in enumerate(values))


def _run_scene(cell: Cell, method: Method, name: str, root: Path | None, lpips: Lpips | None) -> SceneQuality:
    from tttlrm.rendering import render

    started = time.perf_counter()
    scene, gaussians = _reconstruct(cell, method, name, root)
    with torch.inference_mode():
        kept = prune_before_showing(gaussians, cell)
        rendered = render(kept, scene.targets.cameras).images.clamp(0, 1)
        views = compare_views(rendered, scene.targets.images, lpips)
    return SceneQuality(
        scene=name,
        views=views,
        gaussians=len(gaussians),
        rendered_gaussians=len(kept),
        usage=gaussians.usage(),
        seconds=round(time.perf_counter() - started, 3),
        input_frames_from=scene.input_frames_from,
    )


def _reconstruct(cell: Cell, method: Method, name: str, root: Path | None) -> tuple[SceneViews, Gaussians]:
    scene = _on_device(load_scene(cell, name, root), cell.device)
    with torch.inference_mode():
        return scene, method.reconstruct(scene.inputs, StageTimer(cell.device))


def _on_device(scene: SceneViews, device: str) -> SceneViews:
    return replace(scene, inputs=scene.inputs.to(device), targets=scene.targets.to(device))
