"""``python -m bench import``: published per-view results of another system as a record marked external.

The file is CSV with the columns ``scene``, ``view`` (a number, from 0), ``psnr`` (dB), ``ssim`` and, if there is one,
``lpips``; one line for each test view. A table shows the values apart, and no verdict or claim rests on them.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.cells import Cell, Dataset, ScheduleChoice, Weights
from bench.environment import machine_label, read_environment
from bench.errors import RecordError
from bench.paper import load_paper
from bench.records import QualityResult, Record, SceneQuality, Source, ViewQuality
from bench.store import Store
from bench.tables import find_plans, load_table, write_table
from tttlrm.errors import UserError
from tttlrm.files import sha256_of

_REQUIRED, _OPTIONAL = ("scene", "view", "psnr", "ssim"), ("lpips",)
MACHINE_PATTERN = r"[a-z0-9][a-z0-9._-]*"
_SIZE = re.compile(r"([1-9][0-9]*)x([1-9][0-9]*)")


def read_views(path: Path) -> dict[str, tuple[ViewQuality, ...]]:
    """Scene -> its views, in the order of the file. Raises UserError naming file, line and column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    reader = csv.DictReader(io.StringIO(text), strict=True)
    _check_columns(path, reader.fieldnames or [])
    views: dict[str, dict[int, ViewQuality]] = {}
    try:
        for row in reader:
            view = _view(row, f"{path}, line {reader.line_num}")
            of_scene = views.setdefault(str(row["scene"]), {})
            if view.view in of_scene:
                raise UserError(f"{path}, line {reader.line_num}: view {view.view} of {row['scene']} is there twice")
            of_scene[view.view] = view
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})") from None
    if not views:
        raise UserError(f"{path}: holds no views")
    return {scene: tuple(of_scene.values()) for scene, of_scene in views.items()}


def external_cell(system: str, dataset: str, scenes: Sequence[str], resolution: tuple[int, int], views: int) -> Cell:
    """What identifies imported values: the same system under the same conditions is the same cell."""
    return Cell(
        kind="quality",
        method=system,
        model={},
        weights=Weights(kind="external", name=system),
        dataset=Dataset(
            name=dataset,
            source="folder",
            content="room",
            split="test",
            seed=0,
            scenes=tuple(scenes),
            test_views=None,
            digest=None,
        ),
        resolution=resolution,
        input_views=views,
        virtual_views=views,
        schedule=ScheduleChoice(kind="full", views_per_chunk=views),
        sp_size=1,
        precision="float32",
        newton_schulz_precision=None,
        attention_backend="auto",
        tile_tokens=1,
        threads=None,
        pruning=None,
        device="cpu",
        seed=0,
        lpips=None,
        sampling=None,
    )


def import_file(store: Store, table: str, path: Path, cell: Cell, citation: str) -> Record:
    """Write the file's values as the record of a cell that :func:`external_cell` made of its scenes."""
    views = read_views(path)
    absent = None if all(v.lpips is not None for of_scene in views.values() for v in of_scene) else "not in the file"
    scenes = tuple(
        SceneQuality(scene=name, views=of_scene, gaussians=None, rendered_gaussians=None, usage=None, seconds=None)
        for name, of_scene in views.items()
    )
    try:
        before = store.read(cell.id)
    except RecordError:
        before = None  # what is damaged is replaced
    now = datetime.now(UTC)
    record = Record(
        table=table,
        cell_id=cell.id,
        cell=cell,
        status="ok",
        reason=None,
        attempt=before.attempt + 1 if before else 1,
        started=now,
        finished=now,
        job="import",
        quality=QualityResult(scenes=scenes, lpips_absent=absent),
        external=Source(system=cell.method, citation=citation, file=path.name, sha256=sha256_of(path)),
        environment=read_environment(use_gpu=False),
    )
    return store.write(record)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench import",
        description="Import another system's per-view results, to be shown in a table as external.",
        epilog="The file has the columns scene, view, psnr, ssim and, if there is one, lpips.",
    )
    parser.add_argument("file", type=Path, help="CSV, one line for each test view")
    parser.add_argument("--table", required=True, help="whose folder the record goes to, such as table2")
    parser.add_argument("--system", required=True, help="its name, as the table shows it")
    parser.add_argument("--citation", required=True, help="where the values were published")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--views", required=True, type=int, help="number of input views")
    parser.add_argument("--resolution", required=True, type=_size, help="height x width, such as 540x960")
    parser.add_argument("--machine", default=None, help="folder of the results (default: this machine's)")
    parser.add_argument("--results", default=Path("results"), type=Path)
    options = parser.parse_args(arguments)
    if options.views < 1:
        raise UserError(f"--views must be at least 1, not {options.views}")
    if not options.system.strip() or not options.citation.strip():
        raise UserError("--system and --citation must say something")
    if options.table not in {*load_paper("tttlrm").tables, *load_paper("suite").tables}:
        raise UserError(f"there is no table {options.table!r}")
    if options.machine is not None and not re.fullmatch(MACHINE_PATTERN, options.machine):
        raise UserError(f"--machine must be lower-case letters, digits, '.', '_' and '-', not {options.machine!r}")
    scenes = tuple(read_views(options.file))
    cell = external_cell(options.system, options.dataset, scenes, options.resolution, options.views)
    store = Store.at(options.results, options.machine or _this_machine(), options.table)
    record = import_file(store, options.table, options.file, cell, options.citation)
    print(f"{len(scenes)} scenes of {options.dataset}: wrote {store.record_path(record.cell_id)}")
    for plan in find_plans([store.root]) if any(store.root.glob("plan-*.json")) else []:
        for path in write_table(store, load_table(plan)):
            print(f"wrote {path}")
    return 0


def _this_machine() -> str:
    import torch

    return machine_label("cuda" if torch.cuda.is_available() else "cpu")


def _size(text: str) -> tuple[int, int]:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH, not {text}")
    return int(found[1]), int(found[2])


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in _REQUIRED if name not in columns]
    unknown = [name for name in columns if name not in (*_REQUIRED, *_OPTIONAL)]
    if missing:
        raise UserError(f"{path}: the column {missing[0]} is missing")
    if unknown:
        raise UserError(f"{path}: unknown column {unknown[0]!r}; known are {', '.join((*_REQUIRED, *_OPTIONAL))}")


def _view(row: dict[str, str | None], where: str) -> ViewQuality:
    if not (row.get("scene") or "").strip() or None in row:
        raise UserError(f"{where}: not one value for each column, with the scene's name first of all")
    if not (row["view"] or "").isdecimal():
        raise UserError(f"{where}: view must be a number from 0, not {row['view']!r}")
    psnr, ssim = _number(row, "psnr", where), _number(row, "ssim", where)
    lpips = _number(row, "lpips", where) if row.get("lpips") else None
    return ViewQuality(view=int(str(row["view"])), psnr=psnr, ssim=ssim, lpips=lpips)


def _number(row: dict[str, str | None], column: str, where: str) -> float:
    try:
        value = float(row[column] or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {column} must be a number, not {row[column]!r}")
    return value
