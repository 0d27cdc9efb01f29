"""Verdicts and claims: each of their values is reached, and for the right reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from bench.cells import Cell, Weights
from bench.claims import ClaimLine, ClaimResult, judge_claim
from bench.measured import Found, Measured, measure
from bench.paper import load_paper
from bench.plans import Plan
from bench.settings import Claim, Tolerance
from bench.statistics import mean_estimate, median_estimate
from bench.store import Damaged
from bench.verdicts import Verdict, judge
from tests.bench_cases import environment, quality_result, record, speed_result, tiny_plan

RANDOM = ("profile.weights.quality.gs-lrm=random", "profile.weights.quality.tttlrm=random")
PLAN = tiny_plan(*RANDOM).plan
OFFICIAL = Weights(kind="file", name="official.pt", sha256="f" * 64)


def paper_like() -> tuple[Plan, Cell, Cell]:
    """A plan whose last row is run as the paper ran it, with the paper's (imagined) weights."""
    plan = tiny_plan("profile=paper").plan
    row = plan.rows[7]
    quality = plan.cells[row.cells["quality"][0]]
    scenes = tuple(str(at) for at in range(100))
    quality = quality.model_copy(
        update={"weights": OFFICIAL, "dataset": quality.dataset.model_copy(update={"scenes": scenes})}
    )
    speed = plan.cells[row.cells["speed"][0]]
    cells = {**plan.cells, quality.id: quality}
    row = row.model_copy(update={"cells": {"quality": (quality.id,), "speed": (speed.id,)}})
    conditions = plan.conditions.model_copy(update={"weights_sha256": ("f" * 64,)})
    changes = {"rows": (*plan.rows[:7], row), "cells": cells, "conditions": conditions}
    return plan.model_copy(update=changes), quality, speed


def verdict(plan: Plan, column: str, found: Found, at: int = 7) -> Verdict:
    row = plan.rows[at]
    return judge(plan, load_paper().table("table1").row(row.paper_row), column, measure(plan, row, column, found))


@pytest.mark.parametrize(
    ("psnr", "kind"), [(34.80, "reproduced"), (34.90, "reproduced"), (34.70, "reproduced"), (34.91, "not reproduced")]
)
def test_quality_is_reproduced_within_the_tolerance(psnr: float, kind: str) -> None:
    plan, quality, _ = paper_like()
    result = quality_result({name: [psnr, psnr] for name in quality.dataset.scenes})
    got = verdict(plan, "psnr", {quality.id: record(quality, quality=result)})
    assert got.kind == kind
    assert got.reason == (None if kind == "reproduced" else "off by +0.110")


@pytest.mark.parametrize(("seconds", "kind"), [(1.1, "reproduced"), (1.25, "reproduced"), (1.3, "not reproduced")])
def test_time_is_compared_on_the_papers_gpu(seconds: float, kind: str) -> None:
    plan, _, speed = paper_like()
    made = record(speed, speed=speed_result([seconds] * 10), environment=environment("NVIDIA A100-SXM4-80GB"))
    assert verdict(plan, "time_s", {speed.id: made}).kind == kind


def test_time_of_another_model_is_not_compared() -> None:
    plan, _, speed = paper_like()
    changed = speed.model_copy(update={"model": {**speed.model, "fast_weight_head": 64}})
    row = plan.rows[7].model_copy(update={"cells": {"speed": (changed.id,)}})
    update = {"rows": (*plan.rows[:7], row), "cells": {**plan.cells, changed.id: changed}}
    found = {changed.id: record(changed, speed=speed_result([1.1] * 10), environment=environment("NVIDIA A100"))}
    got = verdict(plan.model_copy(update=update), "time_s", found)
    assert (got.kind, got.reason) == ("not comparable", "a smaller model")


def test_time_of_another_gpu_is_never_called_reproduced() -> None:
    plan, _, speed = paper_like()
    made = record(speed, speed=speed_result([1.1] * 10), environment=environment("NVIDIA H100 80GB HBM3"))
    got = verdict(plan, "time_s", {speed.id: made})
    assert got == Verdict("not comparable", "another device (NVIDIA H100 80GB HBM3 instead of A100)")


