"""Makes a results folder with very many records: ``python -m tests.many_records FOLDER COUNT [TABLE ...]``.

Tables are planned at many rank counts (all of them: without TABLE), until there are COUNT cells; the records are as
large as real ones.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.cells import Cell
from bench.records import Record
from bench.store import Store
from tests.bench_cases import MACHINE, quality_result, record, speed_result, tiny_plan

SAMPLES = 100
TABLES = sorted(path.stem for path in (Path(__file__).parents[1] / "bench" / "conf" / "table").glob("*.yaml"))


def rank_counts(count: int) -> str:
    """The setting that plans each table at ``count`` rank counts."""
    return f"cells.sp_size=[{','.join(str(size) for size in range(1, count + 1))}]"


def write_many(results: Path, count: int, tables: Sequence[str] = TABLES) -> str:
    """Write at least ``count`` records. Gives the setting with which the suite plans their cells."""
    at_one = sum(len(tiny_plan(f"table={table}", rank_counts(1)).plan.cells) for table in tables)
    setting = rank_counts(-(-count // at_one))
    generator = random.Random(0)
    for table in tables:
        plan = tiny_plan(f"table={table}", setting).plan
        store = Store.at(results, MACHINE, table)
        store.write_plan(plan)
        templates: dict[str, Record] = {}
        for cell_id, cell in plan.cells.items():
            template = templates.get(cell.kind) or templates.setdefault(cell.kind, _template(cell, generator))
            made = template.model_copy(update={"cell": cell, "cell_id": cell_id, "table": table})
            store.record_path(cell_id).write_text(made.sealed().document())
    return setting


def _template(cell: Cell, generator: random.Random) -> Record:
    if cell.kind == "speed":
        return record(cell, speed=speed_result([generator.gauss(0.02, 0.001) for _ in range(SAMPLES)]))
    scenes = {str(scene): [generator.gauss(20, 1) for _ in range(8)] for scene in range(8)}
    return record(cell, quality=quality_result(scenes))


if __name__ == "__main__":
    print(f"machine={MACHINE} '{write_many(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or TABLES)}'")
