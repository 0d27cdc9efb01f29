"""The scenes of a cell as tensors: procedural ones, or folders in the suite's scene format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bench.cells import Cell, Dataset
from bench.errors import UnavailableError
from tttlrm.cameras import Views, normalize_poses
from tttlrm.config import PoseReference

_TEST_VIEWS = 8
"""Of procedural scenes, where the dataset does not say."""

_FETCHED_BY = {"dl3dv": "make data-dl3dv", "tnt": "make data-tnt"}
"""By the name of a dataset."""
_LAYOUT = "one folder for each scene, with its images and opencv_cameras.json (docs/data.md), is what belongs there"

_INPUT_CAMERAS, _TEST_CAMERAS = 0, 1
"""View seeds of procedural objects. Test cameras do not depend on how many input views there are."""


@dataclass(frozen=True)
class SceneViews:
    """One scene, float32: inputs [V, ...] and held-out targets [T, ...] in the same world.

    ``input_frames_from`` says who chose the inputs among a folder's frames; see :class:`tttlrm.scenes.ViewSplit`.
    """

    name: str
    inputs: Views
    targets: Views
    input_frames_from: str | None = None


def missing_data(dataset: Dataset, root: Path | None) -> str | None:
    """Why the scenes of a dataset cannot be read; None if they are there."""
    if dataset.source == "procedural" or dataset.scenes:
        return None
    command = _FETCHED_BY.get(dataset.name)
    hint = f"`{command}` fetches it to where the paper profile expects it" if command else _LAYOUT
    return f"dataset {dataset.name} is not there: no scene folders in {_shown(root)}; {hint}"


def load_scene(cell: Cell, name: str, root: Path | None) -> SceneViews:
    """One of the cell's scenes, at the cell's resolution, with its input and test views.

    Objects keep their own world, which is centred on them; rooms are normalised as the paper's evaluation does, by
    all views together.

    Raises:
        UnavailableError, tttlrm.errors.SceneError.
    """
    reason = missing_data(cell.dataset, root)
    if reason is not None:
        raise UnavailableError(reason)
    if cell.dataset.source == "folder":
        assert root is not None
        return _from_folder(cell, name, root)
    return _procedural_room(cell, name) if cell.dataset.content == "room" else _procedural_object(cell, name)


def evenly_spaced(count: int, total: int) -> list[int]:
    """``count`` different positions among ``total``, first and last included (the first alone for a count of 1)."""
    if not 1 <= count <= total:
        raise ValueError(f"cannot take {count} of {total}")
    return [round(at * (total - 1) / max(1, count - 1)) for at in range(count)]


def _procedural_object(cell: Cell, name: str) -> SceneViews:
    test_views = cell.dataset.test_views or _TEST_VIEWS
    inputs = _render_procedural(cell.dataset, name, cell.resolution, cell.device, cell.input_views, _INPUT_CAMERAS)
    targets = _render_procedural(cell.dataset, name, cell.resolution, cell.device, test_views, _TEST_CAMERAS)
    return SceneViews(name, inputs, targets)


def _procedural_room(cell: Cell, name: str) -> SceneViews:
    """Test views are spread evenly over the camera's path, between the input views."""
    held_out = cell.dataset.test_views or _TEST_VIEWS
    total = cell.input_views + held_out
    views = _render_procedural(cell.dataset, name, cell.resolution, cell.device, total, _INPUT_CAMERAS)
    test = [round((at + 0.5) * total / held_out - 0.5) for at in range(held_out)]
    return _normalized(cell, name, views, [at for at in range(total) if at not in test], test)


@lru_cache(maxsize=64)
def _render_procedural(
    dataset: Dataset, name: str, size: tuple[int, int], device: str, views: int, view_seed: int
) -> Views:
    """Kept for the next cell of the job: the cells of a table share most of their views."""
    from tttlrm.scenes.procedural import ProceduralSpec, make_batch

    spec = ProceduralSpec(dataset.content, dataset.seed, dataset.split)
    batch = make_batch(spec, [int(name)], views, size, device, view_seed).views
    return Views(batch.images[0].cpu(), batch.camera_to_world[0].cpu(), batch.intrinsics[0].cpu())


def _normalized(cell: Cell, name: str, views: Views, inputs: Sequence[int], test: Sequence[int]) -> SceneViews:
    poses = views.camera_to_world.double()
    ordered = poses[[*inputs, *test]]
    normalization = normalize_poses(ordered, _reference(cell))
    moved = Views(views.images, normalization.apply(poses).float(), views.intrinsics)
    return SceneViews(name, moved.select(list(inputs)), moved.select(list(test)))


def _from_folder(cell: Cell, name: str, root: Path) -> SceneViews:
    from tttlrm.scenes import ViewSplit, load_split, read_scene, select_views

    scene = read_scene(root / name)
    split = select_views(scene, cell.input_views)
    wanted = cell.dataset.test_views
    if wanted is not None and wanted < len(split.targets):
        targets = tuple(split.targets[at] for at in evenly_spaced(wanted, len(split.targets)))
        split = ViewSplit(split.inputs, targets, split.source)
    loaded = load_split(scene, split, cell.resolution, _reference(cell))
    return SceneViews(name, loaded.inputs, loaded.targets, split.source)


def _reference(cell: Cell) -> PoseReference:
    if cell.dataset.content == "object":
        return "scene"
    return "mean" if cell.schedule.kind == "full" else "first"


def _shown(root: Path | None) -> str:
    return "the dataset's root, which is not set" if root is None else f"{root}"
