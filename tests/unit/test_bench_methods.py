"""What a cell makes of a model: chunks that are merged, steps of post-optimisation, trained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.cells import Cell, PostOptimization, ScheduleChoice
from bench.errors import SettingsError
from bench.methods import ReconstructionModel, build_method, prune_before_showing
from bench.postoptimization import PostOptimized, optimize
from bench.quality import run_quality
from bench.timing import StageTimer
from tests.bench_cases import tiny_plan
from tests.rendering_cases import orbit
from tttlrm.cameras import Views
from tttlrm.errors import UserError
from tttlrm.gaussians import Gaussians
from tttlrm.metrics import psnr
from tttlrm.rendering import render

RATES = {"positions": 0.002, "sh": 0.01, "log_scales": 0.01, "quaternions": 0.005, "opacity_logits": 0.05}


def small_cell(table: str, run: str, row: int = 0) -> Cell:
    """A cell of the table with random weights of one block, on images of 16x16, 4 views."""
    overrides = (
        "profile.model.blocks=1",
        "profile.lpips=false",
        "profile.weights.quality.tttlrm-ar=random",
        "profile.weights.quality.tttlrm-full=random",
    )
    plan = tiny_plan(f"table={table}", *overrides).plan
    rows = [r for r in plan.rows if r.cells]
    cell = plan.cells[rows[row].cells[run][0]]
    dataset = cell.dataset.model_copy(update={"scenes": ("0",), "test_views": 2})
    changes = {"resolution": (16, 16), "input_views": 4, "virtual_views": 4, "dataset": dataset}
    return cell.model_copy(update=changes)


def some_views(count: int = 4) -> Views:
    """Cameras around the origin, with images of noise."""
    cameras = orbit(count, 16, 16)
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Views(images, cameras.camera_to_world.float(), cameras.intrinsics.float())


def reconstruct(cell: Cell, views: Views) -> Gaussians:
    with torch.inference_mode():
        return build_method(cell, None).reconstruct(views, StageTimer("cpu"))


def test_merged_chunks_are_reconstructions_of_their_own() -> None:
    schedule = ScheduleChoice(kind="ar", views_per_chunk=3)
    cell = small_cell("table4", "quality").model_copy(update={"schedule": schedule})
    assert cell.merge
    views = some_views()
    merged = reconstruct(cell, views)
    alone = cell.model_copy(update={"merge": False})
    first = reconstruct(alone.model_copy(update={"input_views": 3, "virtual_views": 3}), views.select(range(3)))
    second = reconstruct(alone.model_copy(update={"input_views": 1, "virtual_views": 1}), views.select([3]))
    for whole, one, other in zip(merged.tensors, first.tensors, second.tensors, strict=True):
        torch.testing.assert_close(whole, torch.cat([one, other]))
    assert not torch.allclose(merged.positions, reconstruct(alone, views).positions), "the strategies differ"


def test_merging_decodes_the_virtual_views_only() -> None:
    cell = small_cell("table4", "quality").model_copy(update={"virtual_views": 2})
    views = some_views()
    assert len(reconstruct(cell, views)) == 2 * 16 * 16


def test_the_selective_update_changes_the_reconstruction() -> None:
    plain, selective = (
        small_cell("table6", "quality", row).model_copy(update={"input_views": 8, "virtual_views": 8}) for row in (0, 1)
    )
    views = some_views(8)
    assert not torch.equal(reconstruct(plain, views).positions, reconstruct(selective, views).positions)


def test_steps_improve_the_input_views() -> None:
    cell = small_cell("table7", "quality:dl3dv", 2)
    assert cell.post_optimization is not None and cell.post_optimization.steps == 10
    views = some_views()
    before = reconstruct(cell.model_copy(update={"post_optimization": None}), views)
    after = reconstruct(cell, views)
    quality = [float(psnr(render(g, views.cameras).images, views.images).mean()) for g in (before, after)]
    assert quality[1] > quality[0] + 0.1
    assert all(not tensor.requires_grad for tensor in after.tensors)


def test_gaussians_are_pruned_once_and_before_they_are_optimised() -> None:
    cell = small_cell("table7", "quality:dl3dv", 1).model_copy(update={"pruning": (0.4, 0.1)})
    views = some_views()
    made = reconstruct(cell, views)
    kept = int(0.4 * 1024) + int(0.6 * 0.1 * 1024)
    assert len(made) == kept == len(prune_before_showing(made, cell))
    (scene,) = run_quality(cell, build_method(cell, None), None, lambda scene: None).scenes
    assert scene.rendered_gaussians == kept


def test_optimising_is_a_stage_of_its_own() -> None:
    method = build_method(small_cell("table7", "speed", 1), None)
    assert isinstance(method, PostOptimized)
    timer = StageTimer("cpu")
    timer.start()
    with torch.inference_mode():
        method.reconstruct(some_views(), timer)
    assert tuple(timer.seconds) == method.stages == ("encode", "blocks", "decode", "optimize")


def test_views_take_turns() -> None:
    """Two views a step of four: after two steps every one was used, so hiding any changes the result."""
    cell = small_cell("table7", "quality:dl3dv")
    views = some_views()
    gaussians = reconstruct(cell, views)
    how = PostOptimization(steps=2, views_per_step=2, learning_rates=RATES)
    whole = optimize(gaussians, views, how)
    for at in range(4):
        images = views.images.clone()
        images[at] = 0
        changed = optimize(gaussians, Views(images, views.camera_to_world, views.intrinsics), how)
        assert not torch.equal(changed.sh, whole.sh)
    torch.testing.assert_close(optimize(gaussians, views, how).positions, whole.positions, rtol=0, atol=0)


def test_learning_rates_are_of_every_tensor() -> None:
    cell = small_cell("table7", "quality:dl3dv")
    views = some_views()
    how = PostOptimization(steps=1, views_per_step=None, learning_rates={"positions": 0.1})
    with pytest.raises(SettingsError, match="learning_rates must be of positions, sh"):
        optimize(reconstruct(cell, views), views, how)


def test_bundled_weights_are_those_of_the_installation_that_runs() -> None:
    """A job's file names the client's, which is not there where ranks run in an image."""
    planned = tiny_plan("profile.datasets.gso.scenes=1")
    cell = planned.plan.cells[planned.plan.rows[1].cells["quality"][0]]
    assert cell.weights.kind == "bundled"
    method = build_method(cell, Path("/client/tttlrm/weights/tiny-object.safetensors"))
    assert isinstance(method, ReconstructionModel)
    other = cell.model_copy(update={"weights": cell.weights.model_copy(update={"sha256": "0" * 64})})
    with pytest.raises(UserError, match="changed after the cells were planned"):
        build_method(other, None)


def test_bundled_models_are_better_than_chance() -> None:
    """The real weights on a scene they were not trained on, at half their image size to be quick."""
    planned = tiny_plan("profile.lpips=false", "profile.datasets.gso.scenes=1", "profile.datasets.gso.test_views=2")
    cell_id = planned.plan.rows[1].cells["quality"][0]
    cell = planned.plan.cells[cell_id].model_copy(update={"resolution": (64, 64), "input_views": 4, "virtual_views": 4})
    method = build_method(cell, planned.locations[cell_id].weights)
    assert isinstance(method, ReconstructionModel) and method.model.config.width == 256
    (scene,) = run_quality(cell, method, None, lambda scene: None).scenes
    assert min(view.psnr for view in scene.views) > 16
