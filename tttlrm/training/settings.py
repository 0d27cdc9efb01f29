"""The settings of a training run, as typed and checked values. ``conf/`` has the defaults."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tttlrm.config import Compute, ModelConfig, Schedule
from tttlrm.errors import UserError

PerceptualFeatures = Literal["vgg16", "vgg19"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LossWeights:
    """Factors of the terms of the loss; the defaults are the paper's, which has not the last four."""

    mse: float = 1.0
    perceptual: float = 0.5
    opacity: float = 0.01
    depth: float = 0.01
    points: float = 0.0
    """Of the distances of the input views' Gaussians from the surfaces that their pixels show."""
    coverage: float = 0.0
    """Of the opacities of the input views' Gaussians whose pixels show nothing."""
    solidity: float = 0.0
    """Of the transparency of those whose pixels show a surface."""
    log_mse: float = 0.0
    """Of the logarithm of each target view's mean squared error: views count as in a mean of PSNRs, where ``mse`` is
    mostly about the worst ones."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            if not getattr(self, item.name) >= 0:
                raise UserError(f"loss.{item.name} must not be negative, but is {getattr(self, item.name)}")

    @property
    def of_renderings(self) -> bool:
        """Whether any term compares images, so that the targets have to be rendered."""
        return bool(self.mse or self.log_mse or self.perceptual or self.depth)


@dataclass(frozen=True)
class Phase:
    """A part of a run with one image size and one learning-rate curve."""

    size: tuple[int, int]
    """(height, width) of the images."""
    scenes: int
    """Batch size, over all processes."""
    views: tuple[int, ...]
    """Numbers of input views; each step draws one of them."""
    learning_rate: float
    final_learning_rate: float = 0.0
    """At the end of the cosine."""
    warmup_steps: int = 100
    steps: int = 0
    """Length, where ``budget.schedule_by`` is ``steps``."""
    share: float = 1.0
    """Share of the run's time, where it is ``time``; relative to those of the other phases."""
    cropped_from: tuple[int, int] | None = None
    """(height, width) that scenes are rendered at, of which the images are the middle; None: their own size. It saves
    compiling the scenes' renderer for another size."""
    loss: LossWeights | None = None
    """Instead of the run's."""
    final_loss: LossWeights | None = None
    """At the end of the phase, towards which the factors move linearly; None: they stay as they are."""

    def __post_init__(self) -> None:
        if not self.views or min(self.views) < 1 or self.scenes < 1 or min(self.size) < 1:
            given = f"{self.size}, {self.scenes} and {self.views}"
            raise UserError(f"a phase needs positive size, scenes and views, not {given}")
        if self.cropped_from and any(n > m for n, m in zip(self.size, self.cropped_from, strict=True)):
            raise UserError(f"a phase cannot crop {self.size} from {self.cropped_from}, which is smaller")
        if self.warmup_steps < 0 or self.steps < 0 or not self.share > 0:
            raise UserError("a phase needs warmup_steps and steps of at least 0 and a positive share")
        if not self.learning_rate > 0 or not 0 <= self.final_learning_rate <= self.learning_rate:
            raise UserError(
                f"a phase needs 0 <= final_learning_rate <= learning_rate, not {self.final_learning_rate} "
                f"and {self.learning_rate}"
            )


