"""From a scene on disk to a folder of results: the work behind ``tttlrm reconstruct``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tttlrm.accelerated import accelerate
from tttlrm.cameras import Views
from tttlrm.checkpoints import load_model
from tttlrm.errors import UserError
from tttlrm.evaluation import describe_quality, evaluate, film
from tttlrm.files import write_json
from tttlrm.gaussians import Gaussians
from tttlrm.launch import run_local
from tttlrm.model import TTTLRM
from tttlrm.outputs import REPORT, staging_folder
from tttlrm.parallel import SequenceGroup, ViewShard
from tttlrm.plan import Plan
from tttlrm.progress import Bars, Progress, Silent
from tttlrm.reports import reconstruction_report
from tttlrm.scenes import load_views
from tttlrm.stages import StageClock

PLY = "gaussians.ply"
VIDEO = "trajectory.mp4"


def reconstruct(plan: Plan) -> None:
    """Carry out a plan: writes the whole output folder, or raises and leaves nothing."""
    settings = plan.settings
    with staging_folder(settings.output, settings.overwrite) as staging:
        if settings.sp_size == 1:
            reconstruct_on_rank(0, plan, staging)
        else:
            run_local(reconstruct_on_rank, settings.sp_size, plan.device.type, (plan, staging))


def reconstruct_on_rank(rank: int, plan: Plan, staging: Path) -> None:
    """One rank's part. Every rank runs the network on its share of the views; rank 0 does and writes all the rest."""
    progress: Progress = Bars() if rank == 0 else Silent()
    num_inputs = len(plan.split.inputs)
    group = SequenceGroup() if plan.settings.sp_size > 1 else None
    shard = group.shard(num_inputs) if group else ViewShard(num_inputs)
    device = torch.device("cuda", rank) if group and plan.device.type == "cuda" else plan.device
    clock = StageClock(device)
    try:
        inputs = load_frames(plan, [plan.split.inputs[view] for view in shard.views], "read inputs", clock, progress)
        gaussians = _run_network(plan, inputs, shard, device, clock, progress)
        stages = [clock.to_list()]
        if group:
            stages = _gather(stages[0], group)
            dist.destroy_process_group()
        if rank == 0:
            _finish(plan, gaussians, staging, clock, stages, progress)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"GPU {device} ran out of memory; use fewer --views, a smaller --size, or more GPUs with --sp-size"
        ) from error


def random_model(plan: Plan) -> TTTLRM:
    """A model with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.settings.seed)
        return TTTLRM(plan.config).eval().requires_grad_(False)


def load_frames(plan: Plan, indices: list[int], what: str, clock: StageClock, progress: Progress) -> Views:
    """Frames of the scene in the normalised world, float32, on the CPU."""
    with clock.stage(what), progress.task(what, len(indices)) as done:
        images = load_views(plan.scene, indices, plan.size, lambda count, _: done(count)).images
    cameras = plan.cameras(indices).to(torch.float32)
    return Views(images, cameras.camera_to_world, cameras.intrinsics)


@torch.no_grad()
def _run_network(
    plan: Plan, inputs: Views, shard: ViewShard, device: torch.device, clock: StageClock, progress: Progress
) -> Gaussians:
    """The Gaussians of all input views, on the device."""
    with clock.stage("load model"):
        model = accelerate(_load_model(plan, device), plan.compute)
    with clock.stage("move inputs"):
        views = inputs.to(device)
        batch = Views(views.images[None], views.camera_to_world[None], views.intrinsics[None])
    with clock.stage("encode"):
        tokens = model.encode(batch, plan.compute)
    with clock.stage("blocks"), progress.task("run blocks", len(model.blocks)) as done:
        tokens = model.mix(tokens, shard, plan.settings.schedule, plan.compute, done)
    with clock.stage("decode"):
        gaussians = model.decode(tokens, batch, shard, range(shard.num_views), plan.compute).scene(0)
    bad = gaussians.count_not_finite()
    if bad:
        raise UserError(
            f"{plan.scene.file}: {bad} of the {len(gaussians)} Gaussians are not finite with {plan.origin.weights} in "
            f"{plan.compute.dtype}; check the scene's poses and intrinsics, or try --dtype float32"
        )
    return gaussians


def _load_model(plan: Plan, device: torch.device) -> TTTLRM:
    # Parameters stay in float32 for half-precision products; norms and learning rates need it.
    dtype = torch.float64 if plan.compute.dtype == torch.float64 else torch.float32
    if plan.weights is None:
        return random_model(plan).to(device, dtype)
    return load_model(plan.weights.path, device, dtype, plan.config)


def _gather(value: Any, group: SequenceGroup) -> list[Any]:
    gathered: list[Any] = [None] * group.size
    dist.all_gather_object(gathered, value, group.process_group)
    return gathered


def _finish(
    plan: Plan,
    gaussians: Gaussians,
    staging: Path,
    clock: StageClock,
    network_stages: list[list[dict[str, Any]]],
    progress: Progress,
) -> None:
    """Prune, write the Gaussians, evaluate, film and report."""
    settings, origin = plan.settings, plan.origin
    with clock.stage("prune"):
        kept = gaussians.prune(*plan.pruning, seed=settings.seed) if plan.pruning else gaussians.at_least_float32()
    with clock.stage("write PLY"):
        kept.save_ply(staging / PLY, origin.ply_comment())
    targets = load_frames(plan, list(plan.split.targets), "read test views", clock, progress)
    frames = [(index, plan.scene.frames[index].file_path) for index in plan.split.targets]
    quality = evaluate(kept, targets, frames, staging, origin, clock, settings.lpips, progress)
    if plan.num_video_frames:
        with clock.stage("video"):
            film(kept, plan.cameras(plan.split.inputs), plan.num_video_frames, staging / VIDEO, origin, progress)
    counts = {"decoded": len(gaussians), "kept": len(kept), "usage": gaussians.usage()}
    stages = [clock.to_list(), *network_stages[1:]]
    write_json(staging / REPORT, reconstruction_report(plan, counts, quality, stages))
    progress.note(describe_quality(quality, origin))
