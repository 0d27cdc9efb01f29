"""From a table's configuration and the paper's rows to cells."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cells import Cell, Dataset, Kind, Weights
from bench.environment import machine_label
from bench.errors import SettingsError
from bench.paper import PaperRow, load_paper
from bench.plans import Plan, PlanRow
from bench.settings import CellSettings, DatasetSettings, Settings
from tttlrm.config import ModelConfig
from tttlrm.errors import UserError
from tttlrm.files import sha256_of
from tttlrm.gaussians import default_pruning

SCENE_FILE = "opencv_cameras.json"


@dataclass(frozen=True)
class Locations:
    """Where a cell's inputs lie on this machine. No part of the cell."""

    dataset_root: Path | None
    weights: Path | None


@dataclass(frozen=True)
class Planned:
    """A plan, and where each cell's inputs lie."""

    plan: Plan
    locations: Mapping[str, Locations]


def plan_table(settings: Settings) -> Planned:
    """All cells of the table, in the paper's order, whichever of them are asked for (:func:`asked_cells`)."""
    table = settings.table
    paper_table = load_paper(table.paper).table(table.name)
    if paper_table.version != table.version:
        raise SettingsError(f"table.version is {table.version}, and the values are of version {paper_table.version}")
    _check_columns(settings, paper_table.columns)
    rows: list[PlanRow] = []
    cells: dict[str, Cell] = {}
    locations: dict[str, Locations] = {}
    for row in paper_table.rows:
        for sp_size in settings.cells.sp_size:
            reason = _left_out(settings, row)
            made = {} if reason else _row_cells(settings, row, sp_size)
            rows.append(
                PlanRow(
                    paper_row=row.key,
                    sp_size=sp_size,
                    cells={kind: tuple(cell.id for cell, _ in of_kind) for kind, of_kind in made.items()},
                    left_out=reason,
                )
            )
            for cell, where in (pair for of_kind in made.values() for pair in of_kind):
                cells[cell.id], locations[cell.id] = cell, where
    plan = Plan(
        table=table.name,
        paper=paper_table.paper,
        paper_version=paper_table.version,
        profile=settings.profile.name,
        machine=settings.machine or machine_label(settings.resolved_device),
        order_seed=settings.order_seed,
        columns=table.columns,
        conditions=table.paper_conditions,
        tolerances=settings.tolerances,
        claims=table.claims,
        rows=tuple(rows),
        cells=cells,
    )
    return Planned(plan.sealed(), locations)


def asked_cells(plan: Plan, choice: CellSettings) -> frozenset[str]:
    """Ids of the plan's cells that ``cells.rows`` and ``cells.kinds`` ask for.

    Raises SettingsError if the paper's table has no such row.
    """
    keys = [row.key for row in load_paper(plan.paper).table(plan.table).rows]
    positions = range(1, len(keys) + 1) if choice.rows is None else choice.rows
    outside = [position for position in positions if not 1 <= position <= len(keys)]
    if outside:
        raise SettingsError(f"cells.rows: {plan.table} has rows 1 to {len(keys)}, not {outside[0]}")
    asked = {keys[position - 1] for position in positions}
    rows = [row for row in plan.rows if row.paper_row in asked]
    return frozenset(cell_id for row in rows for kind in choice.kinds for cell_id in row.cells.get(kind, ()))


def _check_columns(settings: Settings, columns: tuple[str, ...]) -> None:
    for column in columns:
        if column not in settings.table.columns:
            raise SettingsError(f"{settings.table.name} does not say how the paper's column {column} is measured")
        if column not in settings.tolerances:
            raise SettingsError(f"tolerances has no {column}, a column of {settings.table.name}")


def _left_out(settings: Settings, row: PaperRow) -> str | None:
    if row.labels["method"] not in settings.table.methods:
        return f"{row.labels['method']} is not a method of this suite"
    return None


def _row_cells(settings: Settings, row: PaperRow, sp_size: int) -> dict[Kind, list[tuple[Cell, Locations]]]:
    seeds: dict[Kind, tuple[int, ...]] = {"quality": settings.cells.seeds, "speed": settings.cells.seeds[:1]}
    return {kind: [_cell(settings, row, kind, sp_size, seed) for seed in of_kind] for kind, of_kind in seeds.items()}


def _cell(settings: Settings, row: PaperRow, kind: Kind, sp_size: int, seed: int) -> tuple[Cell, Locations]:
    profile, labels = settings.profile, row.labels
    method, views = labels["method"], int(labels["input_views"])
    weights, weights_path = _weights(settings, kind, method)
    dataset, root = _dataset(profile.datasets[kind])
    cell = Cell(
        kind=kind,
        method=method,
        model=_model(settings, method),
        weights=weights,
        dataset=dataset,
        resolution=_resolution(settings, labels["resolution"]),
        input_views=views,
        virtual_views=int(labels.get("virtual_views", views)),
        schedule=settings.table.schedule,
        sp_size=sp_size,
        precision=profile.precision,
        newton_schulz_precision=profile.newton_schulz_precision,
        attention_backend=settings.cells.attention_backend,
        tile_tokens=profile.tile_tokens,
        threads=profile.threads,
        pruning=default_pruning(views) if profile.pruning == "paper" else None,
        device=settings.resolved_device,
        seed=seed,
        lpips=profile.lpips if kind == "quality" else None,
        sampling=profile.sampling if kind == "speed" else None,
    )
    return cell, Locations(root, weights_path)


def _model(settings: Settings, method: str) -> dict[str, Any]:
    overrides = {**settings.profile.model, **settings.table.methods[method]}
    try:
        return ModelConfig.from_dict(overrides).to_dict()
    except UserError as error:
        raise SettingsError(f"profile.model and table.methods.{method}: {error}") from None


def _resolution(settings: Settings, printed: tuple[int, int]) -> tuple[int, int]:
    """The paper's height and width, or what the profile has in their place."""
    mapping = settings.profile.resolutions
    name = f"{printed[0]}x{printed[1]}"
    if not mapping:
        return (int(printed[0]), int(printed[1]))
    if name not in mapping:
        raise SettingsError(f"profile.resolutions has no {name}, a resolution of {settings.table.name}")
    return mapping[name]


def _weights(settings: Settings, kind: Kind, method: str) -> tuple[Weights, Path | None]:
    choices = settings.profile.weights.get(kind, {})
    if method not in choices:
        raise SettingsError(f"profile.weights.{kind} has no {method}")
    choice = choices[method]
    if choice == "random":
        return Weights(kind="random", name="random"), None
    if choice == "unreleased":
        return Weights(kind="unreleased", name="unreleased"), None
    path = Path(choice)
    digest = sha256_of(path) if path.is_file() else None
    return Weights(kind="file", name=path.name, sha256=digest), path


def _dataset(settings: DatasetSettings) -> tuple[Dataset, Path | None]:
    root, digest = settings.root, None
    if settings.source == "procedural":
        scenes = tuple(str(at) for at in range(settings.scenes))
    elif root is None:
        raise SettingsError(f"dataset {settings.name}: a folder of scenes needs a root")
    else:
        files = sorted(root.glob(f"*/{SCENE_FILE}"))[: settings.scenes]
        scenes = tuple(file.parent.name for file in files)
        digest = hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest() if files else None
    dataset = Dataset(
        name=settings.name,
        source=settings.source,
        content=settings.content,
        split=settings.split,
        seed=settings.seed,
        scenes=scenes,
        test_views=settings.test_views,
        digest=digest,
    )
    return dataset, root
