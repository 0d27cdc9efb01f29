"""From a table's configuration and the paper's rows to cells."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.cells import Cell, Dataset, Kind, PostOptimization, Weights
from bench.environment import machine_label
from bench.errors import SettingsError
from bench.paper import PaperRow, PaperTable, load_paper
from bench.plans import Plan, PlanRow
from bench.settings import CellSettings, Column, DatasetSettings, MethodSettings, Settings
from tttlrm.bundled import bundled_model
from tttlrm.checkpoints import read_checkpoint
from tttlrm.config import ModelConfig
from tttlrm.errors import UserError
from tttlrm.files import sha256_of
from tttlrm.gaussians import default_pruning

SCENE_FILE = "opencv_cameras.json"
BUNDLED = "bundled:"
"""Before the name of a bundled model, in ``profile.weights``."""


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


@dataclass(frozen=True)
class _Run:
    """One kind of run that the table's columns need, and the key of its dataset."""

    name: str
    kind: Kind
    dataset: str


@dataclass(frozen=True)
class _Inputs:
    """Of a cell: what it is run on, and where that lies."""

    weights: Weights
    weights_path: Path | None
    trained: ModelConfig | None
    """Configuration of a bundled model's file."""
    dataset: Dataset
    root: Path | None


def plan_table(settings: Settings) -> Planned:
    """All cells of the table, in the paper's order, whichever of them are asked for (:func:`asked_cells`)."""
    table = settings.table
    paper_table = load_paper(table.paper).table(table.name).with_rows(table.rows)
    if paper_table.version != table.version:
        raise SettingsError(f"table.version is {table.version}, and the values are of version {paper_table.version}")
    _check_columns(settings, paper_table.columns)
    planner = _Planner(settings)
    rows: list[PlanRow] = []
    cells: dict[str, Cell] = {}
    locations: dict[str, Locations] = {}
    for row in paper_table.rows:
        name, method = find_method(table.methods, row)
        if method is None or method.unavailable is not None:
            reason = f"{name} is not a method of this suite" if method is None else method.unavailable
            rows.append(PlanRow(paper_row=row.key, sp_size=1, cells={}, left_out=reason))
            continue
        for sp_size in settings.cells.sp_size or table.sp_size:
            made: dict[str, tuple[str, ...]] = {}
            for run in planner.runs:
                of_run = [planner.cell(row, name, method, run, sp_size, seed) for seed in planner.seeds(run.kind)]
                ids = tuple(cell.id for cell, _ in of_run)
                made[run.name] = ids
                cells.update(zip(ids, (cell for cell, _ in of_run), strict=True))
                locations.update(zip(ids, (where for _, where in of_run), strict=True))
            rows.append(PlanRow(paper_row=row.key, sp_size=sp_size, cells=made))
    plan = Plan(
        table=table.name,
        paper=paper_table.paper,
        paper_version=paper_table.version,
        profile=settings.profile.name,
        machine=settings.machine or machine_label(settings.resolved_device),
        order_seed=settings.order_seed,
        columns=table.columns,
        conditions=table.paper_conditions,
        tolerances={name: settings.tolerances[_tolerance(name, column)] for name, column in table.columns.items()},
        claims=table.claims,
        rows=tuple(rows),
        cells=cells,
        notes=tuple(_notes(settings, paper_table)),
        added_rows=table.rows,
    )
    return Planned(plan.sealed(), locations)


def find_method(methods: Mapping[str, MethodSettings], row: PaperRow) -> tuple[str, MethodSettings | None]:
    """The first of the table's methods that a row is of, with its name; None, with the row's, if there is none."""
    for name, method in methods.items():
        if all(_has(row, label, value) for label, value in (method.when or {"method": name}).items()):
            return name, method
    return str(row.labels.get("method", row.key)), None


