"""A method of someone else's, as docs/adding-a-method.md describes it: each view's pixels on a plane before it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.cells import Cell
from bench.timing import StageTimer
from tttlrm.cameras import Views, pixel_rays
from tttlrm.gaussians import Gaussians


@dataclass(frozen=True)
class Billboards:
    """``distance``: of the planes from their cameras."""

    distance: float
    stages: tuple[str, ...] = ("place", "paint")

    def reconstruct(self, views: Views, timer: StageTimer) -> Gaussians:
        with timer.stage("place"):
            origins, directions = (rays.flatten(0, -2) for rays in pixel_rays(views.cameras))
            positions = origins + self.distance * directions
        with timer.stage("paint"):
            count = len(positions)
            sizes = torch.full((count, 3), math.log(self.distance / float(views.intrinsics[0, 0])))
            sh = (views.images.movedim(1, -1).reshape(count, 1, 3) - 0.5) / 0.28209479177387814
            upright = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(count, 4)
            return Gaussians(positions, sh, sizes, upright, torch.full((count,), 2.0))


def build(cell: Cell, weights: Path | None) -> Billboards:
    return Billboards(**cell.model)
