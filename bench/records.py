"""A record: all that running one cell gave. One JSON document by cell, sealed by a digest, never edited.

Schema changelog
    1: first version.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from bench import SUITE_VERSION
from bench.cells import Cell
from bench.environment import Clocks, Environment
from bench.errors import RecordError
from bench.sanitize import local_sanitizer
from bench.schema import Frozen, Sealed
from bench.settings import describe

SCHEMA_VERSION = 1

Status = Literal["ok", "failed", "out_of_memory", "timeout", "unavailable"]


class RankMemory(Frozen):
    """Peak memory of one rank while its cell ran; what the device does not give is None.

    allocated, reserved: of the CUDA allocator. resident: of the whole process (CPU). resident_growth: over its size
    when the run started, the model being loaded by then.
    """

    rank: int
    allocated_mib: float | None = None
    reserved_mib: float | None = None
    resident_mib: float | None = None
    resident_growth_mib: float | None = None


class Phase(Frozen):
    """Raw samples of one run repeated; see :class:`bench.timing.Samples`. Their sum over the stages, by the slowest
    rank, is the phase's time. Medians and intervals are computed from them when a table is made."""

    stages: dict[str, tuple[tuple[float, ...], ...]]
    """stage -> [samples][ranks], seconds."""
    first_call: dict[str, float]
    warmup_calls: int
    warmup_s: float
    stopped: Literal["interval", "time limit", "sample limit"]
    waited_share: float | None
    """Share of the time, warm-up included, that the process waited for a core that others had (rank 0)."""


class SpeedResult(Frozen):
    """``reconstruct``: posed views on the device to Gaussians; ``show``: pruning and rendering them."""

    reconstruct: Phase
    show: Phase
    read_s: float | None
    """Reading the scene's images once, from wherever the system has them; None for scenes made on the spot."""
    gaussians: int
    """Before pruning."""
    rendered_views: int
    """In each sample of the stage ``render``."""
    clocks_before: tuple[Clocks, ...] = ()
    clocks_after: tuple[Clocks, ...] = ()


class ViewQuality(Frozen):
    """``view``: position among the scene's test views."""

    view: int
    psnr: float
    ssim: float
    lpips: float | None


class SceneQuality(Frozen):
    scene: str
    views: tuple[ViewQuality, ...]
    gaussians: int
    rendered_gaussians: int
    """After pruning."""
    usage: float
    """Share of the Gaussians, before pruning, with an opacity above 0.001."""
    seconds: float
    """Reading to metrics; for planning, not a measurement of speed."""


class QualityResult(Frozen):
    scenes: tuple[SceneQuality, ...]
    lpips_absent: str | None
    """Why there is no LPIPS."""


class Failure(Frozen):
    """What ended a run that is not ok."""

    kind: str
    message: str
    traceback: str | None
    rank: int | None


class Record(Sealed):
    schema_version: Literal[1] = 1
    suite_version: str = SUITE_VERSION
    table: str
    cell_id: str
    cell: Cell
    status: Status
    reason: str | None
    """One sentence; for every status but ok."""
    attempt: int = Field(ge=1)
    started: datetime
    finished: datetime
    job: str
    speed: SpeedResult | None = None
    quality: QualityResult | None = None
    memory: tuple[RankMemory, ...] = ()
    failure: Failure | None = None
    environment: Environment

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if self.cell_id != self.cell.id:
            raise ValueError(f"cell_id is {self.cell_id}, and the cell's content gives {self.cell.id}")
        if self.status == "ok" and (self.quality if self.cell.kind == "quality" else self.speed) is None:
            raise ValueError(f"status ok without a {self.cell.kind} result")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"status {self.status} without a reason")
        return self


def seal(record: Record) -> Record:
    """The record without names and secrets, with its digest: ready to be written.

    The cell is left as it is, because its id is the hash of its content; it holds no paths.
    """
    content = record.content()
    clean = local_sanitizer().value({key: value for key, value in content.items() if key != "cell"})
    return Record.model_validate_json(json.dumps({**clean, "cell": content["cell"]})).sealed()


def parse_record(text: str, path: Path) -> Record:
    """Read a record's JSON. Raises RecordError naming the file if it is not exactly what the suite wrote."""
    try:
        record = Record.model_validate_json(text)
    except ValidationError as error:
        raise RecordError(f"{path}: not a readable record, perhaps truncated ({describe(error)})") from None
    if not record.intact:
        raise RecordError(f"{path}: the record was changed after it was written (its digest does not match)")
    return record