def asked_cells(plan: Plan, choice: CellSettings) -> frozenset[str]:
    """Ids of the plan's cells that ``cells.rows`` and ``cells.kinds`` ask for.

    Raises SettingsError if the paper's table has no such row.
    """
    keys = [row.key for row in load_paper(plan.paper).table(plan.table).with_rows(plan.added_rows).rows]
    positions = range(1, len(keys) + 1) if choice.rows is None else choice.rows
    outside = [position for position in positions if not 1 <= position <= len(keys)]
    if outside:
        raise SettingsError(f"cells.rows: {plan.table} has rows 1 to {len(keys)}, not {outside[0]}")
    asked = {keys[position - 1] for position in positions}
    ids = (
        cell_id for row in plan.rows if row.paper_row in asked for of_run in row.cells.values() for cell_id in of_run
    )
    return frozenset(cell_id for cell_id in ids if plan.cells[cell_id].kind in choice.kinds)


class _Planner:
    """Makes the cells of one table; what cells share is made once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._scale = settings.profile.scale(settings.table)
        self._inputs: dict[tuple[Kind, str, str], _Inputs] = {}
        self._models: dict[tuple[str, str], dict[str, Any]] = {}
        table = settings.table
        runs = {
            column.run: _Run(column.run, column.kind, column.dataset or table.datasets[column.kind])
            for column in table.columns.values()
        }
        self.runs = tuple(runs.values())

    def seeds(self, kind: Kind) -> tuple[int, ...]:
        seeds = self._settings.cells.seeds
        return seeds if kind == "quality" else seeds[:1]

    def cell(
        self, row: PaperRow, name: str, method: MethodSettings, run: _Run, sp_size: int, seed: int
    ) -> tuple[Cell, Locations]:
        settings, profile = self._settings, self._settings.profile
        inputs = self._inputs_of(run, method.name or name)
        views = self._views(row)
        quality = run.kind == "quality"
        cell = Cell(
            kind=run.kind,
            method=method.name or name,
            model=self._model(name, method, run, inputs),
            weights=inputs.weights,
            dataset=inputs.dataset,
            resolution=self._resolution(row.labels["resolution"]),
            input_views=views,
            virtual_views=min(views, int(row.labels.get("virtual_views", settings.table.virtual_views or views))),
            schedule=method.schedule or settings.table.schedule,
            sp_size=sp_size,
            precision=profile.precision,
            newton_schulz_precision=profile.newton_schulz_precision,
            attention_backend=method.attention_backend or settings.cells.attention_backend,
            tile_tokens=profile.tile_tokens,
            threads=profile.threads.get(run.kind),
            pruning=default_pruning(views) if self._scale.pruning == "paper" else None,
            device=settings.resolved_device,
            seed=seed,
            lpips=profile.lpips and _wants_lpips(settings, run) if quality else None,
            sampling=None if quality else profile.sampling,
            merge=method.merge,
            builder=method.builder,
            post_optimization=self._post_optimization(int(row.labels.get("steps", 0))),
        )
        return cell, Locations(inputs.root, inputs.weights_path)

    def _inputs_of(self, run: _Run, method: str) -> _Inputs:
        key = (run.kind, run.dataset, method)
        if key not in self._inputs:
            datasets = self._settings.profile.datasets
            if run.dataset not in datasets:
                raise SettingsError(f"profile.datasets has no {run.dataset}, which {self._settings.table.name} needs")
            self._inputs[key] = _Inputs(*_weights(self._settings, run.kind, method), *_dataset(datasets[run.dataset]))
        return self._inputs[key]

    def _model(self, name: str, method: MethodSettings, run: _Run, inputs: _Inputs) -> dict[str, Any]:
        if (name, run.name) not in self._models:
            self._models[name, run.name] = self._make_model(name, method, inputs)
        return self._models[name, run.name]

    def _make_model(self, name: str, method: MethodSettings, inputs: _Inputs) -> dict[str, Any]:
        """The bundled file's own configuration, or else the profile's with the method's changes."""
        if method.builder is not None:
            return method.model
        if inputs.trained is not None:
            trained = inputs.trained.to_dict()
            for key, value in method.model.items():
                if trained.get(key) != value:
                    raise SettingsError(
                        f"the bundled model {inputs.weights.name} has {key} {trained.get(key)!r}, and "
                        f"table.methods.{name} wants {value!r}"
                    )
            return trained
        values = {**self._settings.profile.model, **self._scale.model, **method.model}
        try:
            return ModelConfig.from_dict(values).to_dict()
        except UserError as error:
            raise SettingsError(f"profile.model and table.methods.{name}: {error}") from None

    def _resolution(self, printed: tuple[int, int]) -> tuple[int, int]:
        """The paper's height and width, or what the profile has in their place."""
        name = f"{printed[0]}x{printed[1]}"
        if not self._scale.resolutions:
            return (int(printed[0]), int(printed[1]))
        if name not in self._scale.resolutions:
            raise SettingsError(f"profile.scales: no {name}, a resolution of {self._settings.table.name}")
        return self._scale.resolutions[name]

    def _views(self, row: PaperRow) -> int:
        printed = int(row.labels["input_views"])
        return self._scale.views.get(str(printed), printed)

    def _post_optimization(self, steps: int) -> PostOptimization | None:
        if steps == 0:
            return None
        how = self._settings.profile.post_optimization
        return PostOptimization(steps=steps, views_per_step=how.views_per_step, learning_rates=how.learning_rates)


