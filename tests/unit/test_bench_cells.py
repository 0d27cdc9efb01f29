"""From a table to cells: ids, what each row becomes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cells import Cell, Dataset, Sampling, ScheduleChoice, Weights
from bench.datasets import evenly_spaced
from bench.errors import SettingsError
from bench.jobs import group_cells
from bench.methods import build_method, missing_device, missing_weights
from bench.planning import asked_cells, plan_table
from bench.settings import load_settings
from bench.store import Store
from tests.bench_cases import MACHINE, folder_scene, tiny_plan
from tttlrm.checkpoints import save_model
from tttlrm.config import ModelConfig
from tttlrm.errors import UserError
from tttlrm.model import TTTLRM

RANDOM = ("profile.weights.quality.gs-lrm=random", "profile.weights.quality.tttlrm=random")


def test_every_row_of_table_1_becomes_a_quality_and_a_speed_cell() -> None:
    plan = tiny_plan().plan
    assert len(plan.rows) == 8 and len(plan.cells) == 16
    for row in plan.rows:
        (quality,), (speed,) = row.cells["quality"], row.cells["speed"]
        assert plan.cells[quality].kind == "quality" and plan.cells[speed].kind == "speed"
        assert plan.cells[quality].lpips and plan.cells[quality].sampling is None
        assert plan.cells[speed].lpips is None and plan.cells[speed].sampling is not None


def test_cells_are_the_rows_scaled() -> None:
    plan = tiny_plan().plan
    sizes = [(plan.cells[row.cells["speed"][0]].method, plan.cells[row.cells["speed"][0]]) for row in plan.rows]
    got = [(method, cell.resolution, cell.input_views, cell.virtual_views) for method, cell in sizes]
    assert got == [
        ("gs-lrm", (96, 96), 8, 8),
        ("tttlrm", (96, 96), 8, 8),
        ("gs-lrm", (128, 128), 8, 8),
        ("tttlrm", (128, 128), 8, 8),
        ("gs-lrm", (128, 128), 16, 16),
        ("tttlrm", (128, 128), 16, 10),
        ("gs-lrm", (128, 128), 24, 24),
        ("tttlrm", (128, 128), 24, 10),
    ]


def test_methods_differ_in_the_mixer_alone() -> None:
    plan = tiny_plan().plan
    attention, fast = (plan.cells[plan.rows[at].cells["speed"][0]] for at in (2, 3))
    assert attention.model["mixer"] == "attention" and fast.model["mixer"] == "fast_weights"
    changed = {"method": fast.method, "model": fast.model}
    assert attention.model_copy(update=changed) == fast


def test_paper_profile_has_the_printed_sizes_and_the_released_model() -> None:
    plan = tiny_plan("profile=paper").plan
    cell = plan.cells[plan.rows[7].cells["speed"][0]]
    assert (cell.resolution, cell.input_views, cell.device) == ((512, 512), 24, "cuda")
    assert cell.model_config_resolved == ModelConfig()
    assert plan.cells[plan.rows[7].cells["quality"][0]].weights.kind == "unreleased"


def test_id_depends_on_every_part_of_the_content_and_on_nothing_else() -> None:
    cell = next(iter(tiny_plan().plan.cells.values()))
    assert Cell.model_validate_json(cell.model_dump_json()).id == cell.id
    changes = {"seed": 1, "sp_size": 2, "tile_tokens": 8, "threads": 2, "precision": "bfloat16", "lpips": False}
    changes |= {"resolution": (32, 64), "model": {**cell.model, "width": 32}, "pruning": None, "device": "cuda"}
    ids = {cell.model_copy(update={key: value}).id for key, value in changes.items()}
    assert len(ids) == len(changes) and cell.id not in ids


def test_id_of_a_cell_is_the_same_everywhere() -> None:
    """A literal: ids name files in results/, so a change of how they are made must be noticed."""
    cell = Cell(
        kind="speed",
        method="tttlrm",
        model={"width": 64},
        weights=Weights(kind="random", name="random"),
        dataset=Dataset(
            name="d",
            source="procedural",
            content="object",
            split="test",
            seed=0,
            scenes=("0",),
            test_views=8,
            digest=None,
        ),
        resolution=(32, 64),
        input_views=8,
        virtual_views=4,
        schedule=ScheduleChoice(kind="ar", views_per_chunk=4),
        sp_size=1,
        precision="float32",
        newton_schulz_precision=None,
        attention_backend="auto",
        tile_tokens=1024,
        threads=None,
        pruning=(0.4, 0.1),
        device="cpu",
        seed=0,
        lpips=None,
        sampling=Sampling(warmup_s=1, interval=0.02, confidence=0.95, min_samples=10, max_samples=100, limit_s=5),
    )
    assert cell.id == "71f7a8ea15beb9e1"


def test_ranks_and_seeds_multiply() -> None:
    plan = tiny_plan("cells.sp_size=[1,2]", "cells.seeds=[0,1,2]").plan
    first = plan.rows[:2]
    assert [row.sp_size for row in first] == [1, 2]
    assert [len(row.cells["quality"]) for row in first] == [3, 3]
    assert [len(row.cells["speed"]) for row in first] == [1, 1]


def test_what_is_asked_for_limits_no_plan() -> None:
    settings = load_settings([f"machine={MACHINE}", "cells.rows=[1,8]", "cells.kinds=[speed]"])
    plan = plan_table(settings).plan
    assert plan == tiny_plan().plan
    assert asked_cells(plan, settings.cells) == {plan.rows[at].cells["speed"][0] for at in (0, 7)}
    assert asked_cells(plan, load_settings().cells) == set(plan.cells)


@pytest.mark.parametrize("row", [0, 9])
def test_rows_that_the_paper_has_not_are_refused(row: int) -> None:
    choice = load_settings([f"cells.rows=[1,{row}]"]).cells
    with pytest.raises(SettingsError, match=f"cells.rows: table1 has rows 1 to 8, not {row}"):
        asked_cells(tiny_plan().plan, choice)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("~profile.scales.object.resolutions.512x512", "512x512"),
        ("profile.model.width=63", "width 63"),
        ("~tolerances.ssim", "tolerances has no ssim"),
        ("~table.columns.ssim", "ssim"),
        ("~profile.weights.speed.default", "profile.weights.speed has neither gs-lrm nor default"),
        ("profile.datasets.gso.source=folder", "needs a root"),
        ("~profile.datasets.gso", "profile.datasets has no gso"),
        ("table.methods.tttlrm.model.mixer=attention", "tiny-object has mixer 'fast_weights'"),
        ("profile.weights.quality.tttlrm=bundled:huge", "no bundled model 'huge'"),
        ("table.version=1", "version"),
    ],
)
def test_what_cannot_be_planned_is_refused(override: str, named: str) -> None:
    with pytest.raises(UserError) as error:
        tiny_plan(override)
    assert named in str(error.value)


def test_methods_that_the_suite_has_not_are_rows_with_a_reason() -> None:
    plan = tiny_plan("~table.methods.gs-lrm").plan
    assert plan.rows[0].left_out == "gs-lrm is not a method of this suite"
    assert len(plan.cells) == 8


def test_a_dataset_folder_is_known_by_its_content(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        folder_scene(tmp_path / name, frames=3, size=16)
    source = "profile.datasets.gso"
    overrides = (f"{source}.source=folder", f"{source}.root={tmp_path}", f"{source}.scenes=2")
    planned = tiny_plan(*overrides)
    cell = planned.plan.cells[planned.plan.rows[0].cells["quality"][0]]
    assert cell.dataset.scenes == ("a", "b")
    assert str(tmp_path) not in planned.plan.model_dump_json()
    assert planned.locations[cell.id].dataset_root == tmp_path
    (tmp_path / "a" / "opencv_cameras.json").write_text("[]")
    changed = tiny_plan(*overrides).plan
    assert cell.id not in changed.cells


def test_weights_are_known_by_their_digest(tmp_path: Path) -> None:
    plan = tiny_plan(*RANDOM).plan
    config = ModelConfig.from_dict(plan.cells[plan.rows[1].cells["quality"][0]].model)
    path = tmp_path / "some.safetensors"
    save_model(TTTLRM(config), path)
    planned = tiny_plan(f"profile.weights.quality.tttlrm={path}")
    cell = planned.plan.cells[planned.plan.rows[1].cells["quality"][0]]
    assert (cell.weights.kind, cell.weights.name) == ("file", "some.safetensors")
    build_method(cell, path)
    save_model(TTTLRM(config), path)
    with pytest.raises(ValueError, match="changed after"):
        build_method(cell, path)
    path.unlink()
    assert missing_weights(cell, path) == "weights file some.safetensors is not there"


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_model(TTTLRM(ModelConfig(width=32, blocks=1, attention_head=16)), path)
    planned = tiny_plan(f"profile.weights.quality.tttlrm={path}")
    cell = planned.plan.cells[planned.plan.rows[1].cells["quality"][0]]
    with pytest.raises(ValueError, match="another model configuration"):
        build_method(cell, path)


def test_random_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    import torch

    cell = next(iter(tiny_plan(*RANDOM).plan.cells.values()))
    before = torch.random.get_rng_state()
    first, again = build_method(cell, None), build_method(cell, None)
    other = build_method(cell.model_copy(update={"seed": 1}), None)
    assert torch.equal(torch.random.get_rng_state(), before)
    states = [method.model.state_dict()["tokenizer.1.weight"] for method in (first, again, other)]  # type: ignore[attr-defined]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_a_cuda_cell_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cell = next(iter(tiny_plan("device=cuda").plan.cells.values()))
    assert missing_device(cell) == "no CUDA GPU on this machine; the tiny profile needs none"


def test_virtual_views_are_spread_over_the_inputs() -> None:
    assert evenly_spaced(10, 16) == [0, 2, 3, 5, 7, 8, 10, 12, 13, 15]
    assert evenly_spaced(8, 8) == list(range(8))
    assert evenly_spaced(1, 5) == [0]
    for total in range(1, 40):
        for count in range(1, total + 1):
            assert len(set(evenly_spaced(count, total))) == count
    with pytest.raises(ValueError, match="cannot take 3 of 2"):
        evenly_spaced(3, 2)


def test_jobs_share_what_can_be_shared_and_follow_the_order_seed(tmp_path: Path) -> None:
    planned = tiny_plan()
    store = Store.at(tmp_path, "m", "table1")

    def jobs(seed: int) -> list[list[str]]:
        made = group_cells(
            planned.plan.cells.values(), planned.locations, {}, store, {"quality": 5, "speed": 1}, order_seed=seed
        )
        assert all(len({item.cell.kind for item in job.cells}) == 1 for job in made)
        assert len({job.id for job in made}) == len(made)
        return [[item.cell.id for item in job.cells] for job in made]

    first = jobs(0)
    assert sorted(len(job) for job in first) == [1] * 8 + [3, 5]
    assert sorted(cell for job in first for cell in job) == sorted(planned.plan.cells)
    assert jobs(0) == first and jobs(1) != first
