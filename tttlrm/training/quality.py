"""Quality of a model on scenes: per scene (or per view of a capture), beside the trivial predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tttlrm.cameras import Views
from tttlrm.config import Compute, PoseReference, Schedule
from tttlrm.errors import SceneError
from tttlrm.lpips import Lpips
from tttlrm.metrics import psnr, ssim
from tttlrm.model import TTTLRM
from tttlrm.rendering import render
from tttlrm.scenes import load_split, read_scene, select_views
from tttlrm.scenes.procedural import ProceduralBatch, ProceduralSpec
from tttlrm.training.baselines import mean_color, nearest_view
from tttlrm.training.heldout import HeldOutScenes, make_trajectories, split_scenes

MAX_PSNR = 60.0
"""A view that a trivial prediction hits exactly must not make a mean infinite."""


@dataclass(frozen=True)
class Unit:
    """Means over the target views of a scene, or the values of a single view of a capture.

    Attributes:
        index: of the scene in its split, or of the frame in the capture.
        depth_error: mean over surface pixels of |predicted - true| / true, each at most 1; None for captures.
        mean_color, nearest_view: PSNR of the trivial predictions.
    """

    index: int
    psnr: float
    ssim: float
    lpips: float | None
    depth_error: float | None
    mean_color: float
    nearest_view: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Runner:
    """A model and how it is run."""

    model: TTTLRM
    schedule: Schedule
    compute: Compute
    device: torch.device
    lpips: Lpips | None

    @torch.no_grad()
    def predict(self, inputs: Views, targets: Views) -> tuple[Tensor, Tensor]:
        """Renderings [R, 3, H, W] and depths [R, 1, H, W] of one scene's target views."""
        gaussians = self.model(inputs, self.schedule, self.compute)
        rendering = render(gaussians, targets.cameras)
        return rendering.images, rendering.depths / rendering.alphas.clamp(min=1e-3)


Pictures = Callable[[int, Tensor], None]
"""Called with a scene's index and [3 (input, target, rendering), 3, H, W], on the CPU."""


class TestScenes:
    """The test scenes of a kind, made once for all models and numbers of views."""

    __test__ = False  # not a test case, whatever its name says

    def __init__(self, count: int, size: tuple[int, int], device: torch.device) -> None:
        self._count = count
        self._size = size
        self._device = device
        self._made: dict[tuple[ProceduralSpec, int], ProceduralBatch] = {}

    def __call__(self, spec: ProceduralSpec) -> Iterator[tuple[int, ProceduralBatch]]:
        """Index and views of each scene, all in a batch of one."""
        for index in range(self._count):
            key = (spec, index)
            if key not in self._made:
                self._made[key] = make_trajectories(spec, [index], self._size, self._device)
            yield index, self._made[key]


def measure_procedural(
    runner: Runner,
    scenes: Iterable[tuple[int, ProceduralBatch]],
    num_views: int,
    num_targets: int,
    poses: PoseReference,
    pictures: Pictures,
) -> list[Unit]:
    """One unit for each scene."""
    units = []
    for index, batch in scenes:
        scene = split_scenes(batch, num_views, num_targets, poses)
        columns, images = _measure(runner, _first(scene.inputs), _first(scene.targets), scene)
        units.append(_unit(index, {name: None if v is None else float(v.mean()) for name, v in columns.items()}))
        pictures(index, _strip(_first(scene.inputs), _first(scene.targets), images))
    return units


def measure_capture(
    runner: Runner, path: Path, num_views: int, size: tuple[int, int], poses: PoseReference, pictures: Pictures
) -> list[Unit]:
    """One unit for each test view of a capture."""
    scene = read_scene(path)
    split = select_views(scene, num_views)
    if not split.targets:
        raise SceneError(f"{scene.file}: has no test views")
    loaded = load_split(scene, split, size, poses)
    inputs, targets = loaded.inputs.to(runner.device), loaded.targets.to(runner.device)
    columns, images = _measure(runner, inputs, targets, None)
    for position, index in enumerate(split.targets):
        pictures(index, _strip(inputs, targets.select(range(position, position + 1)), images[position : position + 1]))
    return [
        _unit(index, {name: None if v is None else float(v[at]) for name, v in columns.items()})
        for at, index in enumerate(split.targets)
    ]


def capture_size(path: Path, longest: int, multiple: int) -> tuple[int, int]:
    """(height, width) of a capture's first image scaled to a longer side of ``longest``, in multiples."""
    frame = read_scene(path).frames[0]
    scale = longest / max(frame.width, frame.height)
    height, width = (max(1, round(n * scale / multiple)) * multiple for n in (frame.height, frame.width))
    return height, width


def _measure(
    runner: Runner, inputs: Views, targets: Views, truth: HeldOutScenes | None
) -> tuple[dict[str, Tensor | None], Tensor]:
    images, depths = runner.predict(inputs, targets)
    expected = targets.images
    images = images.to(expected)
    columns = {
        "psnr": psnr(images, expected).clamp(max=MAX_PSNR),
        "ssim": ssim(images, expected),
        "lpips": None if runner.lpips is None else runner.lpips(images, expected),
        "depth_error": None if truth is None else _depth_error(depths, truth.depths[0], truth.masks[0]),
        "mean_color": psnr(mean_color(inputs, targets), expected).clamp(max=MAX_PSNR),
        "nearest_view": psnr(nearest_view(inputs, targets), expected).clamp(max=MAX_PSNR),
    }
    return columns, images


def _unit(index: int, values: dict[str, float | None]) -> Unit:
    return Unit(index, **values)  # type: ignore[arg-type]  # only lpips and depth_error can be None


def _depth_error(predicted: Tensor, truth: Tensor, masks: Tensor) -> Tensor | None:
    """[1], over the pixels of all views that show a surface all over; None if there are none."""
    inside = masks > 0.999
    if not bool(inside.any()):
        return None
    error = ((predicted - truth).abs() / truth.clamp(min=1e-6)).clamp(max=1)
    return error[inside].mean()[None]


def _first(views: Views) -> Views:
    return Views(views.images[0], views.camera_to_world[0], views.intrinsics[0])


def _strip(inputs: Views, targets: Views, images: Tensor) -> Tensor:
    return torch.stack([inputs.images[0], targets.images[0], images[0]]).clamp(0, 1).float().cpu()
