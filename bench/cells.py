"""A cell: one number-bearing run, completely described, with an id that is the hash of that description."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bench.schema import Frozen, sha256_of_json
from tttlrm.config import ModelConfig, Schedule

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
    """random: drawn from the cell's seed. unreleased: the paper's own, which nobody else has."""

    kind: Literal["random", "unreleased", "file"]
    name: str
    sha256: str | None = None


class ScheduleChoice(Frozen):
    """Of the fast-weight updates; ``views_per_chunk`` is unused by ``full``."""

    kind: Literal["full", "ar"]
    views_per_chunk: int = Field(ge=1)

    def resolve(self) -> Schedule:
        return Schedule(self.kind, self.views_per_chunk)


class Cell(Frozen):
    """One run. Two cells with the same content are the same cell, and are run once.

    Where things lie (paths of data and weights) is no part of it: digests say what they are.
    """

    kind: Kind
    method: str
    model: dict[str, Any]
    """The complete :class:`tttlrm.config.ModelConfig`."""
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
        return f"{self.method} {height}x{width} {self.input_views} views{ranks} {self.kind}"
