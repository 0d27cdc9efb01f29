"""The network as training runs it: with compiled blocks, and recorded as CUDA graphs, where that works."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tttlrm.blocks import Block, FastWeightLayer, Normed, Pass, Sublayer
from tttlrm.cameras import Views
from tttlrm.checkpoints import load_model
from tttlrm.config import Compute, Schedule
from tttlrm.errors import CheckpointError, first_line
from tttlrm.fast_weights import FastWeights, Triple
from tttlrm.gaussians import Gaussians
from tttlrm.model import TTTLRM
from tttlrm.parallel import ViewShard
from tttlrm.training.graphs import GraphedNetwork, Warn
from tttlrm.training.settings import TrainingSettings

_Update = Callable[[FastWeights, slice, Normed, Pass], FastWeights]
_FUNCTION_LIMIT = 64  # versions of a function: image sizes, numbers of views and gradient modes multiply


class TrainingNetwork:
    """Calls a model with a run's schedule and way of computing.

    With ``compile``, the blocks (or, for the ar schedule, their parts) are compiled at first use. The blocks share the
    compiled code, and it serves any number of views. Under sequence parallelism nothing is compiled: the blocks hold
    collectives.
    """

    def __init__(
        self,
        model: TTTLRM,
        schedule: Schedule,
        compute: Compute,
        compile: bool,
        warn: Warn,
        graphs: bool = False,
    ) -> None:
        """``graphs``: record CUDA graphs. Neither is for sequence parallelism."""
        self.model = model
        self.schedule = schedule
        self.compute = compute
        self.compiled = compile
        self._warn = warn
        self._graphs = GraphedNetwork(model, schedule, compute) if graphs else None
        if compile:
            _compile_parts(model, self.schedule)

    def __call__(self, views: Views, shard: ViewShard) -> Gaussians:
        try:
            return self._call(views, shard)
        except Exception as error:
            if not (self.compiled and _is_compiler_error(error)):
                raise
            self._warn(f"the network could not be compiled, so it runs uncompiled: {first_line(error)}")
            self.use_uncompiled()
            return self._call(views, shard)

    def _call(self, views: Views, shard: ViewShard) -> Gaussians:
        if self._graphs is not None and torch.is_grad_enabled() and self._recorded(views):
            return self._graphs(views)
        return self.model(views, self.schedule, self.compute, shard=shard)

    @property
    def graphed(self) -> bool:
        """Whether CUDA graphs are used."""
        return self._graphs is not None

    def _recorded(self, views: Views) -> bool:
        """Whether there is a graph for such views; where it cannot be recorded, the run goes on without."""
        assert self._graphs is not None
        try:
            self._graphs.record(views)
            return True
        except RuntimeError as error:
            if self.compiled and _is_compiler_error(error):
                raise
            self._warn(f"the network could not be recorded as a CUDA graph, so it runs as it is: {first_line(error)}")
            self._graphs = None
            return False

    def use_uncompiled(self) -> None:
        self.compiled = False
        _restore_parts(self.model)


def build_model(settings: TrainingSettings, device: torch.device, trained: bool = True) -> TTTLRM:
    """The model that a run starts from: its initial weights, or random ones that depend on the seed alone.

    ``trained`` False: any weights, for a model whose weights are set afterwards.
    """
    if trained and settings.initial_weights is not None:
        model = load_model(settings.initial_weights, dtype=settings.compute.parameter_dtype)
        if model.config != settings.model:
            raise CheckpointError(f"{settings.initial_weights}: its model is not the one configured: {model.config}")
        return model.to(device).requires_grad_(True).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = TTTLRM(settings.model)
    return model.to(device=device, dtype=settings.compute.parameter_dtype)


def _compile_parts(model: TTTLRM, schedule: Schedule) -> None:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _FUNCTION_LIMIT)
    for block in model.blocks:
        assert isinstance(block, Block)
        if schedule.kind == "full":
            _replace(block, "forward", _with_any_length(torch.compile(block.forward, fullgraph=True)))
            continue
        for sublayer in block.module_list:
            assert isinstance(sublayer, Sublayer)
            if isinstance(sublayer.f, FastWeightLayer):
                # One chunk at a time: unrolled, the code would grow with the number of chunks.
                _replace(sublayer.f, "update", _compiled_update(sublayer.f))
                _replace(sublayer.f, "apply_weights", _compiled_application(sublayer.f))
            else:
                _replace(sublayer, "forward", _with_any_length(torch.compile(sublayer.forward, fullgraph=True)))


def _with_any_length(function: Callable[[Tensor, Pass], Tensor]) -> Callable[[Tensor, Pass], Tensor]:
    """Tell the compiler that the number of tokens varies."""

    def call(x: Tensor, run: Pass) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(x, 1)
        return function(x, run)

    return call


def _compiled_update(layer: FastWeightLayer) -> Callable[[FastWeights, slice, Normed, Pass], FastWeights]:
    """``layer.update``, compiled for a chunk's tokens, wherever in the scene they are."""
    update = torch.compile(_update_with_tokens, fullgraph=True)
    original = layer.update

    def call(state: FastWeights, chunk: slice, normed: Normed, run: Pass) -> FastWeights:
        w0, w1, w2 = (weight.contiguous() for weight in state.weights)  # of one layout for all chunks
        return update(original, replace(state, weights=(w0, w1, w2)), normed(chunk), run)

    return call


def _update_with_tokens(update: _Update, state: FastWeights, tokens: Tensor, run: Pass) -> FastWeights:
    return update(state, slice(0, tokens.shape[1]), lambda tile: tokens[:, tile], run)


def _compiled_application(layer: FastWeightLayer) -> Callable[[Tensor, Triple, Pass], Tensor]:
    apply = torch.compile(layer.apply_weights, fullgraph=True)

    def call(x: Tensor, weights: Triple, run: Pass) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(x, 1)
        w0, w1, w2 = (weight.contiguous() for weight in weights)
        return apply(x, (w0, w1, w2), run)

    return call


def _replace(module: torch.nn.Module, name: str, function: Any) -> None:
    """Shadow a method of this instance; parameters and names stay as they are."""
    object.__setattr__(module, name, function)


def _restore_parts(model: TTTLRM) -> None:
    for module in model.modules():
        for name in ("forward", "update", "apply_weights"):
            if not isinstance(module.__dict__.get(name), types.NoneType):
                del module.__dict__[name]


def _is_compiler_error(error: Exception) -> bool:
    return isinstance(error, torch._dynamo.exc.TorchDynamoException) or type(error).__module__.startswith(
        ("torch._inductor", "triton")
    )
