"""How well one kind of layer finds, among the tokens of all views, those that show the same point.

    python -m bench.matching -o matching.md

Finding them is what a reconstruction's layers between views are for. Here it is all there is to do: each token has the
features of a point, seen with some noise, and a message of its own; it is to say the sum of the messages of the other
views' tokens of its point. Small networks of the model's own layers (fast weights or attention, and MLPs) are trained
on it from nothing, in minutes on a CPU. An error of 1 is that of saying nothing.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tttlrm.blocks import MLP, FastWeightLayer, GlobalAttention, Pass, Sublayer, layer_norm
from tttlrm.config import Compute, ModelConfig, Schedule
from tttlrm.errors import UserError
from tttlrm.files import write_text
from tttlrm.parallel import ViewShard
from tttlrm.progress import Bars
from tttlrm.training.summary import git_commit

_WIDTH, _ATTENTION_HEAD, _MLP_EXPANSION, _BLOCKS = 128, 32, 2, 2
_SCENES = 4
_WARMUP = 50
_PARTS = 4
"""Of a training run: the error is told at the end of each."""
_AVERAGED = 25  # steps


@dataclass(frozen=True)
class Task:
    """Scenes of points that all views see, in the same order."""

    views: int = 8
    points: int = 32
    features: int = 8
    message: int = 8
    noise: float = 0.1

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens [B, V P, features + message] and what they are to say, [B, V P, message], of variance 1."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(_SCENES, *shape, generator=generator)

        seen = normal(1, self.points, self.features) + self.noise * normal(self.views, self.points, self.features)
        messages = normal(self.views, self.points, self.message)
        others = (messages.sum(1, keepdim=True) - messages) / math.sqrt(self.views - 1)
        return torch.cat([seen, messages], dim=-1).flatten(1, 2), others.flatten(1, 2)


@dataclass(frozen=True)
class Mixer:
    """A kind of layer. ``head`` and ``expansion`` are those of fast weights; None: attention."""

    head: int | None = None
    expansion: int = 1

    @staticmethod
    def parse(text: str) -> Mixer:
        """``attention``, or the head and expansion of fast weights, as 32x8."""
        if text == "attention":
            return Mixer()
        head, times, expansion = text.partition("x")
        if not (times and head.isdecimal() and expansion.isdecimal()):
            raise UserError(f"--mixers: {text!r} is neither 'attention' nor a head and an expansion, such as 32x8")
        return Mixer(int(head), int(expansion))

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            width=_WIDTH, attention_head=_ATTENTION_HEAD, mlp_expansion=_MLP_EXPANSION,
            fast_weight_head=self.head, fast_weight_expansion=self.expansion,
        )  # fmt: skip

    def __str__(self) -> str:
        if self.head is None:
            return f"attention, {_WIDTH // _ATTENTION_HEAD} heads of {_ATTENTION_HEAD}"
        config = self.config
        heads = f"{config.fast_weight_heads} heads" if config.fast_weight_heads > 1 else "1 head"
        return f"fast weights, {heads} of {self.head}, hidden {config.fast_weight_hidden}"


class MatchingNetwork(nn.Module):
    """Tokens in, messages out; between them blocks as the model's, without attention inside each view."""

    def __init__(self, mixer: Mixer, task: Task) -> None:
        super().__init__()
        config = mixer.config
        layer = GlobalAttention if mixer.head is None else FastWeightLayer
        self.embedding = nn.Linear(task.features + task.message, _WIDTH, bias=False)
        self.input_norm, self.output_norm = (nn.LayerNorm(_WIDTH, bias=False) for _ in range(2))
        self.sublayers = nn.ModuleList(Sublayer(_WIDTH, kind(config)) for _ in range(_BLOCKS) for kind in (layer, MLP))
        self.output = nn.Linear(_WIDTH, task.message, bias=False)
        self._run = Pass(Schedule(), Compute(), ViewShard(task.views), task.points)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)  # as in the model

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, features + message] to [B, T, message]."""
        x = layer_norm(self.embedding(tokens), self.input_norm.weight)
        for sublayer in self.sublayers:
            x = sublayer(x, self._run)
        return self.output(layer_norm(x, self.output_norm.weight))


def train(mixer: Mixer, task: Task, steps: int, learning_rate: float, seed: int, bars: Bars) -> list[float]:
    """Mean squared errors, at the end of each quarter of the steps. Every mixer gets the same scenes.

    The learning rate falls to 0 as a cosine.
    """
    torch.manual_seed(seed)
    network, generator = MatchingNetwork(mixer, task), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    errors: list[float] = []
    with bars.task(str(mixer), steps) as done:
        for step in range(steps):
            rate = learning_rate * min(1.0, (step + 1) / _WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.param_groups[0]["lr"] = rate
            tokens, expected = task.draw(generator)
            loss = F.mse_loss(network(tokens), expected)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            errors.append(float(loss.detach()))
            done(step + 1)
    ends = [steps * part // _PARTS for part in range(1, _PARTS + 1)]
    last = [errors[max(0, end - _AVERAGED) : end] for end in ends]
    return [sum(part) / len(part) for part in last]


def report(mixers: Sequence[Mixer], task: Task, steps: int, learning_rate: float, seeds: Sequence[int]) -> str:
    """The table, in Markdown: a line for each mixer and seed (of scenes and initial weights)."""
    bars = Bars()
    lines = [
        f"Commit {git_commit()}: {task.views} views of {task.points} points, {task.features} features with noise of "
        f"{task.noise:g}, {_BLOCKS} blocks of width {_WIDTH}, {steps} steps of {_SCENES} scenes, learning rate "
        f"{learning_rate:g}. Mean squared errors (mean of {_AVERAGED} steps); 1 is that of saying nothing.",
        "",
        "| layer | parameters of a layer | seed | "
        + " | ".join(f"after {steps * p // _PARTS}" for p in range(1, _PARTS + 1)) + " |",
        "|---|---|---|" + "---|" * _PARTS,
    ]  # fmt: skip
    for mixer in mixers:
        layer = MatchingNetwork(mixer, task).sublayers[0]
        count = sum(parameter.numel() for parameter in layer.parameters())
        for seed in seeds:
            errors = " | ".join(f"{error:.3f}" for error in train(mixer, task, steps, learning_rate, seed, bars))
            lines.append(f"| {mixer} | {count:,} | {seed} | {errors} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for wrong input."""
    options = _parser().parse_args(arguments)
    try:
        for name in ("steps", "points", "views"):
            least = {"steps": _PARTS, "points": 1, "views": 2}[name]
            if getattr(options, name) < least:
                raise UserError(f"--{name} must be at least {least}, not {getattr(options, name)}")
        mixers = [Mixer.parse(text) for text in options.mixers]
        if not options.learning_rate > 0:
            raise UserError(f"--learning-rate must be positive, not {options.learning_rate}")
        task = Task(views=options.views, points=options.points)
        text = report(mixers, task, options.steps, options.learning_rate, options.seeds)
        print(text, end="")
        if options.output is not None:
            write_text(options.output, text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.matching", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    default = ("attention", "128x2", "64x4", "32x8", "32x4", "16x8", "128x8")
    add("--mixers", nargs="+", default=default, metavar="MIXER", help="attention, or head x expansion of fast weights")
    add("--steps", type=int, default=500, help="of training (two minutes each for 500)")
    add("--learning-rate", type=float, default=2e-3, help="at first")
    add("--seeds", type=int, nargs="+", default=(0,), metavar="SEED")
    add("--views", type=int, default=8)
    add("--points", type=int, default=32)
    add("-o", "--output", type=Path, help="file that the table is written to as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