def _check_columns(settings: Settings, columns: tuple[str, ...]) -> None:
    for column in columns:
        if column not in settings.table.columns:
            raise SettingsError(f"{settings.table.name} does not say how the paper's column {column} is measured")
        name = _tolerance(column, settings.table.columns[column])
        if name not in settings.tolerances:
            raise SettingsError(f"tolerances has no {name}, which the column {column} of {settings.table.name} needs")


def _tolerance(name: str, column: Column) -> str:
    """Key of a column's tolerance: times have one for all stages."""
    return "time_s" if column.kind == "speed" else column.metric or name


def _wants_lpips(settings: Settings, run: _Run) -> bool:
    columns = settings.table.columns.items()
    return any(column.run == run.name and (column.metric or name) == "lpips" for name, column in columns)


def _has(row: PaperRow, label: str, wanted: Any) -> bool:
    found = row.labels.get(label)
    return found in wanted if isinstance(wanted, list) else found == wanted


def _notes(settings: Settings, paper_table: PaperTable) -> Iterator[str]:
    """What is scaled, then the table's own notes, then the profile's."""
    scale = settings.profile.scale(settings.table)
    views = {str(row.labels["input_views"]) for row in paper_table.rows}
    scaled = [f"{printed} → {scale.views[printed]}" for printed in sorted(views & scale.views.keys(), key=int)]
    if scaled:
        yield f"Input views, the paper's and those here: {', '.join(scaled)}."
    yield from settings.table.notes
    yield from scale.notes


def _weights(settings: Settings, kind: Kind, method: str) -> tuple[Weights, Path | None, ModelConfig | None]:
    choices = settings.profile.weights.get(kind, {})
    if method not in choices and "default" not in choices:
        raise SettingsError(f"profile.weights.{kind} has neither {method} nor default")
    choice = choices.get(method, choices.get("default", ""))
    if choice == "random":
        return Weights(kind="random", name="random"), None, None
    if choice == "unreleased":
        return Weights(kind="unreleased", name="unreleased"), None, None
    if choice == "none":
        return Weights(kind="none", name="none"), None, None
    if choice == "untrained":
        return Weights(kind="untrained", name="untrained"), None, None
    if choice.startswith(BUNDLED):
        model = bundled_model(choice.removeprefix(BUNDLED))
        config = _config_of(model.path)
        return Weights(kind="bundled", name=model.name, sha256=model.sha256), model.path, config
    path = Path(choice)
    digest = sha256_of(path) if path.is_file() else None
    return Weights(kind="file", name=path.name, sha256=digest), path, None


@lru_cache(maxsize=8)
def _config_of(path: Path) -> ModelConfig | None:
    _, config = read_checkpoint(path)
    return config


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
