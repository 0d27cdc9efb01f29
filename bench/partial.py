"""Results of scenes, kept as they are made until their cell is complete.

A job that is stopped half-way and starts again (preempted, requeued, interrupted) goes on after them: no scene is
computed twice, none is lost. They belong to one attempt at one cell, made by one state of the code.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bench.cells import Cell
from bench.environment import Code, read_code
from bench.records import RankMemory, SceneQuality
from bench.schema import Sealed
from bench.store import Store
from tttlrm.files import write_text


class PartialScene(Sealed):
    """One scene of an attempt at a cell, with its group's peak memory so far."""

    cell_id: str
    attempt: int
    code: Code
    scene: SceneQuality
    memory: tuple[RankMemory, ...]


@dataclass(frozen=True)
class PartialScenes:
    """Of one attempt at one cell."""

    folder: Path
    cell: Cell
    attempt: int
    code: Code

    @staticmethod
    def of(store: Store, cell: Cell, attempt: int) -> PartialScenes:
        return PartialScenes(store.work_dir() / "partial" / cell.id / str(attempt), cell, attempt, read_code())

    def read(self) -> dict[str, PartialScene]:
        """scene -> what is there of it. A file that is damaged, or of other code, is as good as none."""
        found = {}
        for path in sorted(self.folder.glob("[0-9]*.json")):
            try:
                partial = PartialScene.model_validate_json(path.read_text(encoding="utf-8"))
            except (ValidationError, OSError, UnicodeDecodeError):
                continue
            same = (partial.cell_id, partial.attempt, partial.code) == (self.cell.id, self.attempt, self.code)
            if partial.intact and same:
                found[partial.scene.scene] = partial
        return found

    def count(self) -> int:
        return sum(1 for _ in self.folder.glob("[0-9]*.json"))

    def write(self, scene: SceneQuality, memory: Sequence[RankMemory]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = PartialScene(
            cell_id=self.cell.id, attempt=self.attempt, code=self.code, scene=scene, memory=tuple(memory)
        )
        at = self.cell.dataset.scenes.index(scene.scene)
        write_text(self.folder / f"{at:06d}.json", partial.sealed().model_dump_json(indent=1) + "\n")

    def clear(self) -> None:
        """Once the cell has its record: of this attempt and of earlier ones."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)


def highest(memories: Iterable[RankMemory]) -> tuple[RankMemory, ...]:
    """The peaks of each rank over several stretches of work, by rank."""
    by_rank: dict[int, RankMemory] = {}
    for memory in memories:
        before = by_rank.get(memory.rank)
        by_rank[memory.rank] = memory if before is None else _higher(before, memory)
    return tuple(by_rank[rank] for rank in sorted(by_rank))


def _higher(one: RankMemory, other: RankMemory) -> RankMemory:
    def value(name: str) -> float | None:
        values = [v for v in (getattr(one, name), getattr(other, name)) if v is not None]
        return max(values) if values else None

    fields = ("allocated_mib", "reserved_mib", "resident_mib", "resident_growth_mib")
    by_stage = one.by_stage_mib or other.by_stage_mib  # of speed runs, which have one stretch
    return RankMemory(rank=one.rank, by_stage_mib=by_stage, **{name: value(name) for name in fields})
