"""The verdict on each printed number: one of five, with the reason; nothing is left blank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.cells import Cell
from bench.environment import Environment
from bench.measured import Measured, is_disturbed
from bench.paper import PaperRow
from bench.plans import Plan
from tttlrm.config import ModelConfig
from tttlrm.scenes.selection import K_MEANS

VerdictKind = Literal["reproduced", "not reproduced", "not comparable", "not available", "not run"]


@dataclass(frozen=True)
class Verdict:
    kind: VerdictKind
    reason: str | None = None


_PUBLISHED_VIEWS = (16, 32)
_WITH_PUBLISHED_VIEWS = ("dl3dv", "tnt")
"""Datasets for whose scenes there are lists of as many input views, by the rule of the paper's evaluation."""


def judge(plan: Plan, row: PaperRow, column: str, measured: Measured) -> Verdict:
    """Compare a printed number with the measured one. What a reader should know besides goes with the reason."""
    verdict, caveat = _compare(plan, row, column, measured), own_input_views(measured)
    if caveat is None:
        return verdict
    return Verdict(verdict.kind, f"{verdict.reason}; {caveat}" if verdict.reason else caveat)


def own_input_views(measured: Measured) -> str | None:
    """Whether the input views were chosen here although there are published lists of them; as a note, if so."""
    for result in measured.records:
        cell, dataset = result.cell, result.cell.dataset
        if dataset.name not in _WITH_PUBLISHED_VIEWS or cell.input_views not in _PUBLISHED_VIEWS:
            continue
        chosen = result.input_frames_from.get(K_MEANS, 0)
        if chosen:
            scenes = f"{chosen} of {len(dataset.scenes)} scenes"
            return f"input views of {scenes} chosen here by K-means, not those of the published list"
    return None


def _compare(plan: Plan, row: PaperRow, column: str, measured: Measured) -> Verdict:
    if measured.absent is not None:
        status, reason = measured.absent
        return Verdict("not available" if status == "unavailable" else "not run", reason)
    printed = row.values[column]
    if printed is None:
        return Verdict("not comparable", "no value is printed to compare with")
    obstacles = differences(plan, row, column, measured)
    if obstacles:
        return Verdict("not comparable", "; ".join(obstacles))
    assert measured.estimate is not None
    difference = measured.estimate.value - printed
    if plan.tolerances[column].allows(difference, printed):
        return Verdict("reproduced")
    return Verdict("not reproduced", f"off by {difference:+.{plan.columns[column].decimals + 1}f}")


def differences(plan: Plan, row: PaperRow, column: str, measured: Measured) -> list[str]:
    """What keeps a measured value from being compared with the printed one."""
    record = measured.records[0]
    cell, conditions = record.cell, plan.conditions
    found = []
    if plan.columns[column].kind == "quality":
        dataset, scenes = conditions.data_of(plan.columns[column])
        if cell.weights.kind == "random":
            found.append("random weights, so that quality means nothing")
        elif cell.weights.sha256 not in conditions.weights_sha256:
            found.append(f"other weights than the paper's ({conditions.weights})")
        if cell.dataset.name != dataset or len(cell.dataset.scenes) != scenes:
            found.append(
                f"other scenes ({_scenes(cell.dataset.name, len(cell.dataset.scenes))} instead of "
                f"{_scenes(dataset, scenes)})"
            )
    else:
        if not on_paper_device(record.environment, cell, conditions.device):
            found.append(f"another device ({device_name(record.environment, cell)} instead of {conditions.device})")
        if is_disturbed(measured.records):
            found.append("other work on the machine disturbed it")
        if cell.builder is None and not _same_size(cell):
            found.append("a smaller model")
    if not _same_images(cell, tuple(row.labels["resolution"])):
        found.append("smaller images")
    if cell.input_views != row.labels["input_views"]:
        found.append("fewer views")
    return found


def _same_images(cell: Cell, printed: tuple[int, ...]) -> bool:
    """As printed, but for what the patch size does not divide: 540 rows are run as 536, as in the release."""
    patch = cell.model["patch"] if cell.builder is None else 1
    return all(0 <= side - here < patch for side, here in zip(printed, cell.resolution, strict=True))


def on_paper_device(environment: Environment, cell: Cell, device: str) -> bool:
    return cell.device == "cuda" and bool(environment.gpus) and device.lower() in environment.gpus[0].name.lower()


def device_name(environment: Environment, cell: Cell) -> str:
    if cell.device == "cuda" and environment.gpus:
        return environment.gpus[0].name
    return f"{environment.cpu}, {environment.cpu_cores} cores"


def _scenes(dataset: str, count: int) -> str:
    return f"{count} of {dataset}"


def _same_size(cell: Cell) -> bool:
    """Whether what a time depends on is as released; the mixer follows from the method."""
    released = ModelConfig()
    sizes = (
        "width", "blocks", "patch", "attention_head", "fast_weight_expansion", "fast_weight_head", "mlp_expansion",
        "sh_degree",
    )  # fmt: skip
    return all(cell.model.get(name) == getattr(released, name) for name in sizes)
