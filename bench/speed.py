"""Speed run of a cell: the same reconstruction again and again, its stages timed apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.cells import Cell
from bench.datasets import load_scene
from bench.devices import DeviceState, read_states
from bench.environment import waited_seconds
from bench.memory import MemoryWatch
from bench.methods import Method, prune_before_showing
from bench.peak import measured_peak, reconstruction_flops
from bench.records import Phase, RankMemory, SpeedResult
from bench.timing import OneRank, Ranks, StageTimer, sample
from tttlrm.cameras import Views
from tttlrm.gaussians import Gaussians

_DIGITS = 9


def run_speed(
    cell: Cell, method: Method, root: Path | None, ranks: Ranks | None = None
) -> tuple[SpeedResult, RankMemory]:
    """Time the cell's first scene, its images being on the device already, and measure a reconstruction's memory.

    Two phases are sampled one after the other: ``reconstruct``, whose stages are the method's, and ``show``, which
    prunes the Gaussians and renders all test views.
    """
    started = time.perf_counter()
    scene = load_scene(cell, cell.dataset.scenes[0], root)
    read_s = time.perf_counter() - started if cell.dataset.source == "folder" else None
    inputs, targets = scene.inputs.to(cell.device), scene.targets.to(cell.device)
    with torch.inference_mode():
        reconstruction = _Reconstruction(cell, method, inputs, ranks.rank if ranks else 0)
        reconstruct = _phase(cell, reconstruction.run, ranks)
        gaussians, memory = reconstruction.results()
        show = _phase(cell, _show_run(cell, gaussians, targets), ranks)
    result = SpeedResult(
        reconstruct=reconstruct,
        show=show,
        read_s=read_s,
        gaussians=len(gaussians),
        rendered_views=targets.num_views,
        flops=reconstruction_flops(cell, method),
        peak_flops=measured_peak(cell),
    )
    return result, memory


class _Reconstruction:
    """Reconstructs again and again, and knows what that needed."""

    def __init__(self, cell: Cell, method: Method, inputs: Views, rank: int) -> None:
        self._cell, self._method, self._inputs, self._rank = cell, method, inputs, rank
        self._timer = StageTimer(cell.device)
        self._gaussians: Gaussians | None = None
        self._memory: RankMemory | None = None
        self._watch = MemoryWatch(cell.device, rank)

    def run(self) -> dict[str, float]:
        self._gaussians = None  # or the next peak would hold them too
        self._timer.start()
        self._gaussians = self._method.reconstruct(self._inputs, self._timer)
        self._memory = self._memory or self._watch.read()
        return self._timer.seconds

    def results(self) -> tuple[Gaussians, RankMemory]:
        if self._cell.device == "cuda":
            # The first call's peak may hold compilation. A CPU's is the only clean one: later, freed memory that the
            # allocator keeps would count as in use.
            self._gaussians, self._memory = None, None
            self._watch = MemoryWatch(self._cell.device, self._rank)
            self._timer.after_stage = self._watch.end_stage
            self.run()
        assert self._gaussians is not None and self._memory is not None
        return self._gaussians, self._memory


def _show_run(cell: Cell, gaussians: Gaussians, targets: Views) -> Callable[[], dict[str, float]]:
    from tttlrm.rendering import render

    timer = StageTimer(cell.device)

    def run() -> dict[str, float]:
        timer.start()
        with timer.stage("prune"):
            kept = prune_before_showing(gaussians, cell)
        with timer.stage("render"):
            render(kept, targets.cameras)
        return timer.seconds

    return run


def _phase(cell: Cell, run: Callable[[], dict[str, float]], ranks: Ranks | None) -> Phase:
    assert cell.sampling is not None
    started, waited = time.perf_counter(), waited_seconds()
    group = ranks or OneRank()
    states: list[tuple[DeviceState, ...]] = []
    samples = sample(run, cell.sampling, group, around=lambda: states.append(read_states(cell.device, group)))
    elapsed, waited_after = time.perf_counter() - started, waited_seconds()
    share = None if waited is None or waited_after is None else (waited_after - waited) / elapsed
    return Phase(
        stages={
            stage: tuple(tuple(round(seconds, _DIGITS) for seconds in by_rank) for by_rank in runs)
            for stage, runs in samples.stages.items()
        },
        first_call={stage: round(seconds, _DIGITS) for stage, seconds in samples.first_call.items()},
        warmup_calls=samples.warmup_calls,
        warmup_s=round(samples.warmup_s, _DIGITS),
        sampled_s=round(samples.sampled_s, _DIGITS),
        stopped=samples.stopped,
        before=states[0],
        after=states[1],
        waited_share=None if share is None else round(share, 4),
    )
