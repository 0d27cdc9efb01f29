"""Which pixels each projected Gaussian can touch: runs of pixels in image rows, by groups of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tttlrm.rendering.projection import Projection

MIN_ALPHA = 1 / 255
"""A Gaussian is left out of the pixels where its alpha is below this."""

# Rounding must not cut off a pixel that the exact test of alpha would keep.
_SLACK = 1e-4
_PIXEL_SLACK = 0.01


@dataclass(frozen=True)
class Footprints:
    """M Gaussians that touch the image, front to back (equal depths: in their original order).

    Attributes:
        gaussians: [M] int64, their indices among all.
        means: [M, 2], in pixels.
        conics: [M, 3], (xx, xy, yy).
        opacities: [M].
        reach: [M], the squared Mahalanobis distance at which alpha falls below 1/255, and a little more.
        slope: [M], how far the middle of the ellipse's rows moves in x for a step in y.
        variance_y: [M], variance in y, in square pixels.
        variance_row: [M], variance in x within a row.
        first_row, num_rows: [M] int64, image rows touched.
        width, height: of the image.
    """

    gaussians: Tensor
    means: Tensor
    conics: Tensor
    opacities: Tensor
    reach: Tensor
    slope: Tensor
    variance_y: Tensor
    variance_row: Tensor
    first_row: Tensor
    num_rows: Tensor
    width: int
    height: int

    def groups(self, budget: int) -> Iterator[slice]:
        """Consecutive Gaussians, front to back, that touch at most ``budget`` pixels together, or a single one."""
        half_width = (self.reach * self.variance_row).sqrt()
        pixels = self.num_rows * (2 * half_width + 2).clamp(max=self.width).to(torch.int64)
        ends = pixels.cumsum(0).cpu()
        start = done = 0
        while start < len(ends):
            end = max(int(torch.searchsorted(ends, done + budget, right=True)), start + 1)
            yield slice(start, end)
            start, done = end, int(ends[end - 1])

    def runs(self, group: slice) -> Runs:
        """The rows of a group's ellipses."""
        num_rows = self.num_rows[group]
        total = int(num_rows.sum())
        owner = torch.repeat_interleave(num_rows, output_size=total)
        first = self.first_row[group] - (num_rows.cumsum(0) - num_rows)
        row = torch.arange(total, device=owner.device) + first[owner]
        owner = owner + group.start
        dy = row + 0.5 - self.means[owner, 1]
        middle = self.means[owner, 0] + self.slope[owner] * dy
        room = (self.reach[owner] - dy * dy / self.variance_y[owner]).clamp_min(0)
        start, end = _pixel_range(middle, (room * self.variance_row[owner]).sqrt(), self.width)
        return Runs(owner, row, start, end)


@dataclass(frozen=True)
class Runs:
    """R horizontal runs of pixels, each of one Gaussian; by Gaussian, then by row.

    Attributes:
        owner: [R] int64, position in :class:`Footprints`.
        row: [R] int64, image row.
        start, end: [R] int64, columns from start to before end.
    """

    owner: Tensor
    row: Tensor
    start: Tensor
    end: Tensor


def find_footprints(projection: Projection, opacities: Tensor, width: int, height: int) -> Footprints:
    """Bound the pixels where each Gaussian's alpha can reach 1/255. Gaussians without any are left out.

    Gaussians whose projection is not finite, or whose opacity is not a number, touch nothing.
    """
    xx, xy, yy = projection.covariances.unbind(-1)
    reach = 2 * torch.log(opacities / MIN_ALPHA)
    visible = projection.in_range & (reach >= 0) & projection.conics.isfinite().all(-1)
    reach = reach * (1 + _SLACK) + _SLACK
    first_row, end_row = _pixel_range(projection.means[:, 1], (reach * yy).sqrt(), height)
    first_column, end_column = _pixel_range(projection.means[:, 0], (reach * xx).sqrt(), width)
    visible &= (end_row > first_row) & (end_column > first_column)

    index = visible.nonzero().squeeze(-1)
    index = index[torch.sort(projection.depths[index], stable=True).indices]
    return Footprints(
        gaussians=index,
        means=projection.means[index],
        conics=projection.conics[index],
        opacities=opacities[index],
        reach=reach[index],
        slope=(xy / yy)[index],
        variance_y=yy[index],
        variance_row=(projection.determinants / yy)[index],
        first_row=first_row[index],
        num_rows=(end_row - first_row)[index],
        width=width,
        height=height,
    )


def _pixel_range(middle: Tensor, radius: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First pixel, and the one after the last, whose centre is within the radius; an empty range where not finite."""
    radius = radius + _PIXEL_SLACK
    start = torch.ceil(middle - radius - 0.5).nan_to_num(size).clamp(0, size).to(torch.int64)
    end = torch.floor(middle + radius + 0.5).nan_to_num(0).clamp(0, size).to(torch.int64)
    return start, torch.maximum(start, end)