@dataclass(frozen=True)
class DataSettings:
    """Which scenes are trained on, and how their views are used."""

    kind: Literal["object", "room"] = "object"
    seed: int = 0
    poses: Literal["scene", "mean", "first"] = "scene"
    """Reference frame: the scene's own, or normalised to the mean camera or to the first input camera."""
    scale_range: tuple[float, float] = (1.0, 1.0)
    """Each scene is scaled by a factor between these, uniform in the logarithm: real captures stand nearer to, or
    farther from, what they show than the procedural ones do."""
    ordered: bool = False
    """Give input views in the order of the camera's path (for the ar schedule)."""
    novel_targets: int = 4
    """Target views a step that are not inputs."""
    input_targets: int = 2
    """Target views a step that are inputs as well."""
    steps_per_block: int = 4
    """Batches of scenes that are made at a time."""
    passes: int = 1
    """How often a block of scenes is gone through, with other views as inputs each time."""
    compile: bool = False
    """Render the scenes with compiled code."""

    def __post_init__(self) -> None:
        if self.novel_targets < 1 or self.input_targets < 0 or self.steps_per_block < 1 or self.passes < 1:
            raise UserError(
                "data: need novel_targets, steps_per_block and passes of at least 1, and input_targets of at least 0"
            )
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise UserError(f"data.scale_range must be two positive numbers in order, not {self.scale_range}")


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, and which steps are taken."""

    matrices: Literal["adamw", "muon"] = "adamw"
    """How the blocks' matrices are updated; everything else is by AdamW. See :mod:`tttlrm.training.muon`."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    """Of matrices; norms and biases have none."""
    clip_norm: float = 1.0
    """Longer gradients are scaled to this length."""
    skip_norm: float = 5.0
    """Steps with a longer gradient are not taken. ``.inf`` takes all."""
    skip_from_step: int = 0
    """``skip_norm`` holds from this step on: the first gradients of a new model are long."""
    max_bad_steps: int = 50
    """So many steps in a row that are not finite, or longer than ``skip_norm``, stop the run."""
    ema_decay: float = 0.999
    """Of the running mean of the weights that is validated and exported; 0: the weights themselves."""

    def __post_init__(self) -> None:
        if self.matrices not in ("adamw", "muon"):
            raise UserError(f"optimizer.matrices must be adamw or muon, not {self.matrices!r}")
        if not 0 <= self.ema_decay < 1 or self.max_bad_steps < 1:
            raise UserError("optimizer: need 0 <= ema_decay < 1 and max_bad_steps of at least 1")
        if not self.clip_norm > 0 or not self.skip_norm > 0:
            raise UserError("optimizer: clip_norm and skip_norm must be positive")


@dataclass(frozen=True)
class ComputeSettings:
    """How it is computed."""

    device: str = "cuda"
    dtype: Literal["float32", "float64", "bfloat16"] = "bfloat16"
    """Of matrix products."""
    master_dtype: Literal["float32", "float64"] = "float32"
    """Of the weights."""
    newton_schulz_dtype: Literal["float32", "float64", "bfloat16"] | None = None
    tf32: bool = True
    compile: bool = False
    """Compile the network's blocks (minutes, at first). Where that fails, the run goes on without, and says so."""
    graphs: bool = True
    """On CUDA, record the network, the surface terms and the optimizer's steps as CUDA graphs (seconds). What cannot be
    recorded runs as it is, and the run says so. With ``sp_size`` above 1, only the optimizer's steps are recorded."""
    checkpoint_activations: bool = False
    views_per_rendering: int | None = None
    """Target views of each scene that are rendered, with their loss and its gradient, at a time; None: all."""
    attention_backend: str = "sdpa"
    """PyTorch's choice by default: it compiles without conditions, and windows are small in training."""
    sp_size: int = 1
    """Processes that share the views of a scene; the others, if any, share the scenes of a batch."""

    def to_compute(self) -> Compute:
        """As the model takes it."""
        dtype = _DTYPES[self.dtype]
        iteration = _DTYPES[self.newton_schulz_dtype] if self.newton_schulz_dtype else None
        return Compute(
            dtype=None if self.dtype == self.master_dtype else dtype,
            newton_schulz_dtype=iteration,
            attention_backend=self.attention_backend,
            checkpoint_activations=self.checkpoint_activations,
        )

    @property
    def parameter_dtype(self) -> torch.dtype:
        return _DTYPES[self.master_dtype]


