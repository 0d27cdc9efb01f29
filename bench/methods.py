"""Methods: posed views in, Gaussians out, by stages that can be timed apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from bench.cells import Cell
from bench.datasets import evenly_spaced
from bench.errors import UnavailableError
from bench.timing import StageTimer
from tttlrm.cameras import Views
from tttlrm.checkpoints import digest, load_model
from tttlrm.config import Compute, Schedule
from tttlrm.errors import UserError
from tttlrm.gaussians import Gaussians
from tttlrm.model import TTTLRM
from tttlrm.parallel import ViewShard

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Method(Protocol):
    """What the suite needs of a method."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages of :meth:`reconstruct`, in order."""
        ...

    def reconstruct(self, views: Views, timer: StageTimer) -> Gaussians:
        """The Gaussians of one scene [V, ...], each stage run inside ``timer.stage(name)``."""
        ...


@dataclass(frozen=True)
class ReconstructionModel:
    """tttLRM, or its attention counterpart: which of the two is the model's configuration."""

    model: TTTLRM
    schedule: Schedule
    compute: Compute
    queries: tuple[int, ...]
    stages: tuple[str, ...] = ("encode", "blocks", "decode")

    def reconstruct(self, views: Views, timer: StageTimer) -> Gaussians:
        batch = Views(views.images[None], views.camera_to_world[None], views.intrinsics[None])
        shard = ViewShard(views.num_views)
        with timer.stage("encode"):
            tokens = self.model.encode(batch, self.compute)
        with timer.stage("blocks"):
            tokens = self.model.mix(tokens, shard, self.schedule, self.compute)
        with timer.stage("decode"):
            gaussians = self.model.decode(tokens, batch, shard, self.queries, self.compute).scene(0)
        return gaussians


def build_method(cell: Cell, weights: Path | None) -> Method:
    """The cell's method, with its weights, on its device.

    Raises:
        UnavailableError: weights or device are not there.
        UserError: they do not fit the cell.
    """
    reason = missing_weights(cell, weights) or missing_device(cell)
    if reason is not None:
        raise UnavailableError(reason)
    if cell.virtual_views > cell.input_views:
        raise UserError(f"{cell.virtual_views} virtual views of {cell.input_views} input views")
    compute = Compute(
        dtype=_DTYPES[cell.precision],
        newton_schulz_dtype=_DTYPES[cell.newton_schulz_precision] if cell.newton_schulz_precision else None,
        attention_backend=cell.attention_backend,
        tile_tokens=cell.tile_tokens,
    )
    queries = tuple(evenly_spaced(cell.virtual_views, cell.input_views))
    return ReconstructionModel(_load_model(cell, weights), cell.schedule.resolve(), compute, queries)


def missing_weights(cell: Cell, weights: Path | None) -> str | None:
    """Why the cell's weights cannot be had; None if they can."""
    if cell.weights.kind == "unreleased":
        return "the authors' weights for this table are not released"
    if cell.weights.kind == "file" and (weights is None or not weights.is_file()):
        return f"weights file {cell.weights.name} is not there"
    return None


def missing_device(cell: Cell) -> str | None:
    """Why this process cannot run on the cell's device; None if it can."""
    if cell.device == "cuda" and not torch.cuda.is_available():
        return "no CUDA GPU on this machine"
    return None


def _load_model(cell: Cell, weights: Path | None) -> TTTLRM:
    config = cell.model_config_resolved
    if cell.weights.kind == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cell.seed)
            model = TTTLRM(config)
        return model.to(cell.device).eval().requires_grad_(False)
    assert weights is not None
    if digest(weights) != cell.weights.sha256:
        raise UserError(f"weights file {cell.weights.name} changed after the cells were planned")
    model = load_model(weights, cell.device, config=None)
    if model.config != config:
        raise UserError(f"weights file {cell.weights.name} is of another model configuration than the cell")
    return model
