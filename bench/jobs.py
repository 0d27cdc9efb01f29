"""A job: cells that one worker process runs one after the other, and the file that says so."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from bench.cells import Cell, Kind
from bench.clusters import ONE_GROUP, JobShape
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
    """What a worker reads. Paths are absolute: a worker may start in any folder.

    Attributes:
        cells: of one kind, device and sp_size.
        replicas: groups of sp_size ranks that split the scenes of each cell.
        collective_timeout_s: how long ranks wait for each other before they give up.
        cell_limit_s: a cell that takes longer is stopped by the worker itself; None: the launcher watches.
    """

    id: str
    table: str
    store_root: Path
    results_dir: Path
    cells: tuple[JobCell, ...]
    replicas: int = 1
    collective_timeout_s: float = 600.0
    cell_limit_s: float | None = None

    @property
    def store(self) -> Store:
        return Store(self.store_root, self.results_dir)

    @property
    def ranks(self) -> int:
        """Processes that run the job together."""
        return self.replicas * self.cells[0].cell.sp_size

    @property
    def file(self) -> Path:
        return self.store.work_dir() / "jobs" / f"{self.id}.json"

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
    scene: str = ""


def events_path(job_file: Path, rank: int = 0) -> Path:
    """Each rank has a file of its own. Rank 0 tells of cells; the others of their scenes and failures."""
    return job_file.with_suffix(f".events-{rank}.jsonl" if rank else ".events.jsonl")


def claim_failure(job_file: Path, cell_id: str, attempt: int) -> bool:
    """Whether this process is the first to fail at the cell, so that the record is its to write: what fails after it
    does so because of it."""
    try:
        with job_file.with_suffix(f".failed-{cell_id}-{attempt}").open("x"):
            return True
    except FileExistsError:
        return False


def locks_dir(store: Store) -> Path:
    return store.work_dir() / "locks"


def write_job(job: Job) -> Path:
    """Write the job's file into the store's work folder, with an empty event file beside it."""
    path = job.file
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{job.id}.*"):  # of an earlier run of the same job
        left.unlink()
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
    shape: JobShape = ONE_GROUP,
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
            jobs.append(_job(group[start : start + size], locations, attempts, store, shape))
    shuffler.shuffle(jobs)
    return jobs


def _shared(cell: Cell) -> str:
    return sha256_of_json(cell.model_dump(mode="json", include={"kind", "dataset", "device", "threads", "sp_size"}))


def _job(
    cells: list[Cell],
    locations: Mapping[str, Locations],
    attempts: Mapping[str, int],
    store: Store,
    shape: JobShape,
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
        replicas=min(shape.replicas(cell) for cell in cells),
        collective_timeout_s=shape.collective_timeout_s,
        cell_limit_s=shape.cell_limit_s,
    )