def test_a_disturbed_time_is_not_compared() -> None:
    plan, _, speed = paper_like()
    result = speed_result([1.1] * 10, waited_share=0.2)
    made = record(speed, speed=result, environment=environment("NVIDIA A100-SXM4-80GB"))
    assert verdict(plan, "time_s", {speed.id: made}).reason == "other work on the machine disturbed it"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": Weights(kind="random", name="random")}, "random weights"),
        ({"weights": Weights(kind="file", name="mine", sha256="0" * 64)}, "other weights"),
        ({"resolution": (256, 256)}, "smaller images"),
    ],
)
def test_quality_under_other_conditions_is_not_comparable(changes: dict[str, object], said: str) -> None:
    plan, quality, _ = paper_like()
    other = quality.model_copy(update=changes)
    row = plan.rows[7].model_copy(update={"cells": {"quality": (other.id,)}})
    plan = plan.model_copy(update={"rows": (*plan.rows[:7], row), "cells": {**plan.cells, other.id: other}})
    result = quality_result({name: [34.80] for name in other.dataset.scenes})
    got = verdict(plan, "psnr", {other.id: record(other, quality=result)})
    assert got.kind == "not comparable" and got.reason is not None and said in got.reason


def of_table2(views: int, *sources: str | None) -> list[Verdict]:
    """On PSNR of Tanks and Temples, of the full tttLRM, whose scenes' views were chosen by these: with other weights
    than the paper's, and with the paper's."""
    plan = tiny_plan("table=table2", "profile=paper").plan
    (row,) = [row for row in plan.rows if row.paper_row == f"method=tttlrm-full input_views={views}"]
    (cell_id,) = row.cells["quality:tnt"]
    cell = plan.cells[cell_id]
    names = ("train", "truck")
    dataset = cell.dataset.model_copy(update={"scenes": names})
    made = quality_result({name: [20.0, 21.0] for name in names})
    scenes = tuple(
        scene.model_copy(update={"input_frames_from": source})
        for scene, source in zip(made.scenes, sources, strict=True)
    )
    run = cell.model_copy(update={"dataset": dataset, "weights": OFFICIAL})
    found = {cell_id: record(run, quality=made.model_copy(update={"scenes": scenes}))}
    paper_row = load_paper().table("table2").row(row.paper_row)
    known = plan.conditions.model_copy(update={"weights_sha256": ("f" * 64,)})
    return [
        judge(p, paper_row, "tnt_psnr", measure(p, row, "tnt_psnr", found))
        for p in (plan, plan.model_copy(update={"conditions": known}))
    ]


def test_input_views_of_k_means_are_noted_where_there_is_a_published_list() -> None:
    note = "input views of {} of 2 scenes chosen here by K-means, not those of the published list"
    other, same = of_table2(16, "k-means", "k-means")
    assert other.kind == "not comparable" and other.reason is not None
    assert other.reason.startswith("other weights") and other.reason.endswith("; " + note.format(2))
    assert same.kind == "not reproduced" and same.reason is not None and same.reason.endswith("; " + note.format(2))
    published = of_table2(16, "the list", "the list")[1]
    assert published == Verdict("not reproduced", same.reason.removesuffix("; " + note.format(2)))
    assert str(of_table2(32, "the list", "k-means")[1].reason).endswith(note.format(1))
    assert "K-means" not in str(of_table2(64, "k-means", "k-means")), "nothing is published for 64 views"
    assert "K-means" not in str(of_table2(16, None, None)), "an older record does not say"


def test_tiny_runs_say_all_that_differs() -> None:
    row = PLAN.rows[7]
    quality, speed = (PLAN.cells[row.cells[kind][0]] for kind in ("quality", "speed"))
    found: Found = {quality.id: record(quality), speed.id: record(speed)}
    assert verdict(PLAN, "psnr", found).reason == (
        "random weights, so that quality means nothing; other scenes (4 of procedural-objects instead of 100 of gso); "
        "smaller images"
    )
    assert verdict(PLAN, "time_s", found).reason == (
        "another device (A CPU, 2 cores instead of A100); a smaller model; smaller images"
    )


