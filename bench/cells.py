"""A cell: one number-bearing run, completely described, with an id that is the hash of that description."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from bench.schema import Frozen, Growing, sha256_of_json
from tttlrm.config import ElasticUpdate, ModelConfig, Schedule

Kind = Literal["quality", "speed"]
Precision = Literal["float32", "bfloat16", "float64"]

ID_LENGTH = 16


class Sampling(Frozen):
    """How a time is sampled; see :mod:`bench.timing`."""

    warmup_s: float = Field(ge=0)
    interval: float = Field(gt=0)
    """Aimed half-width of the median's interval, as a share of the median."""
    confidence: float = Field(gt=0.5, lt=1)
    min_samples: int = Field(ge=1)
    max_samples: int = Field(ge=1)
    limit_s: float = Field(gt=0)


class Dataset(Frozen):
    """The scenes of a cell, and the views that are rendered of each."""

    name: str
    source: Literal["procedural", "folder"]
    content: Literal["object", "room"]
    """Of procedural scenes; of the others it says how poses are meant."""
    split: Literal["train", "validation", "test"]
    seed: int
    scenes: tuple[str, ...]
    """Names: positions in the split of procedural scenes, folder names of the others."""
    test_views: int | None = Field(ge=1)
    """Views a scene that are compared; None: all that the scene sets aside."""
    digest: str | None
    """sha256 of the scenes' camera files; None for procedural scenes."""


class Weights(Frozen):
    """random: drawn from the cell's seed. bundled: of a model that comes with ``tttlrm``. unreleased: the paper's own,
    which nobody else has. untrained: of a training run that nobody has made. external: of another system, whose values
    were imported. none: the method has no weights."""

    kind: Literal["random", "bundled", "file", "unreleased", "untrained", "external", "none"]
    name: str
    sha256: str | None = None


class ScheduleChoice(Growing):
    """Of the fast-weight updates; ``views_per_chunk`` is unused by ``full``."""

    LATER: ClassVar[frozenset[str]] = frozenset({"elastic"})

    kind: Literal["full", "ar"]
    views_per_chunk: int = Field(ge=1)
    elastic: bool = False
    """The selective update, with the strengths of :class:`tttlrm.config.ElasticUpdate`."""

    def resolve(self) -> Schedule:
        return Schedule(self.kind, self.views_per_chunk, ElasticUpdate() if self.elastic else None)


class PostOptimization(Frozen):
    """Gradient steps on the reconstructed Gaussians; see :mod:`bench.postoptimization`."""

    steps: int = Field(ge=1)
    views_per_step: int | None = Field(ge=1)
    """Input views that a step renders, taken in turn; None: all."""
    learning_rates: dict[str, float]
    """By tensor of :class:`tttlrm.gaussians.Gaussians`."""


class Cell(Growing):
    """One run. Two cells with the same content are the same cell, and are run once.

    Where things lie (paths of data and weights) is no part of it: digests say what they are.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"merge", "post_optimization", "builder"})

    kind: Kind
    method: str
    model: dict[str, Any]
    """The complete :class:`tttlrm.config.ModelConfig`; of a method with a builder, whatever that understands."""
    weights: Weights
    dataset: Dataset
    resolution: tuple[int, int]
    """Height, width."""
    input_views: int = Field(ge=1)
    virtual_views: int = Field(ge=1)
    """Input views whose pixels become Gaussians."""
    schedule: ScheduleChoice
    sp_size: int = Field(ge=1)
    precision: Precision
    newton_schulz_precision: Precision | None
    attention_backend: str
    tile_tokens: int = Field(ge=1)
    threads: int | None = Field(ge=1)
    """Of a process on the CPU; None: PyTorch's choice."""
    pruning: tuple[float, float] | None
    """keep_ratio, random_ratio of :meth:`tttlrm.gaussians.Gaussians.prune`."""
    device: Literal["cpu", "cuda"]
    seed: int
    lpips: bool | None
    """Quality runs only."""
    sampling: Sampling | None
    """Speed runs only."""
    merge: bool = False
    """Predict-and-merge: each chunk of the schedule is reconstructed on its own, and the Gaussians are put together."""
    post_optimization: PostOptimization | None = None
    builder: str | None = None
    """``module:function`` that makes the method; None: the suite's own model. See docs/adding-a-method.md."""

    @property
    def id(self) -> str:
        return sha256_of_json(self.model_dump(mode="json"))[:ID_LENGTH]

    @property
    def model_config_resolved(self) -> ModelConfig:
        return ModelConfig.from_dict(self.model)

    def label(self) -> str:
        """A short name for progress and logs: ``tttlrm 64x64 16 views quality``."""
        height, width = self.resolution
        ranks = f" sp{self.sp_size}" if self.sp_size > 1 else ""
        traits = " selective" if self.schedule.elastic else ""
        traits += " merged" if self.merge else ""
        traits += f" +{self.post_optimization.steps} steps" if self.post_optimization else ""
        data = f" of {self.dataset.name}" if self.kind == "quality" else ""
        return f"{self.method}{traits} {height}x{width} {self.input_views} views{ranks} {self.kind}{data}"
