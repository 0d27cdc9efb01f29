"""Quality on scenes that are not trained on, while a run goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tttlrm.config import Compute, Schedule
from tttlrm.files import atomic_path
from tttlrm.metrics import psnr
from tttlrm.model import TTTLRM
from tttlrm.rendering import render
from tttlrm.scenes.procedural import ProceduralSpec
from tttlrm.training.baselines import mean_color, nearest_view
from tttlrm.training.heldout import HeldOutScenes, held_out_scenes
from tttlrm.training.settings import DataSettings, ReportSettings

_SCENES_AT_ONCE = 4


@dataclass(frozen=True)
class Validation:
    """Means over scenes and target views, in dB, and pictures of the first scenes.

    Attributes:
        psnr, mean_color, nearest_view: of the model and of the two trivial predictions.
        pictures: [3 (input, target, rendering), scenes, 3, H, W].
    """

    num_views: int
    psnr: float
    mean_color: float
    nearest_view: float
    pictures: Tensor

    @property
    def gain(self) -> float:
        """Over the better of the trivial predictions."""
        return self.psnr - max(self.mean_color, self.nearest_view)


class Validator:
    """Keeps the validation scenes of an image size; they are the same at every call."""

    def __init__(self, data: DataSettings, report: ReportSettings, device: torch.device) -> None:
        self._data = data
        self._report = report
        self._device = device
        self._scenes: dict[tuple[int, tuple[int, int]], HeldOutScenes] = {}

    @torch.no_grad()
    def __call__(
        self, model: TTTLRM, schedule: Schedule, compute: Compute, size: tuple[int, int], num_views: int
    ) -> Validation:
        scenes = self._load(size, num_views)
        values: list[Tensor] = []
        pictures = []
        for start in range(0, self._report.validation_scenes, _SCENES_AT_ONCE):
            part = scenes.select(slice(start, start + _SCENES_AT_ONCE))
            images = render(model(part.inputs, schedule, compute), part.targets.cameras).images
            predictions = (images, mean_color(part.inputs, part.targets), nearest_view(part.inputs, part.targets))
            truth = part.targets.images.flatten(0, 1)
            values.append(torch.stack([psnr(p.flatten(0, 1).to(truth), truth) for p in predictions]))
            pictures.append(torch.stack([part.inputs.images[:, 0], part.targets.images[:, 0], images[:, 0].to(truth)]))
        # A view that is predicted exactly (an empty one) must not make the mean infinite.
        ours, color, nearest = torch.cat(values, dim=1).clamp(max=60).mean(dim=1).tolist()
        return Validation(num_views, ours, color, nearest, torch.cat(pictures, dim=1).clamp(0, 1).cpu())

    def _load(self, size: tuple[int, int], num_views: int) -> HeldOutScenes:
        key = (num_views, size)
        if key not in self._scenes:
            spec = ProceduralSpec(self._data.kind, self._data.seed, "validation")
            count, targets = self._report.validation_scenes, self._report.validation_targets
            self._scenes[key] = held_out_scenes(
                spec, range(count), num_views, targets, size, self._data.poses, self._device
            )
        return self._scenes[key]


def write_contact_sheet(pictures: Tensor, path: Path) -> None:
    """A PNG of rows input | target | rendering, one for each scene. ``pictures`` as :class:`Validation` has them."""
    from PIL import Image

    columns = [torch.cat(list(column), dim=-2) for column in pictures]
    sheet = (torch.cat(columns, dim=-1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(sheet)).save(temporary)