def test_what_has_no_value_has_a_verdict_with_a_reason() -> None:
    row = PLAN.rows[7]
    quality = PLAN.cells[row.cells["quality"][0]]
    assert verdict(PLAN, "psnr", {}) == Verdict("not run", "no record yet")
    unavailable = record(quality, status="unavailable", reason="no weights")
    assert verdict(PLAN, "psnr", {quality.id: unavailable}) == Verdict("not available", "no weights")
    failed = record(quality, status="out_of_memory", reason="MemoryError: 9 GiB")
    assert verdict(PLAN, "psnr", {quality.id: failed}) == Verdict("not run", "out of memory: MemoryError: 9 GiB")
    damaged = Damaged(quality.id, "path: changed")
    assert verdict(PLAN, "psnr", {quality.id: damaged}) == Verdict("not run", "its record is damaged")
    without = record(quality, quality=quality_result({"0": [20.0]}, lpips=None))
    assert verdict(PLAN, "lpips", {quality.id: without}) == Verdict("not available", "no network")
    assert verdict(PLAN, "psnr", {quality.id: without}).kind == "not comparable"
    speed_only = row.model_copy(update={"cells": {"speed": row.cells["speed"]}})
    without_quality = PLAN.model_copy(update={"rows": (*PLAN.rows[:7], speed_only)})
    assert verdict(without_quality, "psnr", {}) == Verdict("not run", "the plan has no quality run")


def test_means_are_over_views_then_scenes_then_seeds_are_pooled() -> None:
    plan = tiny_plan("cells.seeds=[0,1]").plan
    row = plan.rows[0]
    first, second = (plan.cells[cell_id] for cell_id in row.cells["quality"])
    found: Found = {
        first.id: record(first, quality=quality_result({"a": [10.0, 20.0], "b": [30.0]})),
        second.id: record(second, quality=quality_result({"a": [17.0, 17.0], "b": [40.0]})),
    }
    measured = measure(plan, row, "psnr", found)
    assert measured.by_scene == {"a": 16.0, "b": 35.0}
    assert measured.estimate is not None and measured.estimate.value == 25.5
    missing_one = measure(plan, row, "psnr", {first.id: found[first.id]})
    assert missing_one.absent == ("not run", "no record yet")


def test_tolerances_count_decimal_numbers_as_printed() -> None:
    assert Tolerance(absolute=0.1, relative=0.0).allows(34.9 - 34.8, 34.8)
    assert not Tolerance(absolute=0.1, relative=0.0).allows(0.1001, 34.8)
    assert Tolerance(absolute=0.05, relative=0.1).allows(-0.6, 5.5)


def lines(values: Mapping[tuple[str, int], Sequence[float]], column: str) -> list[ClaimLine]:
    """Lines of table 1 at 512x512 with measured values: scene means for PSNR, raw times for time_s."""
    made = []
    for row in load_paper().table("table1").rows:
        key = (str(row.labels["method"]), int(row.labels["input_views"]))
        if row.labels["resolution"] != (512, 512) or key not in values:
            continue
        samples = list(values[key])
        if column == "psnr":
            by_scene = {str(at): value for at, value in enumerate(samples)}
            measured = Measured(mean_estimate(samples), by_scene, ())
        else:
            measured = Measured(median_estimate(samples), {}, ())
        made.append(ClaimLine(row, 1, "64x64", {column: measured}))
    return made


def judged(name: str, of_lines: Sequence[ClaimLine]) -> ClaimResult:
    claim = next(claim for claim in PLAN.claims if claim.name.startswith(name))
    return judge_claim(claim, PLAN.columns[claim.column], of_lines)


def around(middle: float, spread: float = 0.01) -> list[float]:
    return [middle + spread * (at - 4.5) for at in range(10)]


def test_better_is_paired_by_scene() -> None:
    """Scenes differ by 10 dB and methods by 0.2: only the pairing shows it."""
    scenes = [20.0, 25.0, 30.0]
    result = judged(
        "tttLRM above",
        lines({("tttlrm", 8): [s + 0.2 + 0.01 * s / 30 for s in scenes], ("gs-lrm", 8): scenes}, "psnr"),
    )
    assert result.verdict == "holds"
    assert result.comparisons[0].where == "64x64, 8 views"
    assert result.comparisons[0].gain.value == pytest.approx(0.2083, abs=1e-3)


