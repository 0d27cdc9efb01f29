"""Tables: every printed number is there with a verdict, and the text is a function of the records alone."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from bench.devices import DeviceState
from bench.figures import Figure, Point, Series, figures_of
from bench.formats import gain_estimate, mebibytes, number_estimate, seconds, seconds_estimate, significant
from bench.latex import escape
from bench.paper import load_paper
from bench.plans import Plan
from bench.plotting import draw, shows
from bench.run import exit_code
from bench.statistics import Estimate
from bench.store import Store
from bench.tables import Table, find_plans, load_table, main, make_table, stale_files, table_files, write_table
from tests.bench_cases import MACHINE, record, speed_result, tiny_plan
from tttlrm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted(path.stem for path in (ROOT / "bench" / "conf" / "table").glob("*.yaml"))
RANDOM = [f"profile.weights.quality.{method}=random" for method in ("gs-lrm", "tttlrm")]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """With a plan, and a record of every cell."""
    plan = tiny_plan().plan
    store = Store.at(tmp_path, MACHINE, "table1")
    store.write_plan(plan)
    for cell in plan.cells.values():
        store.write(record(cell))
    return store


def plan_of(store: Store) -> Plan:
    return load_table(store.plan_path("tiny")).plan


def test_every_printed_number_has_a_line_and_a_verdict(store: Store) -> None:
    files = table_files(load_table(store.plan_path("tiny")))
    rows = list(csv.DictReader(io.StringIO(files["table1-tiny.csv"])))
    table = load_paper().table("table1")
    assert [(row["row"], row["column"]) for row in rows] == [(r.key, c) for r in table.rows for c in ("psnr", "ssim", "lpips", "time_s")]  # fmt: skip  # noqa: E501
    for row in rows:
        assert float(row["printed"]) == table.row(row["row"]).values[row["column"]]
        assert row["verdict"] == "not comparable" and row["reason"]
        assert float(row["low"]) <= float(row["measured"]) <= float(row["high"])
        assert float(row["difference"]) == pytest.approx(float(row["measured"]) - float(row["printed"]), abs=1e-6)
    scenes = list(csv.DictReader(io.StringIO(files["table1-tiny-scenes.csv"])))
    assert len(scenes) == 8 * 3 * 3


def test_markdown_says_what_a_reader_needs() -> None:
    plan = tiny_plan(*RANDOM).plan
    text = table_files(make_table(plan, {cell.id: record(cell) for cell in plan.cells.values()}))["table1-tiny.md"]
    for said in (
        "# Table 1: GSO, 100 objects",
        "commit 0123456789 ·",
        "weights: random (seed 0)",
        "2026-11-01",
        "Quality of random weights means nothing",
        "| 512x512 → 128x128 |",
        "16 (10)",
        "34.80",
        "22.17 [",
        "| -12.63 ",
        "10.1 ms [",
        "40 MiB",
        "undecided (random weights)",
        "not comparable [1]",
        "1. random weights, so that quality means nothing",
    ):
        assert said in text, said
    grid = [line for line in text.splitlines() if line.startswith("|")]
    assert all("|  |" not in line and "| |" not in line for line in grid), "no cell of the table is blank"


def test_rendering_does_not_depend_on_order_or_place(store: Store, tmp_path: Path) -> None:
    files = table_files(load_table(store.plan_path("tiny")))
    elsewhere = Store.at(tmp_path / "elsewhere", MACHINE, "table1")
    elsewhere.root.mkdir(parents=True)
    for path in sorted(store.root.iterdir(), reverse=True):
        (elsewhere.root / path.name).write_bytes(path.read_bytes())
    assert table_files(load_table(elsewhere.plan_path("tiny"))) == files


def test_missing_failed_and_damaged_records_show(store: Store) -> None:
    plan = plan_of(store)
    (missing,), (failed,), (damaged,) = (plan.rows[at].cells["speed"] for at in (0, 1, 2))
    (unavailable,) = plan.rows[3].cells["quality"]
    store.record_path(missing).unlink()
    store.write(record(plan.cells[failed], status="timeout", reason="stopped after 5 s"))
    store.record_path(damaged).write_text("{")
    store.write(record(plan.cells[unavailable], status="unavailable", reason="no such data"))
    table = load_table(store.plan_path("tiny"))
    text = table_files(table)["table1-tiny.md"]
    for said in ("no record yet", "timeout: stopped after 5 s", "its record is damaged", "no such data", damaged):
        assert said in text, said
    kinds = [line.cells["time_s"].verdict.kind for line in table.lines[:4]]
    assert kinds == ["not run", "not run", "not run", "not comparable"]
    assert table.lines[3].cells["psnr"].verdict.kind == "not available"
    assert exit_code(table) == 1


def test_exit_code_is_0_only_when_every_cell_is_settled(store: Store) -> None:
    plan = plan_of(store)
    assert exit_code(load_table(store.plan_path("tiny"))) == 0
    some = next(iter(plan.cells))
    store.write(record(plan.cells[some], status="unavailable", reason="no data"))
    assert exit_code(load_table(store.plan_path("tiny"))) == 0
    store.write(record(plan.cells[some], status="failed", reason="broken"))
    table = load_table(store.plan_path("tiny"))
    assert exit_code(table) == 1 and exit_code(table, [some]) == 1
    assert exit_code(table, set(plan.cells) - {some}) == 0


def test_a_plan_without_records_makes_a_whole_table() -> None:
    table = make_table(tiny_plan().plan, {})
    assert {verdict.kind for verdict in table.verdicts} == {"not run"}
    assert len(table.verdicts) == 32
    text = table_files(table)["table1-tiny.md"]
    assert "Nothing has run yet." in text and "Quality below means nothing" not in text


def test_ranks_get_lines_of_their_own() -> None:
    plan = tiny_plan("cells.sp_size=[1,2]").plan
    speeds = [plan.cells[row.cells["speed"][0]] for row in plan.rows[:2]]
    found = {cell.id: record(cell, speed=speed_result([0.1 / cell.sp_size] * 12)) for cell in speeds}
    text = table_files(make_table(plan, found))["table1-tiny.md"]
    assert "| sp |" in text and "100 ms [100, 100]" in text and "50.0 ms [50.0, 50.0]" in text


def test_disturbed_times_are_marked(store: Store) -> None:
    plan = plan_of(store)
    cell = plan.cells[plan.rows[0].cells["speed"][0]]
    store.write(record(cell, speed=speed_result([0.01] * 10, waited_share=0.31)))
    assert "10, interval, disturbed 31%" in table_files(load_table(store.plan_path("tiny")))["table1-tiny.md"]


def test_command_renders_and_checks(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(store.results_dir)
    assert main(["--check", folder]) == 1
    assert "table1-tiny.md" in capsys.readouterr().err
    assert main([folder]) == 0
    assert main(["--check", folder]) == 0
    markdown = store.root / "table1-tiny.md"
    markdown.write_text(markdown.read_text().replace("34.80", "30.80"))
    assert main(["--check", folder]) == 1
    assert main([str(store.root / "nothing")]) == 2
    with pytest.raises(UserError, match=r"no plan-<profile>\.json"):
        find_plans([store.results_dir / "empty"])


def test_a_changed_record_makes_the_table_stale(store: Store) -> None:
    table = load_table(store.plan_path("tiny"))
    write_table(store, table)
    assert stale_files(store.plan_path("tiny")) == []
    cell = table.plan.cells[table.plan.rows[0].cells["speed"][0]]
    store.write(record(cell, speed=speed_result([0.5] * 10)))
    stale = {path.name for path in stale_files(store.plan_path("tiny"))}
    assert stale == {"table1-tiny.md", "table1-tiny.csv", "table1-tiny.tex"}


@pytest.mark.parametrize("profile", ["tiny", "paper"])
@pytest.mark.parametrize("name", TABLES)
def test_every_table_renders_whole(name: str, profile: str) -> None:
    """With all records, and with none: no cell of a grid is blank, LaTeX is balanced, and every row is there."""
    plan = tiny_plan(f"table={name}", f"profile={profile}").plan
    records = {cell.id: record(cell, table=name) for cell in plan.cells.values()}
    for found in (records, {}):
        table = make_table(plan, found)
        files = table_files(table)
        markdown, latex = files[f"{name}-{profile}.md"], files[f"{name}-{profile}.tex"]
        grid = [line for line in markdown.splitlines() if line.startswith("|")]
        assert grid and all("|  |" not in line and "| |" not in line for line in grid)
        assert all(f"\n| {line.number} " in markdown for line in table.lines)
        assert latex.count("\\begin{") == latex.count("\\end{") > 0
        unescaped = latex.replace("\\{", "").replace("\\}", "")
        assert unescaped.count("{") == unescaped.count("}")
        assert len(list(csv.reader(io.StringIO(files[f"{name}-{profile}.csv"])))) == 1 + len(table.verdicts)


def test_latex_text_is_escaped() -> None:
    assert escape("**50%** of T&T_1 {a} → ~#$") == r"50\% of T\&T\_1 \{a\} $\to$ \textasciitilde{}\#\$"


def scaling(times: dict[int, float]) -> Table:
    """The scaling table with these times by rank count, the same for every row."""
    plan = tiny_plan("table=scaling", f"cells.sp_size=[{','.join(map(str, times))}]").plan
    speeds = [cell for cell in plan.cells.values() if cell.kind == "speed"]
    found = {
        c.id: record(c, speed=speed_result([times[c.sp_size] * (1 + 0.01 * (i % 3)) for i in range(12)]))
        for c in speeds
    }
    return make_table(plan, found)


def test_plots_show_time_over_tokens_and_efficiency_over_ranks() -> None:
    time, efficiency = figures_of(scaling({1: 0.4, 2: 0.25, 4: 0.2}))
    assert {point.x for series in time.series for point in series.points} == {4 * 144, 8 * 144, 16 * 144}
    assert all(point.low and point.low < point.y < (point.high or 0) for s in time.series for point in s.points)
    for series in efficiency.series:
        assert [point.x for point in series.points] == [1, 2, 4]
        assert [point.y for point in series.points] == pytest.approx([1.0, 0.8, 0.5])
        assert series.points[1].low is not None and series.points[1].low < 0.8
    assert figures_of(make_table(tiny_plan("table=scaling").plan, {})) == []
    assert figures_of(make_table(tiny_plan().plan, {})) == []


def test_labels_of_an_axis_do_not_overlap() -> None:
    pytest.importorskip("matplotlib")
    views = (16.0, 32.0, 64.0, 128.0, 256.0)
    for logarithmic, labels in ((False, {"32", "64", "128", "256"}), (True, {f"{v:.0f}" for v in views})):
        series = Series("model", tuple(Point(view, view, None, None) for view in views))
        svg = draw(Figure("time", "title", "views", "time (s)", logarithmic, (series,)))
        along_x = [line for line in svg.splitlines() if 'text-anchor: middle" x=' in line]
        assert labels == {match[1] for line in along_x if (match := re.search(r">(\d+)</text>", line))}


def test_plots_are_drawn_the_same_each_time_and_known_by_their_data(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = scaling({1: 0.4, 2: 0.25})
    first, _ = figures_of(table)
    svg = draw(first)
    assert svg == draw(first) and shows(svg, first) and "<svg" in svg and "tttlrm-full" in svg
    other, _ = figures_of(scaling({1: 0.4, 2: 0.26}))
    assert not shows(svg, other) and not shows("", first)
    store = Store.at(tmp_path, MACHINE, "scaling")
    store.write_plan(table.plan)
    for cell in table.plan.cells.values():
        if cell.kind == "speed":
            store.write(record(cell, table="scaling"))
    write_table(store, load_table(store.plan_path("tiny")))
    assert stale_files(store.plan_path("tiny")) == []
    plot = store.root / "scaling-tiny-time.svg"
    plot.write_text(plot.read_text().replace("data sha256:", "data sha256:0"))
    assert stale_files(store.plan_path("tiny")) == [plot]


def test_speed_details_show_peak_energy_and_throttling() -> None:
    plan = tiny_plan().plan
    cell = plan.cells[plan.rows[0].cells["speed"][0]]
    before = DeviceState(energy_j=1000.0, throttle_reasons=("GpuIdle",))
    after = DeviceState(energy_j=1050.0, throttle_reasons=("SwPowerCap",))
    speed = speed_result([0.1] * 10)
    phase = speed.reconstruct.model_copy(update={"before": (before,), "after": (after,)})
    speed = speed.model_copy(update={"reconstruct": phase, "flops": 2e9, "peak_flops": 1e11})
    text = table_files(make_table(plan, {cell.id: record(cell, speed=speed)}))["table1-tiny.md"]
    assert "| Share of peak | Energy |" in text
    assert "10, interval, clocks held by SwPowerCap | 20%           | 5.00 J |" in text


def test_committed_tables_are_what_their_records_give() -> None:
    """Of whatever lies in results/ now; the tests above show that this check can fail."""
    plans = sorted((ROOT / "results").glob("*/*/*/plan-*.json"))
    assert [path for plan in plans for path in stale_files(plan)] == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.234, "1.23 s"), (123.4, "123 s"), (0.0213, "21.3 ms"), (0.9996, "1000 ms"), (2e-5, "20.0 µs"), (0.0, "0 s")],
)
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text


def test_numbers_are_shown_with_their_intervals() -> None:
    assert seconds_estimate(Estimate(0.0213, 0.021, 0.0219, 9)) == "21.3 ms [21.0, 21.9]"
    assert seconds_estimate(Estimate(0.0213, None, None, 3)) == "21.3 ms"
    assert number_estimate(Estimate(25.314, 24.9, 25.72, 4), 2) == "25.31 [24.90, 25.72]"
    assert gain_estimate(Estimate(0.314, -0.1, 0.7, 4), 2, "dB") == "+0.31 dB [-0.10, +0.70]"
    assert gain_estimate(Estimate(-0.314, None, None, 1), 2, "dB") == "-0.31 dB (no interval)"
    assert significant(0.003) == "0.00300" and significant(3120.4) == "3120"
    assert mebibytes(40.4) == "40 MiB" and mebibytes(20480) == "20.00 GiB" and mebibytes(None) == "–"
