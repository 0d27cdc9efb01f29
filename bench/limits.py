"""What keeps a small model of objects from the truth: its quality with parts of its answer put right.

    python -m bench.limits tttlrm/weights/tiny-object.safetensors -o limits.md

Each row is the mean PSNR over test scenes, of the target views and of the model's own input views. A row that uses what
a reconstruction cannot know (true distances, other views, true surfaces) says how much could be gained there.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cells import PostOptimization
from bench.postoptimization import TENSORS, optimize
from tttlrm.cameras import Cameras, Views, pixel_rays
from tttlrm.checkpoints import digest, load_model
from tttlrm.config import Compute
from tttlrm.errors import UserError
from tttlrm.files import write_text
from tttlrm.gaussians import Gaussians
from tttlrm.metrics import psnr
from tttlrm.model import patchify
from tttlrm.progress import Bars
from tttlrm.rendering import render
from tttlrm.scenes.procedural import ProceduralSpec
from tttlrm.training.figures import bootstrap
from tttlrm.training.heldout import make_trajectories, split_views
from tttlrm.training.quality import MAX_PSNR
from tttlrm.training.summary import git_commit
from tttlrm.training.trained import TrainedModel, find_trained

TOLERANCE = 0.02
"""A point is seen by a camera whose image has a surface at its distance, to this share of it."""
_RATES = {"positions": 3e-3, "sh": 2e-2, "log_scales": 5e-2, "quaternions": 2e-2, "opacity_logits": 0.1}
_FITTED = {
    "opacities": ("opacity_logits",),
    "sizes and rotations": ("log_scales", "quaternions"),
    "colours": ("sh",),
    "positions": ("positions",),
    "all": TENSORS,
}
_VIEWS_PER_STEP = 3

Row = tuple[float, float | None]
"""PSNR of the target views, and of the input views where that means anything."""


@dataclass(frozen=True)
class Truth:
    """A test scene and what is known of it.

    Attributes:
        inputs, targets: [V, ...], [R, ...].
        more: the inputs and all views of the scene that are no targets.
        input_depths, input_masks: [V, 1, H, W], camera z and share of the pixel that shows a surface.
        target_depths, target_masks: [R, 1, H, W].
    """

    inputs: Views
    targets: Views
    more: Views
    input_depths: Tensor
    input_masks: Tensor
    target_depths: Tensor
    target_masks: Tensor


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for wrong input."""
    options = _parser().parse_args(arguments)
    try:
        for name in ("scenes", "steps"):
            if getattr(options, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(options, name)}")
        trained = find_trained(options.model)
        text = report(trained, options.scenes, options.views, options.size, options.steps)
        print(text, end="")
        if options.output is not None:
            write_text(options.output, text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report(trained: TrainedModel, scenes: int, num_views: int, size: int, steps: int) -> str:
    """The table, in Markdown."""
    data = trained.settings.data
    if data.kind != "object":
        raise UserError(f"{trained.weights}: was trained on {data.kind}s; true surfaces are compared for objects only")
    model = load_model(trained.weights)
    rows: dict[str, list[Row]] = defaultdict(list)
    unseen = []
    with Bars().task("test scenes", scenes) as done:
        for index in range(scenes):
            truth = make_truth(ProceduralSpec("object", data.seed, "test"), index, num_views, (size, size))
            with torch.no_grad():
                predicted = model(truth.inputs, trained.settings.schedule, Compute())
            for name, row in measure(predicted, truth, model.config.patch, steps).items():
                rows[name].append(row)
            images, seen = reproject(truth)
            rows["true surfaces, colours of the input views that see them"].append((_psnr(images, truth.targets), None))
            unseen.append(float((~seen).sum() / (truth.target_masks > 0.5).sum()))
            done(index + 1)
    lines = [
        f"{trained.name}, sha256 {digest(trained.weights)}, commit {git_commit()}: {scenes} test scenes, {num_views} "
        f"input views of {size}x{size}, {steps} steps of {_VIEWS_PER_STEP} views where fitted. "
        f"{sum(unseen) / len(unseen):.1%} of the surface in the target views is in no input view.",
        "",
        "| | target views (dB) | input views (dB) |",
        "|---|---|---|",
        *(
            f"| {name} | {_cell([t for t, _ in found])} | {_cell([i for _, i in found])} |"
            for name, found in rows.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def measure(predicted: Gaussians, truth: Truth, patch: int, steps: int) -> dict[str, Row]:
    """Rows of one scene, from the model's Gaussians [V H W]."""

    def row(gaussians: Gaussians) -> Row:
        with torch.no_grad():
            pair = [_psnr(render(gaussians, v.cameras).images, v) for v in (truth.targets, truth.inputs)]
        return pair[0], pair[1]

    surface, positions = _surfaces(truth, patch)
    kept = predicted.select(surface)
    placed = replace(kept, positions=positions[surface])
    rows = {
        "the model": row(predicted),
        "only pixels that show a surface": row(kept),
        "and at its true distance": row(placed),
        "fitted to the input views, all": row(_fit(kept, truth.inputs, TENSORS, steps)),
    }
    for name, tensors in _FITTED.items():
        rows[f"fitted to {truth.more.num_views} views, {name}"] = row(_fit(kept, truth.more, tensors, steps))
    rows[f"at true distances, then fitted to {truth.more.num_views} views, all"] = row(
        _fit(placed, truth.more, TENSORS, steps)
    )
    return rows


def make_truth(spec: ProceduralSpec, index: int, num_views: int, size: tuple[int, int]) -> Truth:
    """A scene of 8 target views, as models are evaluated on."""
    batch = make_trajectories(spec, [index], size, "cpu")
    inputs, targets = split_views(num_views, 8)
    more = [*inputs, *(at for at in range(batch.views.num_views) if at not in {*inputs, *targets})]

    def views(at: list[int]) -> Views:
        chosen = batch.views.select(at)
        return Views(chosen.images[0], chosen.camera_to_world[0], chosen.intrinsics[0])

    depths, masks = batch.depths[0], batch.masks[0]
    known = (depths[inputs], masks[inputs], depths[targets], masks[targets])
    return Truth(views(inputs), views(targets), views(more), *known)


def reproject(truth: Truth) -> tuple[Tensor, Tensor]:
    """Target views from their true surfaces, each point coloured by the input view that sees it most alike.

    Surfaces that no input view sees get the inputs' mean surface colour. Pixels without a surface are the truth's, as
    the background is known.

    Returns:
        Images [R, 3, H, W], and which pixels are no surface or seen, [R, H, W].
    """
    points, directions = _surface_points(truth.targets.cameras, truth.target_depths)
    surface = truth.target_masks[:, 0] > 0.5
    chosen = truth.inputs.images.movedim(1, -1)[truth.input_masks[:, 0] > 0.999].mean(0).expand_as(points)
    nearest = torch.full(surface.shape, math.inf)
    for view in range(truth.inputs.num_views):
        colors, seen, angles = _seen_by(truth, view, points, directions)
        closer = seen & (angles < nearest)
        nearest = torch.where(closer, angles, nearest)
        chosen = torch.where(closer[..., None], colors, chosen)
    alphas = truth.target_masks.movedim(1, -1)
    over_white = alphas * chosen + (1 - alphas)
    images = torch.where(surface[..., None], over_white, truth.targets.images.movedim(1, -1))
    return images.movedim(-1, 1), ~surface | nearest.isfinite()


def _seen_by(truth: Truth, view: int, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of points [R, H, W, 3]: their colours in an input view, whether it sees them, 1 - cos of its ray with theirs."""
    cameras = truth.inputs.select([view]).cameras
    pose = cameras.world_to_camera[0].to(points)
    local = points @ pose[:3, :3].T + pose[:3, 3]
    fx, fy, cx, cy = cameras.intrinsics[0].unbind(-1)
    depths = local[..., 2]
    pixels = torch.stack([fx * local[..., 0] / depths + cx, fy * local[..., 1] / depths + cy], dim=-1)
    grid = pixels / torch.tensor([cameras.width, cameras.height]) * 2 - 1

    def sample(image: Tensor, mode: str) -> Tensor:
        repeated = image[view : view + 1].expand(len(points), -1, -1, -1)
        return F.grid_sample(repeated, grid, mode=mode, align_corners=False).movedim(1, -1)

    there = (sample(truth.input_depths, "nearest")[..., 0] - depths).abs() < TOLERANCE * depths
    seen = there & (sample(truth.input_masks, "nearest")[..., 0] > 0.5) & (grid.abs().amax(-1) < 1)
    towards = F.normalize(points - cameras.camera_to_world[0, :3, 3], dim=-1)
    return sample(truth.inputs.images, "bilinear"), seen, 1 - (towards * directions).sum(-1)


def _surfaces(truth: Truth, patch: int) -> tuple[Tensor, Tensor]:
    """In the order of the Gaussians: which pixels of the inputs show a surface, [V H W], and where, [V H W, 3]."""
    points, _ = _surface_points(truth.inputs.cameras, truth.input_depths)
    shown = truth.input_masks.movedim(1, -1) > 0.5
    in_order = [patchify(x[None], patch).reshape(-1, x.shape[-1]) for x in (shown, points)]
    return in_order[0][:, 0], in_order[1]


def _surface_points(cameras: Cameras, depths: Tensor) -> tuple[Tensor, Tensor]:
    """Points and the directions they are seen in, [V, H, W, 3] each, of depths [V, 1, H, W] (camera z)."""
    origins, directions = pixel_rays(cameras)
    cosines = (directions * cameras.camera_to_world[:, None, None, :3, 2]).sum(-1)
    return origins + directions * (depths[:, 0] / cosines)[..., None], directions


def _fit(gaussians: Gaussians, views: Views, tensors: Sequence[str], steps: int) -> Gaussians:
    rates = {name: rate if name in tensors else 0.0 for name, rate in _RATES.items()}
    return optimize(
        gaussians, views, PostOptimization(steps=steps, views_per_step=_VIEWS_PER_STEP, learning_rates=rates)
    )


def _psnr(images: Tensor, views: Views) -> float:
    return float(psnr(images, views.images).clamp(max=MAX_PSNR).mean())


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, low, high = bootstrap(known)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.limits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path, help="a run's folder, or an exported .safetensors file")
    parser.add_argument("--scenes", type=int, default=10, help="test scenes, two to four minutes each (default 10)")
    parser.add_argument("--views", type=int, default=8, help="input views (default 8)")
    parser.add_argument("--size", type=int, default=128, help="of the images, a multiple of 8 (default 128)")
    parser.add_argument("--steps", type=int, default=40, help="of a fit (default 40)")
    parser.add_argument("-o", "--output", type=Path, help="write the table to this file as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
