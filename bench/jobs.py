"""A job: cells that one worker process runs one after the other, and the file that says so."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from bench.cells import Cell, Kind
from bench.planning import Locations
from bench.schema import Frozen, sha256_of_json
from bench.store import Store
from tttlrm.files import write_text


class JobCell(Frozen):
    """A cell, and where this machine has its inputs."""

    cell: Cell
    attempt: int
    dataset_root: Path | None
    weights: Path | None


class Job(Frozen):
    """What a worker reads. Paths are absolute: a worker may start in any folder."""

    id: str
    table: str
    store_root: Path
    results_dir: Path
    cells: tuple[JobCell, ...]

    @property
    def store(self) -> Store:
        return Store(self.store_root, self.results_dir)

    def without(self, done: Iterable[str]) -> Job | None:
        """The same job with what is left of it; None if that is nothing."""
        gone = set(done)
        left = tuple(item for item in self.cells if item.cell.id not in gone)
        return self.model_copy(update={"cells": left}) if left else None

    def label(self) -> str:
        first = self.cells[0].cell
        return first.label() if len(self.cells) == 1 else f"{first.kind}, {len(self.cells)} cells"


class Event(Frozen):
    """One line of a worker's event file."""

    kind: Literal["started", "scene", "finished", "skipped"]
    cell_id: str
    time: float
    done: int = 0
    total: int = 0
    status: str = ""


def events_path(job_file: Path) -> Path:
    return job_file.with_suffix(".events.jsonl")


def locks_dir(store: Store) -> Path:
    return store.work_dir() / "locks"


def write_job(job: Job) -> Path:
    """Write the job's file into the store's work folder, with an empty event file beside it."""
    folder = job.store.work_dir() / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{job.id}.json"
    write_text(path, job.model_dump_json(indent=1) + "\n")
    write_text(events_path(path), "")
    return path


def group_cells(
    cells: Iterable[Cell],
    locations: Mapping[str, Locations],
    attempts: Mapping[str, int],
    store: Store,
    cells_per_job: Mapping[Kind, int],
    order_seed: int,
) -> list[Job]:
    """Jobs of cells that share a kind, data, device and ranks, in an order shuffled with ``order_seed``.

    The shuffle keeps slow drifts of a machine (heat, other users) from looking like an effect of the row.
    """
    shuffler = random.Random(order_seed)
    ordered = sorted(cells, key=lambda cell: cell.id)
    shuffler.shuffle(ordered)
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in ordered:
        groups[_shared(cell)].append(cell)
    jobs = []
    for group in groups.values():
        size = max(1, cells_per_job.get(group[0].kind, 1))
        for start in range(0, len(group), size):
            jobs.append(_job(group[start : start + size], locations, attempts, store))
    shuffler.shuffle(jobs)
    return jobs


def _shared(cell: Cell) -> str:
    return sha256_of_json(cell.model_dump(mode="json", include={"kind", "dataset", "device", "threads", "sp_size"}))


def _job(
    cells: list[Cell],
    locations: Mapping[str, Locations],
    attempts: Mapping[str, int],
    store: Store,
) -> Job:
    items = []
    for cell in cells:
        where = locations[cell.id]
        items.append(
            JobCell(
                cell=cell,
                attempt=attempts.get(cell.id, 0) + 1,
                dataset_root=where.dataset_root.resolve() if where.dataset_root else None,
                weights=where.weights.resolve() if where.weights else None,
            )
        )
    names = [f"{item.cell.id}:{item.attempt}" for item in items]
    return Job(
        id=f"{cells[0].kind}-{sha256_of_json(names)[:12]}",
        table=store.root.name,
        store_root=store.root.resolve(),
        results_dir=store.results_dir.resolve(),
        cells=tuple(items),
    )
