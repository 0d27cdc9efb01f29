"""From image files to rendered views, by stage, again and again: what a user waits for.

    python -m bench.end_to_end SCENE --views 32 -o results/<version>/<machine>/end-to-end.txt

Random weights of the released model's size: time does not depend on what they are.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.formats import seconds_estimate
from bench.kernel_profile import print_measured, random_model
from bench.statistics import Estimate, median_estimate
from bench.timing import StageTimer
from tttlrm.attention import BACKENDS
from tttlrm.cameras import Views
from tttlrm.config import Compute, Schedule
from tttlrm.gaussians import default_pruning
from tttlrm.parallel import ViewShard
from tttlrm.rendering import render
from tttlrm.scenes import Scene, ViewSplit, load_split, read_scene, select_views

NETWORK = ("encode", "blocks", "decode")


def main(arguments: Sequence[str] | None = None) -> int:
    return print_measured(_measure, _parser().parse_args(arguments))


def _measure(options: argparse.Namespace) -> str:
    scene = read_scene(options.scene)
    chosen = select_views(scene, options.views)
    split = ViewSplit(chosen.inputs, chosen.targets[: options.rendered], chosen.source)
    compute = Compute(dtype=torch.bfloat16, attention_backend=options.attention)
    run = _Run(scene, split, tuple(options.size), compute)
    samples: dict[str, list[float]] = defaultdict(list)
    for number in range(options.runs + 1):
        seconds = run()
        for stage, value in seconds.items() if number else ():  # the first one compiles
            samples[stage].append(value)
    height, width = options.size
    title = (
        f"{options.views} views of {height}x{width}, full schedule, bfloat16, attention {options.attention}; "
        f"{len(split.targets)} views rendered; {options.runs} runs; {torch.cuda.get_device_name()}"
    )
    return f"{title}\n{report({stage: median_estimate(values) for stage, values in samples.items()})}"


class _Run:
    """One way from files to images."""

    def __init__(self, scene: Scene, split: ViewSplit, size: tuple[int, int], compute: Compute) -> None:
        self._scene, self._split, self._size, self._compute = scene, split, size, compute
        self._model = random_model(compute, plain=False)
        self._timer = StageTimer("cuda")

    @torch.inference_mode()
    def __call__(self) -> dict[str, float]:
        timer, compute, model = self._timer, self._compute, self._model
        timer.start()
        with timer.stage("read"):
            loaded = load_split(self._scene, self._split, self._size, "mean")
        with timer.stage("move"):
            inputs, cameras = loaded.inputs.to("cuda"), loaded.targets.cameras.to("cuda")
        batch = Views(inputs.images[None], inputs.camera_to_world[None], inputs.intrinsics[None])
        shard = ViewShard(inputs.num_views)
        with timer.stage("encode"):
            tokens = model.encode(batch, compute)
        with timer.stage("blocks"):
            tokens = model.mix(tokens, shard, Schedule(), compute)
        with timer.stage("decode"):
            gaussians = model.decode(tokens, batch, shard, range(inputs.num_views), compute).scene(0)
        with timer.stage("prune"):
            kept = gaussians.prune(*default_pruning(inputs.num_views), seed=0)
        with timer.stage("render"):
            render(kept, cameras)
        return timer.seconds


def report(stages: dict[str, Estimate]) -> str:
    """Medians with their intervals, and the network's share of their sum."""
    whole = sum(estimate.value for estimate in stages.values())
    lines = [
        f"{name:8} {seconds_estimate(estimate):>28} {estimate.value / whole:6.1%}" for name, estimate in stages.items()
    ]
    network = sum(stages[stage].value for stage in NETWORK)
    return "\n".join([*lines, f"network: {network / whole:.1%} of {whole:.3f} s"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.end_to_end", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("scene", type=Path, help="scene folder")
    parser.add_argument("--views", type=int, default=32, help="input views (default 32)")
    parser.add_argument("--rendered", type=int, default=8, help="test views that are rendered (default 8)")
    parser.add_argument("--size", type=int, nargs=2, default=(536, 960), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--runs", type=int, default=7, help="measured runs, after one that compiles (default 7)")
    parser.add_argument("--attention", choices=BACKENDS, default="auto", help="attention kernel (default auto)")
    parser.add_argument("-o", "--output", type=Path, help="write the text to this file as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
