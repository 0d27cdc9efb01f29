"""Scenes of a cell from folders: who chose their views is recorded, and what is missing names the command for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cells import Cell
from bench.datasets import load_scene, missing_data
from bench.methods import build_method, missing_weights
from bench.quality import run_quality
from bench.settings import load_settings
from tests.bench_cases import folder_scene, tiny_plan
from tttlrm.downloads.input_views import InputViews, state_views


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    """A quality cell of one scene in a folder, with few views."""
    folder_scene(tmp_path / "a", frames=12, size=32)
    source = "profile.datasets.gso"
    overrides = (f"{source}.source=folder", f"{source}.root={tmp_path}", f"{source}.scenes=1")
    random = "profile.weights.quality.tttlrm=random"
    plan = tiny_plan(*overrides, random, "profile.lpips=false").plan
    cells = [cell for cell in plan.cells.values() if cell.kind == "quality" and cell.weights.kind == "random"]
    return cells[0].model_copy(update={"resolution": (32, 32), "input_views": 2, "virtual_views": 2, "pruning": None})


def test_the_record_says_who_chose_the_input_views(cell: Cell, tmp_path: Path) -> None:
    assert load_scene(cell, "a", tmp_path).input_frames_from == "k-means"
    state_views(tmp_path / "a", InputViews("somebody", {"a": {2: (1, 9)}}))
    (scene,) = run_quality(cell, build_method(cell, None), tmp_path, lambda scene: None).scenes
    assert scene.input_frames_from == "somebody"
    assert load_scene(cell.model_copy(update={"input_views": 3}), "a", tmp_path).input_frames_from == "k-means"


def test_procedural_scenes_have_nobody_who_chose(cell: Cell) -> None:
    dataset = cell.dataset.model_copy(update={"source": "procedural", "scenes": ("0",)})
    assert load_scene(cell.model_copy(update={"dataset": dataset}), "0", None).input_frames_from is None


def test_a_list_of_views_makes_another_dataset(cell: Cell, tmp_path: Path) -> None:
    """The cell knows its scenes by the digest of their scene files, and the list is in them."""
    state_views(tmp_path / "a", InputViews("somebody", {"a": {2: (1, 9)}}))
    source = "profile.datasets.gso"
    overrides = (f"{source}.source=folder", f"{source}.root={tmp_path}", f"{source}.scenes=1")
    digests = {other.dataset.digest for other in tiny_plan(*overrides).plan.cells.values() if other.dataset.digest}
    assert digests and cell.dataset.digest not in digests


@pytest.mark.parametrize(("name", "command"), [("dl3dv", "make data-dl3dv"), ("tnt", "make data-tnt"), ("gso", None)])
def test_missing_data_names_the_command(cell: Cell, name: str, command: str | None) -> None:
    reason = missing_data(cell.dataset.model_copy(update={"name": name, "scenes": ()}), Path("data") / name)
    expected = f"dataset {name} is not there: no scene folders in data/{name}"
    if command is not None:
        expected += f"; `{command}` fetches it to where the paper profile expects it"
    else:
        expected += "; one folder for each scene, with its images and opencv_cameras.json (docs/data.md), "
        expected += "is what belongs there"
    assert reason == expected


def test_what_the_commands_fetch_is_what_the_paper_profile_names(cell: Cell) -> None:
    """The make targets, their folders, and the profile agree."""
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    profile = load_settings(["profile=paper"]).profile
    for name in ("dl3dv", "tnt"):
        assert f"\ndata-{name}: " in makefile and f"-o {profile.datasets[name].root} " in makefile
    for file in (profile.weights["quality"]["tttlrm-full"], profile.weights["quality"]["tttlrm-ar"]):
        weights = cell.weights.model_copy(update={"kind": "file", "name": Path(file).name})
        reason = missing_weights(cell.model_copy(update={"weights": weights}), Path(file))
        assert reason is not None and reason.endswith("`make weights` fetches it to where the paper profile expects it")
        assert f"-o {Path(file).parent} " in makefile and "\nweights: " in makefile