@dataclass(frozen=True)
class BudgetSettings:
    """How long it takes."""

    schedule_by: Literal["steps", "time"] = "steps"
    """What ends a phase and moves the learning rate: its ``steps``, or its ``share`` of ``max_seconds``."""
    max_seconds: float | None = None
    """Of training over all sittings; needed for ``time``, and a limit for ``steps``."""
    stop_after_seconds: float | None = None
    """Of this sitting: then a checkpoint is written, and the same command goes on from there."""

    def __post_init__(self) -> None:
        if self.schedule_by == "time" and self.max_seconds is None:
            raise UserError("budget.schedule_by=time needs budget.max_seconds")
        for name in ("max_seconds", "stop_after_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"budget.{name} must be positive, not {value}")


@dataclass(frozen=True)
class ReportSettings:
    """What is written, and how often (in steps)."""

    log_every: int = 20
    checkpoint_every: int = 500
    validate_every: int = 1000
    validation_scenes: int = 16
    validation_targets: int = 4
    validation_views: tuple[int, ...] = (8,)

    def __post_init__(self) -> None:
        if min(getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "validation_views") < 1:
            raise UserError("report: every interval and number must be at least 1")
        if not self.validation_views or min(self.validation_views) < 1:
            raise UserError("report.validation_views must be positive numbers")


@dataclass(frozen=True)
class TrainingSettings:
    """One run: see the classes of its parts."""

    stage: str
    output: Path
    phases: tuple[Phase, ...]
    seed: int = 0
    initial_weights: Path | None = None
    """Checkpoint to start from; None: random weights."""
    perceptual_features: PerceptualFeatures = "vgg16"
    """Of which network: LPIPS' VGG-16, or the paper's VGG-19. See :mod:`tttlrm.training.perceptual`."""
    perceptual_weights: Path | None = None
    """For vgg16 the folder with the LPIPS weights, as :func:`tttlrm.lpips.load_lpips` keeps them; None: the user's
    cache. For vgg19 the file with its weights, as :func:`tttlrm.training.vgg.read_vgg19` reads it; needed then."""
    model: ModelConfig = field(default_factory=ModelConfig)
    schedule: Schedule = field(default_factory=Schedule)
    data: DataSettings = field(default_factory=DataSettings)
    loss: LossWeights = field(default_factory=LossWeights)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    report: ReportSettings = field(default_factory=ReportSettings)

    def __post_init__(self) -> None:
        if not self.phases:
            raise UserError("phases: a run needs at least one")
        if self.budget.schedule_by == "steps" and min(phase.steps for phase in self.phases) < 1:
            raise UserError("phases: each needs a positive number of steps where budget.schedule_by is steps")
        for phase in self.phases:
            for length in phase.size:
                if length % self.model.patch:
                    raise UserError(f"phases: size {phase.size} is not a multiple of the patch size {self.model.patch}")
            if self.data.input_targets > min(phase.views):
                raise UserError("data.input_targets is larger than the smallest number of input views")
        if self.schedule.kind == "ar" and not self.data.ordered:
            raise UserError("schedule.kind=ar needs data.ordered=true: its chunks are consecutive views")
        if self.data.poses != self.model.pose_reference(self.schedule):
            raise UserError(
                f"data.poses={self.data.poses} is not what model.poses={self.model.poses} means with the "
                f"{self.schedule.kind} schedule: {self.model.pose_reference(self.schedule)}"
            )

    def loss_of(self, phase: Phase, progress: float = 0.0) -> LossWeights:
        """The factors at some point of a phase, whose progress goes from 0 to 1."""
        first, last = phase.loss or self.loss, phase.final_loss
        if last is None:
            return first
        names = (item.name for item in dataclasses.fields(LossWeights))
        return LossWeights(
            **{name: getattr(first, name) * (1 - progress) + getattr(last, name) * progress for name in names}
        )

    @property
    def has_perceptual_term(self) -> bool:
        """Whether the loss has one at any time."""
        return any(self.loss_of(phase, at).perceptual for phase in self.phases for at in (0.0, 1.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """Inverse of :meth:`to_dict`; raises UserError for unknown keys, missing ones, and wrong types."""
        result: TrainingSettings = _build(cls, values, "")
        return result


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _build(kind: Any, value: Any, where: str) -> Any:
    """A value of the annotated type from plain ones."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            if type(None) in arguments:
                return None
            raise UserError(f"settings: {where} must have a value")
        options = [option for option in arguments if option is not type(None)]
        return _build(options[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"settings: {where} must be one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    if origin is tuple:
        return _build_tuple(arguments, value, where)
    return _build_scalar(kind, value, where)


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise UserError(f"settings: {where or 'the whole'} must be a mapping, not {value!r}")
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    unknown = sorted(set(map(str, value)) - set(hints))
    if unknown:
        raise UserError(f"settings: unknown key {prefix}{unknown[0]}; there are {', '.join(hints)}")
    required = (f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING)
    missing = [name for name in required if name not in value]
    if missing:
        raise UserError(f"settings: {prefix}{missing[0]} is missing")
    return kind(**{name: _build(hints[name], item, f"{prefix}{name}") for name, item in value.items()})


def _build_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"settings: {where} must be a list, not {value!r}")
    if arguments[-1] is Ellipsis:
        kinds = [arguments[0]] * len(value)
    elif len(arguments) == len(value):
        kinds = list(arguments)
    else:
        raise UserError(f"settings: {where} must be a list of {len(arguments)}, not {list(value)!r}")
    return tuple(_build(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _build_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"settings: {where} must be of type {kind.__name__}, not {value!r}")
    return value
