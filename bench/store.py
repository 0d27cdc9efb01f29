"""The folder of one table's records on one machine: ``<results>/<suite version>/<machine>/<table>/``.

Holds ``<cell id>.json`` (records), ``plan-<profile>.json``, and the rendered tables. Everything is written under a
temporary name and renamed, so that a reader never sees half a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bench import SUITE_VERSION
from bench.errors import RecordError
from bench.plans import Plan
from bench.records import Record, parse_record, seal
from bench.settings import describe
from tttlrm.files import write_text

_RECORD_NAME = re.compile(r"[0-9a-f]{16}\.json")
_WORK = ".work"


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
        write_text(self.record_path(record.cell_id), sealed.model_dump_json(indent=1) + "\n")
        return sealed

    def read(self, cell_id: str) -> Record | None:
        """None if there is no record. Raises RecordError if what is there is damaged or another cell's."""
        path = self.record_path(cell_id)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise RecordError(f"{path}: not a readable record ({error})") from None
        record = parse_record(text, path)
        if record.cell_id != cell_id:
            raise RecordError(f"{path}: holds the record of cell {record.cell_id}")
        return record

    def read_all(self, cell_ids: Iterable[str]) -> dict[str, Record | Damaged]:
        """What is there for these cells; cells without a record are left out."""
        found: dict[str, Record | Damaged] = {}
        for cell_id in cell_ids:
            try:
                record = self.read(cell_id)
            except RecordError as error:
                found[cell_id] = Damaged(cell_id, str(error))
                continue
            if record is not None:
                found[cell_id] = record
        return found

    def record_ids(self) -> list[str]:
        """Of all records in the folder, planned or not."""
        if not self.root.is_dir():
            return []
        return sorted(path.stem for path in self.root.iterdir() if _RECORD_NAME.fullmatch(path.name))

    def write_plan(self, plan: Plan) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        write_text(self.plan_path(plan.profile), plan.sealed().model_dump_json(indent=1) + "\n")


def read_plan(path: Path) -> Plan:
    """Raises RecordError naming the file if it is not exactly what the suite wrote."""
    try:
        plan = Plan.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path}: no such plan; run the table first") from None
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        problem = describe(error) if isinstance(error, ValidationError) else str(error)
        raise RecordError(f"{path}: not a readable plan, perhaps truncated ({problem})") from None
    if not plan.intact:
        raise RecordError(f"{path}: the plan was changed after it was written (its digest does not match)")
    return plan


def store_of(plan_file: Path) -> Store:
    """The store that a plan file lies in."""
    root = plan_file.resolve().parent
    return Store(root, root.parents[2])
