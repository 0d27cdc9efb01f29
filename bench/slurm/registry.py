"""What was submitted and is not settled yet, on disk: a client that comes back, or another one, goes on from it.

A folder of the table's work folder holds one small file for each submitted job. Whoever settles a job removes its file,
under a lock that all clients of the results share.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bench.clusters import Ending
from bench.errors import RecordError
from bench.jobs import Job
from bench.schema import Frozen
from bench.settings import describe
from bench.store import Store
from tttlrm.files import write_text


class Submitted(Frozen):
    """A job in the hands of the scheduler.

    Attributes:
        slurm_id: ``12``, or ``12_3`` in an array.
        tries: how often the same cells were submitted before, by what ended that.
    """

    slurm_id: str
    job_id: str
    job_file: Path
    cells: tuple[str, ...]
    ranks: int
    tries: dict[Ending, int] = {}

    def job(self) -> Job:
        return Job.model_validate_json(self.job_file.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Registry:
    folder: Path

    @staticmethod
    def of(store: Store) -> Registry:
        folder = store.work_dir() / "slurm"
        (folder / "submitted").mkdir(parents=True, exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
        return Registry(folder)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One client at a time submits and settles."""
        with (self.folder / ".guard").open("a") as guard:
            with contextlib.suppress(OSError):  # a file system without locks; the cells' own locks are left
                fcntl.flock(guard, fcntl.LOCK_EX)
            yield

    def add(self, submitted: Iterable[Submitted]) -> None:
        for one in submitted:
            write_text(self._path(one.slurm_id), one.model_dump_json(indent=1) + "\n")

    def remove(self, slurm_id: str) -> None:
        self._path(slurm_id).unlink(missing_ok=True)

    def has(self, slurm_id: str) -> bool:
        return self._path(slurm_id).exists()

    def read(self, known: dict[str, Submitted] | None = None) -> dict[str, Submitted]:
        """slurm id -> job, of all that is not settled. ``known`` spares reading again what was read before: the files
        never change."""
        known = known or {}
        found = {}
        for path in sorted((self.folder / "submitted").glob("*.json")):
            one = known.get(path.stem) or _read(path)
            if one is not None:
                found[path.stem] = one
        return found

    def _path(self, slurm_id: str) -> Path:
        return self.folder / "submitted" / f"{slurm_id}.json"


def _read(path: Path) -> Submitted | None:
    try:
        return Submitted.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:  # settled by another client this moment
        return None
    except ValidationError as error:
        raise RecordError(f"{path}: not a readable note of a submitted job ({describe(error)}); remove it") from None