def test_better_fails_when_one_line_says_otherwise() -> None:
    good, bad = [20.5, 25.6, 30.4], [19.5, 24.4, 29.6]
    scenes = [20.0, 25.0, 30.0]
    of_lines = lines({("tttlrm", 8): good, ("gs-lrm", 8): scenes, ("tttlrm", 16): bad, ("gs-lrm", 16): scenes}, "psnr")
    assert judged("tttLRM above", of_lines).verdict == "does not hold"


def test_better_is_undecided_within_the_interval_and_without_one() -> None:
    scenes, mixed = [20.0, 25.0, 30.0], [20.6, 24.5, 30.1]
    undecided = judged("tttLRM above", lines({("tttlrm", 8): mixed, ("gs-lrm", 8): scenes}, "psnr"))
    assert (undecided.verdict, undecided.reason) == ("undecided", "an interval includes no difference")
    alone = judged("tttLRM above", lines({("tttlrm", 8): [21.0], ("gs-lrm", 8): [20.0]}, "psnr"))
    assert (alone.verdict, alone.reason) == ("undecided", "too few samples for an interval")
    nothing = judged("tttLRM above", lines({("tttlrm", 8): mixed}, "psnr"))
    assert (nothing.verdict, nothing.reason) == ("undecided", "no two lines to compare have values")


def test_lower_times_are_better() -> None:
    values = {("tttlrm", 8): around(1.0), ("gs-lrm", 8): around(2.0)}
    result = judged("tttLRM faster", lines(values, "time_s"))
    assert result.verdict == "holds" and result.comparisons[0].gain.value == pytest.approx(1.0)
    swapped = {("tttlrm", 8): around(2.0), ("gs-lrm", 8): around(1.0)}
    assert judged("tttLRM faster", lines(swapped, "time_s")).verdict == "does not hold"


def test_improves_compares_neighbours_along_the_label() -> None:
    grows = {("tttlrm", 8): [20.0, 21.0, 22.0], ("tttlrm", 16): [21.0, 22.1, 23.0], ("tttlrm", 24): [22.0, 23.1, 24.1]}
    result = judged("quality of tttLRM grows", lines(grows, "psnr"))
    assert result.verdict == "holds"
    assert [c.where for c in result.comparisons] == ["64x64, 8 to 16 views", "64x64, 16 to 24 views"]
    falls = {**grows, ("tttlrm", 24): [20.0, 21.0, 22.0]}
    assert judged("quality of tttLRM grows", lines(falls, "psnr")).verdict == "does not hold"


def test_ratio_grows() -> None:
    values = {(method, views): around(time) for (method, views), time in {
        ("tttlrm", 8): 1.0, ("gs-lrm", 8): 2.0, ("tttlrm", 16): 2.0, ("gs-lrm", 16): 6.0,
    }.items()}  # fmt: skip
    result = judged("the advantage in speed grows", lines(values, "time_s"))
    assert result.verdict == "holds"
    assert result.comparisons[0].gain.value == pytest.approx(1.0)
    values[("gs-lrm", 16)] = around(2.0)
    assert judged("the advantage in speed grows", lines(values, "time_s")).verdict == "does not hold"


def test_random_weights_and_disturbed_times_decide_nothing() -> None:
    row = PLAN.rows[2], PLAN.rows[3]
    found: dict[str, Any] = {}
    for at, plan_row in enumerate(row):
        quality, speed = (PLAN.cells[plan_row.cells[kind][0]] for kind in ("quality", "speed"))
        better = {"0": [20.0 + at], "1": [22.0 + 1.1 * at], "2": [25.0 + at]}
        found[quality.id] = record(quality, quality=quality_result(better))
        found[speed.id] = record(speed, speed=speed_result(around(2.0 - at), waited_share=0.3 * at))
    table = load_paper().table("table1")
    of_lines = [
        ClaimLine(table.row(r.paper_row), 1, "64x64", {c: measure(PLAN, r, c, found) for c in ("psnr", "time_s")})
        for r in row
    ]
    quality_claim, speed_claim = judged("tttLRM above", of_lines), judged("tttLRM faster", of_lines)
    assert (quality_claim.verdict, quality_claim.reason) == ("undecided", "random weights")
    assert quality_claim.comparisons[0].gain.low is not None and quality_claim.comparisons[0].gain.low > 0
    assert speed_claim.reason == "other work on the machine disturbed the times"


