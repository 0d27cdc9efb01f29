"""Two result sets: what changed beyond the intervals, and an exit code for it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.compare import compare, exit_code, result_set, values_of
from bench.plans import Plan
from bench.records import Record
from bench.store import Store
from tests.bench_cases import MACHINE, quality_result, record, speed_result, tiny_plan
from tttlrm.errors import UserError

PLAN = tiny_plan().plan
SPEED, QUALITY = (PLAN.cells[PLAN.rows[0].cells[kind][0]] for kind in ("speed", "quality"))


def times(median: float) -> list[float]:
    return [median * (1 + 0.002 * (at % 5 - 2)) for at in range(20)]


def write(folder: Path, *records: Record, plan: Plan = PLAN) -> Path:
    store = Store.at(folder, MACHINE, plan.table)
    store.write_plan(plan)
    for made in records:
        store.write(made)
    return folder


def changes(a: Path, b: Path, slack: float = 0.0) -> dict[str, str]:
    with result_set(str(a)) as before, result_set(str(b)) as after:
        found = compare(values_of(before), values_of(after), slack)
        return {difference.key.column: difference.change for difference in found}


def speed(median: float) -> Record:
    return record(SPEED, speed=speed_result(times(median)))


def quality(*means: float, lpips: float | None = None) -> Record:
    return record(QUALITY, quality=quality_result({str(at): [mean] for at, mean in enumerate(means)}, lpips))


@pytest.mark.parametrize(
    ("a", "b", "change"),
    [(0.1, 0.1, "same"), (0.1, 0.1001, "same"), (0.1, 0.11, "worse"), (0.1, 0.09, "better")],
)
def test_times_change_beyond_both_intervals(tmp_path: Path, a: float, b: float, change: str) -> None:
    found = changes(write(tmp_path / "a", speed(a)), write(tmp_path / "b", speed(b)))
    assert found == {"time_s": change}


def test_slack_forgives_times_but_not_quality(tmp_path: Path) -> None:
    a = write(tmp_path / "a", speed(0.1), quality(20.0, 22.0, 25.0))
    b = write(tmp_path / "b", speed(0.11), quality(19.9, 21.9, 24.91))
    assert changes(a, b, slack=0.2) == {"psnr": "worse", "ssim": "same", "time_s": "same"}
    assert changes(a, b)["time_s"] == "worse"


def test_quality_is_paired_by_scene(tmp_path: Path) -> None:
    """A small change of every scene is found, though the intervals over scenes overlap by far."""
    a = write(tmp_path / "a", quality(15.0, 22.0, 31.0))
    b = write(tmp_path / "b", quality(15.1, 22.11, 31.1))
    assert changes(a, b)["psnr"] == "better"
    c = write(tmp_path / "c", quality(15.1, 21.9, 31.1))
    assert changes(a, c)["psnr"] == "same"


def test_what_is_lost_or_gained_is_said(tmp_path: Path) -> None:
    a = write(tmp_path / "a", speed(0.1), quality(20.0, 21.0, lpips=0.2))
    failed = record(SPEED, status="failed", reason="RuntimeError: no")
    b = write(tmp_path / "b", failed, quality(20.0, 21.0))
    assert changes(a, b) == {"psnr": "same", "ssim": "same", "lpips": "lost", "time_s": "lost"}
    assert changes(b, a)["time_s"] == "gained"


def test_a_single_scene_decides_nothing_unless_equal(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", quality(20.0)), write(tmp_path / "b", quality(19.0))
    assert changes(a, b)["psnr"] == "too few samples"
    assert changes(a, a)["psnr"] == "same"


def test_the_command_says_it_and_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(write(tmp_path / "a", speed(0.1))), str(write(tmp_path / "b", speed(0.2)))
    assert main(["compare", a, a]) == 0
    assert "1 numbers: 1 same." in capsys.readouterr().out
    assert main(["compare", a, b]) == 1
    out = capsys.readouterr().out
    assert "**worse**" in out and "+100 ms (+100%)" in out and "- B: table1, commit 0123456789" in out
    assert main(["compare", b, a]) == 0
    (tmp_path / "empty").mkdir()
    for name, said in (("none", "no such folder"), ("empty", "no plan-<profile>.json there")):
        assert main(["compare", a, str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {tmp_path / name}: {said}")


def test_two_machines_in_one_set_must_be_told_apart(tmp_path: Path) -> None:
    write(tmp_path, speed(0.1))
    other = Store.at(tmp_path, "another", PLAN.table)
    other.write_plan(PLAN)
    other.write(speed(0.1))
    with result_set(str(tmp_path)) as tables, pytest.raises(UserError, match="name the folder of one machine"):
        values_of(tables)


def test_a_set_can_lie_in_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.chdir(tmp_path)
    git("init")
    write(tmp_path / "results", speed(0.1))
    git("add", ".")
    git("commit", "-m", "one")
    write(tmp_path / "results", speed(0.2))
    with result_set("HEAD:results") as before, result_set("results") as after:
        found = compare(values_of(before), values_of(after))
    assert [difference.change for difference in found] == ["worse"] and exit_code(found) == 1
    refusals: list[tuple[str, Callable[[str], bool]]] = [
        ("HEAD:nothing", lambda said: said.startswith("HEAD:nothing: ")),
        ("nobody:results", lambda said: said.startswith("nobody:results: ")),
    ]
    for name, expected in refusals:
        with pytest.raises(UserError) as error, result_set(name):
            pass
        assert expected(str(error.value)) and "\n" not in str(error.value)
