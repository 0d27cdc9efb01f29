"""Every table of the paper, as data: each printed row has cells or a reason, in both profiles."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from bench.__main__ import main
from bench.cells import Cell
from bench.listing import table_names
from bench.methods import missing_weights
from bench.paper import load_paper
from bench.plans import Plan
from bench.settings import load_settings
from bench.tables import make_table
from tests.bench_cases import MACHINE, tiny_plan
from tttlrm.bundled import BUNDLED, bundled_model
from tttlrm.checkpoints import load_model
from tttlrm.config import ElasticUpdate

TABLES = ("figure8", "table1", "table2", "table3", "table4", "table5", "table6", "table7", "scaling", "speed")


def cells_of(plan: Plan, run: str) -> list[Cell]:
    return [plan.cells[cell_id] for row in plan.rows for cell_id in row.cells.get(run, ())]


def test_the_tables_are_those_of_the_paper_and_the_suites_own() -> None:
    assert tuple(table_names()) == TABLES
    assert set(load_paper().tables) | set(load_paper("suite").tables) == set(TABLES)


@pytest.mark.parametrize("profile", ["tiny", "paper"])
@pytest.mark.parametrize("table", TABLES)
def test_every_row_has_cells_or_a_reason(table: str, profile: str) -> None:
    planned = tiny_plan(f"table={table}", f"profile={profile}")
    plan = planned.plan
    assert plan.intact and Plan.model_validate_json(plan.model_dump_json()).intact
    paper = load_paper(plan.paper).table(table)
    assert list(dict.fromkeys(row.paper_row for row in plan.rows)) == [row.key for row in paper.rows]
    runs = {column.run for column in plan.columns.values()}
    for row in plan.rows:
        assert row.left_out if not row.cells else set(row.cells) == runs
    assert set(plan.columns) == set(paper.columns) == set(plan.tolerances)
    assert set(plan.cells) == {cell_id for row in plan.rows for ids in row.cells.values() for cell_id in ids}
    assert set(planned.locations) == set(plan.cells)
    verdicts = make_table(plan, {}).verdicts
    assert len(verdicts) == len(plan.rows) * len(paper.columns)
    assert {verdict.kind for verdict in verdicts} <= {"not run", "not available"}


@pytest.mark.parametrize("table", TABLES)
def test_tiny_cells_need_nothing_but_the_package(table: str) -> None:
    planned = tiny_plan(f"table={table}")
    for cell_id, cell in planned.plan.cells.items():
        assert cell.dataset.source == "procedural" and cell.device == "cpu"
        reason = missing_weights(cell, planned.locations[cell_id].weights)
        assert (reason is None) == (cell.weights.kind in ("random", "bundled"))
        if cell.weights.kind == "bundled":
            bundled = BUNDLED[cell.weights.name]
            assert cell.weights.sha256 == bundled.sha256 and bundled.schedule == cell.schedule.kind
            assert bundled.content == cell.dataset.content
        if cell.kind == "speed":
            assert cell.weights.kind == "random"


def test_a_bundled_models_configuration_is_its_files() -> None:
    plan = tiny_plan().plan
    attention, fast = cells_of(plan, "quality")[:2]
    assert (attention.weights.name, fast.weights.name) == ("tiny-object-attention", "tiny-object")
    for cell, mixer in ((attention, "attention"), (fast, "fast_weights")):
        assert cell.model["mixer"] == mixer
        assert cell.model == load_model(bundled_model(cell.weights.name).path).config.to_dict()
    assert cells_of(plan, "speed")[0].model["width"] == 64


def test_columns_of_two_datasets_are_two_runs() -> None:
    plan = tiny_plan("table=table2").plan
    row = plan.rows[4]
    assert row.paper_row == "method=tttlrm-full input_views=16"
    assert set(row.cells) == {"speed", "quality:dl3dv", "quality:tnt"}
    of_dl3dv, of_tnt = (plan.cells[row.cells[f"quality:{name}"][0]] for name in ("dl3dv", "tnt"))
    assert of_dl3dv.dataset.seed != of_tnt.dataset.seed and of_dl3dv.lpips and of_tnt.lpips
    changed = {"dataset": of_tnt.dataset}
    assert of_dl3dv.model_copy(update=changed) == of_tnt


def test_views_are_scaled_as_the_profile_says_and_the_plan_tells() -> None:
    plan = tiny_plan("table=table2").plan
    assert {cell.input_views for cell in plan.cells.values()} == {8, 16, 24}
    assert plan.notes[0] == "Input views, the paper's and those here: 16 → 8, 32 → 16, 64 → 24."
    assert any("not pruned" in note for note in plan.notes)
    paper = tiny_plan("table=table2", "profile=paper").plan
    assert {cell.input_views for cell in paper.cells.values()} == {16, 32, 64} and paper.notes == ()
    assert {cell.resolution for cell in paper.cells.values()} == {(536, 960)}
    pruning = {cell.input_views: cell.pruning for cell in paper.cells.values()}
    assert pruning == {16: (0.4, 0.1), 32: (0.4, 0.1), 64: (0.3, 0.05)}


def test_rows_differ_in_what_the_table_is_about() -> None:
    merged, full = cells_of(tiny_plan("table=table4").plan, "quality")
    assert merged.merge and merged.model_copy(update={"merge": False}) == full
    plain, selective = cells_of(tiny_plan("table=table6").plan, "quality")
    assert selective.schedule.resolve().elastic == ElasticUpdate() and plain.schedule.resolve().elastic is None
    assert selective.model_copy(update={"schedule": plain.schedule}) == plain
    steps = [cell.post_optimization.steps if cell.post_optimization else 0 for cell in cells_of(tiny_plan("table=table7").plan, "speed")]  # fmt: skip  # noqa: E501
    assert steps == [0, 3, 10, 0, 3, 10]
    layers = {(cell.model["mixer"], cell.model["blocks"]) for cell in tiny_plan("table=figure8").plan.cells.values()}
    assert layers == {("attention", 3), ("fast_weights", 24)}


def test_scaling_has_its_own_rank_counts_which_can_be_overridden() -> None:
    plan = tiny_plan("table=scaling").plan
    assert [row.sp_size for row in plan.rows[:3]] == [1, 2, 4]
    assert {row.sp_size for row in tiny_plan("table=scaling", "cells.sp_size=[1,3]").plan.rows} == {1, 3}
    alone, several = cells_of(plan, "quality")[0], cells_of(plan, "quality")[2]
    assert alone.model_copy(update={"sp_size": 4}) == several


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (("table=table4",), "tttlrm-ar merged 72x128 16 views quality of procedural-rooms"),
        (("table=table6", "cells.rows=[2]"), "tttlrm-ar selective 72x128 24 views quality of procedural-rooms"),
        (("table=scaling",), "tttlrm-full 72x128 4 views sp4 speed"),
        (("table=table7",), "tttlrm-full +10 steps 72x128 24 views speed"),
    ],
)
def test_labels_tell_cells_apart(overrides: Sequence[str], label: str) -> None:
    assert label in {cell.label() for cell in tiny_plan(*overrides).plan.cells.values()}


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("table.columns.tnt_psnr.dataset=somewhere", "the dataset somewhere, of unknown size"),
        ("~table.columns.dl3dv_psnr", "dl3dv_psnr"),
        ("~table.columns.dl3dv_ssim", "does not say how the paper's column dl3dv_ssim is measured"),
        ("~table.datasets.speed", "datasets has no speed, which the column time_s needs"),
        ("~profile.scales.room", "profile.scales has neither table2 nor room"),
        ("profile.weights.quality.tttlrm-ar=bundled:none", "no bundled model"),
    ],
)
def test_tables_that_do_not_fit_are_refused(override: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        tiny_plan("table=table2", override)


def test_a_dry_run_says_what_would_be_started(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    common = [f"results_dir={tmp_path}", f"machine={MACHINE}"]
    assert main(["--dry-run", "table=scaling", *common]) == 0
    text = capsys.readouterr().out
    assert "36 cells to run, in 21 jobs (order seed 0)" in text
    assert "4 processes on this machine, about" in text
    assert "estimate, from arithmetic and time limits:" in text and "process hours, no GPU" in text
    assert main(["--dry-run", "table=scaling", "profile=paper", "cluster=slurm", "device=cuda", *common]) == 0
    text = capsys.readouterr().out
    assert "GPU hours" in text and "1 node, 4 GPUs each" in text


def test_the_list_shows_every_table_and_the_state_of_its_cells(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "table=table2", "cells.rows=[5]", f"results_dir={tmp_path}", f"machine={MACHINE}"]) == 0
    text = capsys.readouterr().out
    for said in (
        "  table1   16 cells (16 not run): GSO",
        "  table2   15 cells (12 not asked for, 3 not run), 13 rows unavailable",
        "  table5   3 cells (3 unavailable)",
        "line 5: method=tttlrm-full input_views=16",
        "unavailable: another model, which is not part of this suite",
    ):
        assert said in text, said


def test_planning_ten_thousand_cells_takes_seconds() -> None:
    seeds = ",".join(str(at) for at in range(1250))
    settings = load_settings([f"machine={MACHINE}", f"cells.seeds=[{seeds}]"])
    from bench.planning import plan_table

    started = time.process_time()
    plan = plan_table(settings).plan
    assert len(plan.cells) == 8 * 1250 + 8
    assert time.process_time() - started < 5
