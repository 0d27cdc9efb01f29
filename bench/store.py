"""The folder of one table's records on one machine: ``<results>/<suite version>/<machine>/<table>/``.

Holds ``<cell id>.json`` (records), ``plan-<profile>.json``, and the rendered tables. Everything is written under a
temporary name and renamed, so that a reader never sees half a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from bench import SUITE_VERSION
from bench.errors import RecordError
from bench.plans import Plan
from bench.records import Header, Record, not_intact, parse_header, parse_record, seal
from bench.schema import is_intact
from bench.settings import describe
from tttlrm.files import write_text

_RECORD_NAME = re.compile(r"[0-9a-f]{16}\.json")
_WORK = ".work"
T = TypeVar("T", Record, Header)


@dataclass(frozen=True)
class Damaged:
    """A file in the place of a record that is not what the suite wrote."""

    cell_id: str
    problem: str


@dataclass(frozen=True)
class Store:
    """Records and plans of one table on one machine."""

    root: Path
    results_dir: Path

    @staticmethod
    def at(results_dir: Path, machine: str, table: str, version: str = SUITE_VERSION) -> Store:
        return Store(results_dir / version / machine / table, results_dir)

    def record_path(self, cell_id: str) -> Path:
        return self.root / f"{cell_id}.json"

    def plan_path(self, profile: str) -> Path:
        return self.root / f"plan-{profile}.json"

    def work_dir(self) -> Path:
        """For job files, logs and locks, which are no results: a folder that git ignores."""
        top = self.results_dir / _WORK
        top.mkdir(parents=True, exist_ok=True)
        ignore = top / ".gitignore"
        if not ignore.exists():
            write_text(ignore, "*\n")
        work = top / self.root.relative_to(self.results_dir)
        work.mkdir(parents=True, exist_ok=True)
        return work

    def write(self, record: Record) -> Record:
        """Seal and write a record in its place. Gives what was written."""
        sealed = seal(record)
        self.root.mkdir(parents=True, exist_ok=True)
        write_text(self.record_path(record.cell_id), sealed.document())
        return sealed

    def read(self, cell_id: str) -> Record | None:
        """None if there is no record. Raises RecordError if what is there is damaged or another cell's."""
        return self._read(cell_id, parse_record)

    def read_each(self, cell_ids: Iterable[str]) -> Iterator[tuple[str, Record | Damaged]]:
        """What is there for these cells, one after the other, so that they need not all be in memory at once; cells
        without a record are left out."""
        return self._read_each(cell_ids, parse_record)

    def read_all(self, cell_ids: Iterable[str]) -> dict[str, Record | Damaged]:
        return dict(self.read_each(cell_ids))

    def read_headers(self, cell_ids: Iterable[str]) -> dict[str, Header | Damaged]:
        """What planning needs of these cells' records; cells without a record are left out."""
        return dict(self._read_each(cell_ids, parse_header))

    def _read_each(
        self, cell_ids: Iterable[str], parse: Callable[[bytes, Path], T]
    ) -> Iterator[tuple[str, T | Damaged]]:
        for cell_id in cell_ids:
            try:
                found = self._read(cell_id, parse)
            except RecordError as error:
                yield cell_id, Damaged(cell_id, str(error))
                continue
            if found is not None:
                yield cell_id, found

    def _read(self, cell_id: str, parse: Callable[[bytes, Path], T]) -> T | None:
        path = self.record_path(cell_id)
        try:
            document = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RecordError(f"{path}: not a readable record ({error})") from None
        found = parse(document, path)
        if found.cell_id != cell_id:
            raise RecordError(f"{path}: holds the record of cell {found.cell_id}")
        return found

    def read_external(self, planned: Collection[str]) -> list[Record]:
        """The imported records among those that are not planned; damaged ones are left out."""
        marked = (cell_id for cell_id in self.record_ids() if cell_id not in planned and self._is_external(cell_id))
        return [record for _, record in self.read_each(marked) if isinstance(record, Record)]

    def _is_external(self, cell_id: str) -> bool:
        return b'\n "external": {' in self.record_path(cell_id).read_bytes()

    def record_ids(self) -> list[str]:
        """Of all records in the folder, planned or not."""
        if not self.root.is_dir():
            return []
        return sorted(path.stem for path in self.root.iterdir() if _RECORD_NAME.fullmatch(path.name))

    def write_plan(self, plan: Plan) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        write_text(self.plan_path(plan.profile), plan.sealed().document())


def read_plan(path: Path) -> Plan:
    """Raises RecordError naming the file if it is not exactly what the suite wrote."""
    try:
        document = path.read_bytes()
    except FileNotFoundError:
        raise RecordError(f"{path}: no such plan; run the table first") from None
    except OSError as error:
        raise RecordError(f"{path}: not a readable plan ({error})") from None
    if not is_intact(document):
        raise RecordError(f"{path}: {not_intact(document, 'plan')}")
    try:
        return Plan.model_validate_json(document)
    except ValidationError as error:
        raise RecordError(f"{path}: not a readable plan ({describe(error)})") from None


def store_of(plan_file: Path) -> Store:
    """The store that a plan file lies in."""
    root = plan_file.resolve().parent
    return Store(root, root.parents[2])