def test_ranks_are_compared_with_their_like() -> None:
    claim = Claim(name="x", kind="better", column="psnr", method="tttlrm", other="gs-lrm", match=("input_views",))
    first = lines({("tttlrm", 8): [21.0, 22.0], ("gs-lrm", 8): [20.0, 21.0]}, "psnr")
    second = [ClaimLine(line.row, 2, line.size, line.values) for line in first]
    result = judge_claim(claim, PLAN.columns["psnr"], [*first, *second])
    assert [c.where for c in result.comparisons] == ["64x64, 8 views", "64x64, 8 views, sp_size 2"]


def of_table(table: str, values: Mapping[str, Sequence[float]], column: str, sp_size: int = 1) -> list[ClaimLine]:
    """Lines of a table by their keys, with scene means (or raw times, for time_s)."""
    plan = tiny_plan(f"table={table}").plan
    paper = load_paper(plan.paper).table(table)
    made = []
    for key, samples in values.items():
        plan_row = next(row for row in plan.rows if row.paper_row == key)
        run = plan.cells[next(iter(plan_row.cells.values()))[0]]
        if plan.columns[column].kind == "speed":
            measured = Measured(median_estimate(samples), {}, ())
        else:
            by_scene = {str(at): value for at, value in enumerate(samples)}
            measured = Measured(mean_estimate(samples), by_scene, ())
        made.append(ClaimLine(paper.row(key), sp_size, "72x128", {column: measured}, run))
    return made


def judged_of(table: str, name: str, of_lines: Sequence[ClaimLine]) -> ClaimResult:
    plan = tiny_plan(f"table={table}").plan
    claim = next(claim for claim in plan.claims if claim.name.startswith(name))
    return judge_claim(claim, plan.columns[claim.column], of_lines)


def test_lines_are_chosen_by_any_label() -> None:
    values = {"strategy=predict-and-merge": [20.0, 18.0, 22.0], "strategy=full-reconstruction": [21.0, 19.1, 23.1]}
    result = judged_of("table4", "full reconstruction above", of_table("table4", values, "psnr"))
    assert result.verdict == "holds"
    assert [c.where for c in result.comparisons] == ["72x128, 16 views"], "as run here, not the paper's 32"
    swapped = dict(zip(values, reversed(values.values()), strict=True))
    assert judged_of("table4", "full", of_table("table4", swapped, "psnr")).verdict == "does not hold"
    elastic = {"selective=false": [20.0, 18.0, 22.0], "selective=true": [20.1, 18.12, 22.11]}
    assert judged_of("table6", "the selective", of_table("table6", elastic, "psnr")).verdict == "holds"


def test_post_optimisation_is_judged_step_by_step() -> None:
    key = "method=tttlrm-full steps={} input_views=32"
    values = {key.format(0): [20.0, 18.0], key.format(3): [20.5, 18.6], key.format(10): [21.0, 19.0]}
    result = judged_of("table7", "post-optimisation", of_table("table7", values, "dl3dv_psnr"))
    assert [c.where for c in result.comparisons] == [
        "72x128, 16 views, 0 to 3 steps",
        "72x128, 16 views, 3 to 10 steps",
    ]
    assert result.comparisons[0].gain.value == pytest.approx(0.55)


@pytest.mark.parametrize(("last", "verdict"), [(0.4, "holds"), (0.75, "does not hold"), (0.43, "undecided")])
def test_time_is_at_most_linear(last: float, verdict: str) -> None:
    """16, 32 and 64 views of the paper are 4, 8 and 16 here; a fourfold time for twice the views is quadratic."""
    key = "method=tttlrm-full input_views={}"
    times = {16: 0.1, 32: 0.2, 64: last}
    of_lines = of_table("scaling", {key.format(n): around(t, 0.004 * t) for n, t in times.items()}, "time_s")
    result = judged_of("scaling", "time linear", of_lines)
    assert result.verdict == verdict
    first = result.comparisons[0]
    assert first.where == "72x128, 4 to 8 views"
    assert first.value is not None and first.value.value == pytest.approx(1.0)
    assert first.gain.value == pytest.approx(0.1)


