"""Scenes that are kept until their cell is complete: only those of the same attempt and code are used again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.cells import Cell
from bench.environment import Code
from bench.partial import PartialScenes, highest
from bench.records import RankMemory
from bench.store import Store
from tests.bench_cases import quality_result, tiny_plan


@pytest.fixture
def cell() -> Cell:
    return next(cell for cell in tiny_plan().plan.cells.values() if cell.kind == "quality")


@pytest.fixture
def partial(tmp_path: Path, cell: Cell) -> PartialScenes:
    return PartialScenes.of(Store.at(tmp_path, "machine", "table1"), cell, 1)


def test_scenes_come_back_as_they_were(partial: PartialScenes, cell: Cell) -> None:
    first, second = quality_result({name: [20.123456789] for name in cell.dataset.scenes[:2]}).scenes
    assert partial.read() == {} and partial.count() == 0
    partial.write(second, [RankMemory(rank=0, resident_mib=3.0)])
    partial.write(first, [RankMemory(rank=0, resident_mib=2.0)])
    found = partial.read()
    assert {name: kept.scene for name, kept in found.items()} == {first.scene: first, second.scene: second}
    assert partial.count() == 2
    partial.clear()
    assert partial.read() == {} and not partial.folder.exists()


def test_another_attempt_or_code_starts_afresh(partial: PartialScenes, cell: Cell) -> None:
    (scene,) = quality_result({cell.dataset.scenes[0]: [20.0]}).scenes
    partial.write(scene, [])
    later = replace(partial, attempt=2, folder=partial.folder)
    changed = replace(partial, code=Code(commit="0" * 40, dirty=False))
    assert partial.read() and not later.read() and not changed.read()


@pytest.mark.parametrize("damage", ["", "{", "edited"])
def test_a_damaged_scene_is_computed_again(partial: PartialScenes, cell: Cell, damage: str) -> None:
    (scene,) = quality_result({cell.dataset.scenes[0]: [20.0]}).scenes
    partial.write(scene, [])
    (path,) = partial.folder.iterdir()
    path.write_text(path.read_text().replace("20.0", "21.0") if damage == "edited" else damage)
    assert partial.read() == {}


def test_peaks_are_the_highest_of_each_rank() -> None:
    first = [RankMemory(rank=1, allocated_mib=5.0), RankMemory(rank=0, allocated_mib=7.0, resident_mib=1.0)]
    then = [RankMemory(rank=0, allocated_mib=6.0), RankMemory(rank=1, allocated_mib=9.0)]
    assert highest([*first, *then]) == (
        RankMemory(rank=0, allocated_mib=7.0, resident_mib=1.0),
        RankMemory(rank=1, allocated_mib=9.0),
    )
