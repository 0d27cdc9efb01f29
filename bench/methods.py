"""Methods: posed views in, Gaussians out, by stages that can be timed apart."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from bench.cells import Cell
from bench.datasets import evenly_spaced
from bench.errors import UnavailableError
from bench.postoptimization import PostOptimized
from bench.timing import StageTimer
from tttlrm.accelerated import AcceleratedModel, accelerate
from tttlrm.bundled import bundled_model
from tttlrm.cameras import Views
from tttlrm.checkpoints import digest, load_model
from tttlrm.config import Compute, Schedule
from tttlrm.errors import UserError
from tttlrm.gaussians import Gaussians
from tttlrm.model import TTTLRM
from tttlrm.parallel import SequenceGroup, ViewShard

_FETCHED = ("dl3dv_full.safetensors", "dl3dv_ar.safetensors")
"""Weights files that ``make weights`` makes."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Method(Protocol):
    """What the suite needs of a method."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages of :meth:`reconstruct`, in order."""
        ...

    def reconstruct(self, views: Views, timer: StageTimer) -> Gaussians:
        """The Gaussians of one scene [V, ...], each stage run inside ``timer.stage(name)``.

        Every rank of a method that spans several calls this with the same views, and gets all Gaussians.
        """
        ...


Builder = Callable[[Cell, Path | None], Method]
"""Makes a cell's method on its device, from the file of its weights if it has one."""


@dataclass(frozen=True)
class ReconstructionModel:
    """tttLRM, or its attention counterpart: which of the two is the model's configuration."""

    model: TTTLRM | AcceleratedModel
    schedule: Schedule
    compute: Compute
    queries: tuple[int, ...]
    group: SequenceGroup | None = None
    merge: bool = False
    """Predict-and-merge: each chunk of the schedule on its own, with fresh fast weights, and all Gaussians together."""
    stages: tuple[str, ...] = ("encode", "blocks", "decode")

    def reconstruct(self, views: Views, timer: StageTimer) -> Gaussians:
        if not self.merge:
            return self._predict(views, self.queries, timer)
        parts = []
        for chunk in self.schedule.chunks(views.num_views):
            queries = tuple(view - chunk.start for view in self.queries if view in chunk)
            if queries:
                parts.append(self._predict(views.select(chunk), queries, timer))
        return Gaussians(*(torch.cat(tensors) for tensors in zip(*(part.tensors for part in parts), strict=True)))

    def _predict(self, views: Views, queries: Sequence[int], timer: StageTimer) -> Gaussians:
        shard = self.group.shard(views.num_views) if self.group else ViewShard(views.num_views)
        held = views.select(list(shard.views)) if self.group else views
        batch = Views(held.images[None], held.camera_to_world[None], held.intrinsics[None])
        with timer.stage("encode"):
            tokens = self.model.encode(batch, self.compute)
        with timer.stage("blocks"):
            tokens = self.model.mix(tokens, shard, self.schedule, self.compute)
        with timer.stage("decode"):
            gaussians = self.model.decode(tokens, batch, shard, queries, self.compute).scene(0)
        return gaussians


def build_method(cell: Cell, weights: Path | None, group: SequenceGroup | None = None) -> Method:
    """The cell's method, with its weights, on its device; spread over the ranks of ``group``, if there is one.

    Raises:
        UnavailableError: weights or device are not there.
        UserError: they do not fit the cell.
    """
    if cell.weights.kind == "bundled":
        weights = bundled_model(cell.weights.name).path  # of this installation: a rank's may lie in an image
    reason = missing_weights(cell, weights) or missing_device(cell)
    if reason is not None:
        raise UnavailableError(reason)
    if cell.builder is not None:
        if cell.sp_size > 1:
            raise UnavailableError(f"the method of {cell.builder} runs on one rank, and the cell wants {cell.sp_size}")
        return load_builder(cell.builder)(cell, weights)
    if cell.virtual_views > cell.input_views:
        raise UserError(f"{cell.virtual_views} virtual views of {cell.input_views} input views")
    compute = Compute(
        dtype=_DTYPES[cell.precision],
        newton_schulz_dtype=_DTYPES[cell.newton_schulz_precision] if cell.newton_schulz_precision else None,
        attention_backend=cell.attention_backend,
        tile_tokens=cell.tile_tokens,
    )
    queries = tuple(evenly_spaced(cell.virtual_views, cell.input_views))
    model = accelerate(_load_model(cell, weights), compute)
    method = ReconstructionModel(model, cell.schedule.resolve(), compute, queries, group, cell.merge)
    if cell.post_optimization is None:
        return method
    return PostOptimized(method.reconstruct, method.stages, lambda made: prune(made, cell), cell.post_optimization)


def load_builder(name: str) -> Builder:
    """The function that ``module:function`` names. Raises UserError if there is none."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"builder {name}: {error}") from None
    if not callable(found):
        raise UserError(f"builder {name}: is not a function")
    builder: Builder = found
    return builder


def prune(gaussians: Gaussians, cell: Cell) -> Gaussians:
    """As the cell says; the random part is a function of its seed and of each Gaussian."""
    kept = gaussians if cell.pruning is None else gaussians.prune(*cell.pruning, seed=cell.seed)
    return kept.at_least_float32()


def prune_before_showing(gaussians: Gaussians, cell: Cell) -> Gaussians:
    """What is left to prune of a method's Gaussians: nothing where they had to be pruned before they were optimised."""
    return gaussians if cell.post_optimization is not None else prune(gaussians, cell)


def missing_weights(cell: Cell, weights: Path | None) -> str | None:
    """Why the cell's weights cannot be had; None if they can."""
    if cell.weights.kind == "unreleased":
        return "the authors' weights for this table are not released"
    if cell.weights.kind == "untrained":
        return "needs a model that nobody has trained here, and the authors' is not released"
    if cell.weights.kind == "file" and (weights is None or not weights.is_file()):
        hint = "; `make weights` fetches it to where the paper profile expects it"
        return f"weights file {cell.weights.name} is not there{hint if cell.weights.name in _FETCHED else ''}"
    return None


def missing_device(cell: Cell) -> str | None:
    """Why this process cannot run on the cell's device; None if it can."""
    if cell.device == "cuda" and not torch.cuda.is_available():
        return "no CUDA GPU on this machine; the tiny profile needs none"
    return None


def missing_ranks(cell: Cell) -> str | None:
    """Why this machine alone cannot run the cell's ranks; None if it can."""
    count = torch.cuda.device_count() if cell.device == "cuda" else cell.sp_size
    if cell.sp_size > count:
        return f"sp_size {cell.sp_size} needs as many GPUs, and this machine has {count}"
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
