"""A record: all that running one cell gave. One JSON document by cell, sealed by a digest, never edited.

``bench/schemas/record.schema.json`` is this schema as JSON Schema (``python -m bench schema`` prints it), and
``bench/schemas/CHANGELOG.md`` says what changed with each version. Older versions are read too
(:mod:`bench.upgrades`).
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from bench import SUITE_VERSION
from bench.cells import Cell
from bench.devices import DeviceState
from bench.environment import Environment
from bench.errors import RecordError
from bench.sanitize import local_sanitizer
from bench.schema import Frozen, Growing, Sealed, is_intact, top_level
from bench.settings import describe
from bench.upgrades import UnknownVersion, upgrade_record

SCHEMA_VERSION = 2
SCHEMA_FILE = Path(__file__).parent / "schemas" / "record.schema.json"

Status = Literal["ok", "failed", "out_of_memory", "timeout", "unavailable"]


class RankMemory(Growing):
    """Peak memory of one rank while its cell ran; what the device does not give is None.

    allocated, reserved: of the CUDA allocator. resident: of the whole process (CPU). resident_growth: over its size
    when the run started, the model being loaded by then. by_stage_mib: of the allocator, stage -> its peak.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"by_stage_mib"})

    rank: int
    allocated_mib: float | None = None
    reserved_mib: float | None = None
    resident_mib: float | None = None
    resident_growth_mib: float | None = None
    by_stage_mib: dict[str, float] | None = None


class Phase(Frozen):
    """Raw samples of one run repeated; see :class:`bench.timing.Samples`. Their sum over the stages, by the slowest
    rank, is the phase's time. Medians and intervals are computed from them when a table is made."""

    stages: dict[str, tuple[tuple[float, ...], ...]]
    """stage -> [samples][ranks], seconds."""
    first_call: dict[str, float]
    warmup_calls: int
    warmup_s: float
    sampled_s: float | None = None
    """From the start of the first sample to the end of the last, what lies between samples included."""
    stopped: Literal["interval", "time limit", "sample limit"]
    waited_share: float | None
    """Share of the time, warm-up included, that the process waited for a core that others had (rank 0)."""
    before: tuple[DeviceState, ...] = ()
    """Each rank's device right before the first sample, by rank; empty where devices give nothing."""
    after: tuple[DeviceState, ...] = ()
    """Right after the last."""


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
    flops: float | None = None
    """Operations of one reconstruction, all ranks together: matrix products and attention, two for a multiplication
    with its addition."""
    peak_flops: float | None = None
    """Operations a second of rank 0's device in large matrix products of the cell's precision, measured here."""


class ViewQuality(Frozen):
    """``view``: position among the scene's test views."""

    view: int
    psnr: float
    ssim: float
    lpips: float | None


class SceneQuality(Frozen):
    """What imported values do not say is None."""

    scene: str
    views: tuple[ViewQuality, ...]
    gaussians: int | None
    rendered_gaussians: int | None
    """After pruning."""
    usage: float | None
    """Share of the Gaussians, before pruning, with an opacity above 0.001."""
    seconds: float | None
    """Reading to metrics; for planning, not a measurement of speed."""
    input_frames_from: str | None = None
    """Who chose the input views of a scene from a folder: ``k-means``, or whoever the scene file says. None: the scene
    is procedural, or the record older."""


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


class Source(Frozen):
    """Where values that this suite did not measure come from."""

    system: str
    """Who or what produced them, as tables name it."""
    citation: str
    """A paper, a page, a release."""
    file: str
    """Name of the imported file."""
    sha256: str


class Header(Frozen):
    """What planning a run needs of a record; see there."""

    cell_id: str
    status: Status
    reason: str | None
    attempt: int
    job: str


class Record(Sealed):
    schema_version: Literal[2] = 2
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
    external: Source | None = None
    """Set if the values were imported: nothing ran here, and the environment is that of the import."""
    environment: Environment

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if self.status == "ok" and (self.quality if self.cell.kind == "quality" else self.speed) is None:
            raise ValueError(f"status ok without a {self.cell.kind} result")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"status {self.status} without a reason")
        return self


def seal(record: Record) -> Record:
    """The record without names and secrets, with its digest: ready to be written.

    The cell is left as it is, because its id is the hash of its content; it holds no paths. Raises ValueError if it is
    another cell than the record's.
    """
    if record.cell_id != record.cell.id:
        raise ValueError(f"cell_id is {record.cell_id}, and the cell's content gives {record.cell.id}")
    content = record.content()
    clean = local_sanitizer().value({key: value for key, value in content.items() if key != "cell"})
    return Record.model_validate_json(json.dumps({**clean, "cell": content["cell"]})).sealed()


def parse_record(document: bytes, path: Path) -> Record:
    """Read a record's file, of any version of the schema so far, as the current one.

    Raises RecordError naming the file if it is not exactly what the suite wrote. A record that was upgraded keeps the
    id under which it lies, which is the hash of its cell in that version.
    """
    if not is_intact(document):
        raise RecordError(f"{path}: {not_intact(document, 'record')}")
    try:
        if top_level(document, "schema_version") == SCHEMA_VERSION:
            return Record.model_validate_json(document)
        return Record.model_validate(upgrade_record(json.loads(document)))
    except (ValidationError, UnknownVersion) as error:
        problem = describe(error) if isinstance(error, ValidationError) else str(error)
        raise RecordError(f"{path}: not a readable record ({problem})") from None


def parse_header(document: bytes, path: Path) -> Header:
    """Read only what planning needs. Raises RecordError as :func:`parse_record` does, but leaves the results unread."""
    if not is_intact(document):
        raise RecordError(f"{path}: {not_intact(document, 'record')}")
    try:
        return Header.model_validate({name: top_level(document, name) for name in Header.model_fields})
    except ValidationError as error:
        raise RecordError(f"{path}: not a readable record ({describe(error)})") from None


def not_intact(document: bytes, what: str) -> str:
    """What is wrong with a document whose digest does not match."""
    try:
        values = json.loads(document)
    except ValueError:
        return f"not a readable {what}, perhaps truncated (no complete JSON document)"
    if not isinstance(values, dict) or "digest" not in values:
        return f"not a readable {what}, perhaps truncated (no digest)"
    return f"the {what} was changed after it was written (its digest does not match)"


def schema_text() -> str:
    """The current schema as JSON Schema (draft 2020-12)."""
    schema = Record.model_json_schema(mode="serialization")
    title = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"Record, version {SCHEMA_VERSION}"}
    return json.dumps({**title, **{key: value for key, value in schema.items() if key != "title"}}, indent=1) + "\n"