def test_speedup_and_equality_compare_ranks_with_one() -> None:
    key = "method=tttlrm-full input_views=64"
    alone = of_table("scaling", {key: around(1.0, 0.001)}, "time_s")
    fast, slow = (of_table("scaling", {key: around(t, 0.001)}, "time_s", sp_size=4) for t in (0.3, 0.5))
    held = judged_of("scaling", "accelerated", [*alone, *fast])
    assert held.verdict == "holds" and held.comparisons[0].where == "72x128, 16 views, sp_size 4"
    assert held.comparisons[0].value is not None
    assert held.comparisons[0].value.value == pytest.approx(1 / 1.2, abs=1e-3)
    assert judged_of("scaling", "accelerated", [*alone, *slow]).verdict == "does not hold"
    assert judged_of("scaling", "accelerated", alone).reason == "no two lines to compare have values"

    one = of_table("scaling", {key: [25.0]}, "psnr")
    same, other = (of_table("scaling", {key: [value]}, "psnr", sp_size=2) for value in (25.002, 25.02))
    assert judged_of("scaling", "quality does not", [*one, *same]).verdict == "holds"
    assert judged_of("scaling", "quality does not", [*one, *other]).verdict == "does not hold"


def test_each_dataset_has_its_own_conditions() -> None:
    """Columns of Tanks and Temples want two scenes of it, those of DL3DV 140."""
    plan = tiny_plan("table=table2").plan
    row = next(row for row in plan.rows if row.cells)
    paper_row = load_paper().table("table2").row(row.paper_row)
    reasons = {}
    for name in ("dl3dv", "tnt"):
        cell = plan.cells[row.cells[f"quality:{name}"][0]]
        got = judge(plan, paper_row, f"{name}_psnr", measure(plan, row, f"{name}_psnr", {cell.id: record(cell)}))
        assert got.kind == "not comparable"
        reasons[name] = str(got.reason)
    assert "instead of 140 of dl3dv" in reasons["dl3dv"] and "instead of 2 of tnt" in reasons["tnt"]
    assert all("fewer views" in reason and "smaller images" in reason for reason in reasons.values())


def test_540_rows_run_as_536_are_the_papers_images() -> None:
    plan = tiny_plan("table=table2", "profile=paper").plan
    row = next(row for row in plan.rows if row.cells)
    cell = plan.cells[row.cells["quality:tnt"][0]]
    weights = Weights(kind="file", name="dl3dv_full.pt", sha256="f" * 64)
    dataset = cell.dataset.model_copy(update={"scenes": ("train", "truck")})
    cell = cell.model_copy(update={"weights": weights, "dataset": dataset})
    row = row.model_copy(update={"cells": {"quality:tnt": (cell.id,)}})
    conditions = plan.conditions.model_copy(update={"weights_sha256": ("f" * 64,)})
    plan = plan.model_copy(update={"conditions": conditions, "cells": {cell.id: cell}})
    printed = load_paper().table("table2").row(row.paper_row)
    value = printed.values["tnt_psnr"]
    assert value is not None
    made = record(cell, quality=quality_result({"train": [value], "truck": [value]}))
    assert judge(plan, printed, "tnt_psnr", measure(plan, row, "tnt_psnr", {cell.id: made})) == Verdict("reproduced")


def test_rows_that_cannot_be_run_are_not_available() -> None:
    plan = tiny_plan("table=table2").plan
    row = plan.rows[0]
    paper_row = load_paper().table("table2").row(row.paper_row)
    for column in plan.columns:
        got = judge(plan, paper_row, column, measure(plan, row, column, {}))
        assert got.kind == "not available" and got.reason is not None and "30,000 steps" in got.reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "improves"}, "needs along"),
        ({"kind": "better"}, "needs other, or against"),
        ({"kind": "speedup"}, "needs a tolerance"),
    ],
)
def test_claims_that_lack_something_are_refused(changes: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Claim.model_validate({"name": "x", "column": "psnr", "match": [], **changes})
