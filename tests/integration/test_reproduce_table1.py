"""The main job for real, on part of table 1: from the command to the rendered table, and again from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.records import Record
from bench.settings import load_settings
from bench.store import Store
from bench.tables import load_table, stale_files
from tests.bench_cases import folder_scene

ROOT = Path(__file__).resolve().parents[2]

SMALL = (
    "machine=here",
    "cells.rows=[1,2]",
    "profile.lpips=false",
    "profile.model.blocks=1",
    "profile.weights.quality.gs-lrm=random",
    "profile.weights.quality.tttlrm=random",
    "profile.scales.object.resolutions={256x256:[32,32]}",
    "profile.datasets.gso.scenes=2",
    "profile.datasets.gso.test_views=2",
    "profile.datasets.objects.test_views=1",
    "profile.sampling.warmup_s=0.05",
    "profile.sampling.limit_s=0.5",
)


def bench(folder: Path, *arguments: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, in a folder of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The results of one run of two rows."""
    folder = tmp_path_factory.mktemp("run")
    return folder, bench(folder, "table=table1", "profile=tiny", *SMALL)


def store(folder: Path) -> Store:
    return Store.at(folder / "results", "here", "table1")


def records(folder: Path, kinds: Sequence[str] = ("quality", "speed")) -> list[Record]:
    found = [store(folder).read(cell_id) for cell_id in store(folder).record_ids()]
    return [record for record in found if record is not None and record.cell.kind in kinds]


def test_it_ends_with_a_table(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = ran
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 cells: 4 ok, 12 without a record" in done.stdout and "recorded before" not in done.stdout
    assert "32 printed numbers: 6 not comparable, 2 not available, 24 not run" in done.stdout
    markdown = (store(folder).root / "table1-tiny.md").read_text()
    assert "Quality of random weights means nothing" in markdown
    assert "not available" in markdown and "not asked for (profile.lpips)" in markdown
    assert "no record yet" in markdown
    assert [path.name for path in folder.iterdir()] == ["results"], "nothing else is left in the working folder"


def test_records_are_complete(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    made = records(ran[0])
    assert sorted((r.cell.method, r.cell.kind) for r in made) == [
        ("gs-lrm", "quality"),
        ("gs-lrm", "speed"),
        ("tttlrm", "quality"),
        ("tttlrm", "speed"),
    ]
    for record in made:
        assert record.status == "ok" and record.attempt == 1 and record.started < record.finished
        assert record.environment.packages["torch"] and record.environment.threads == 1
        text = store(ran[0]).record_path(record.cell_id).read_text()
        assert str(ran[0]) not in text and str(ROOT) not in text
    for record in records(ran[0], ["speed"]):
        speed = record.speed
        assert speed is not None and record.cell.sampling is not None
        assert list(speed.reconstruct.stages) == ["encode", "blocks", "decode"]
        assert list(speed.show.stages) == ["prune", "render"]
        counts = {len(samples) for samples in speed.reconstruct.stages.values()}
        assert len(counts) == 1 and counts.pop() >= 1
        assert speed.gaussians == 8 * 32 * 32
        assert all(seconds > 0 for samples in speed.reconstruct.stages.values() for (seconds,) in samples)
    for record in records(ran[0], ["quality"]):
        quality = record.quality
        assert quality is not None and quality.lpips_absent == "not asked for (profile.lpips)"
        assert [(scene.scene, len(scene.views)) for scene in quality.scenes] == [("0", 2), ("1", 2)]
        for scene in quality.scenes:
            assert scene.gaussians == 8192 and scene.rendered_gaussians == 3276 + 491
            assert all(0 < view.psnr < 60 and -1 <= view.ssim < 1 for view in scene.views)


def test_repeating_it_runs_nothing_and_changes_nothing(
    ran: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder = ran[0]
    before = {path: path.read_bytes() for path in store(folder).root.iterdir()}
    jobs = sorted(path.name for path in (store(folder).work_dir() / "jobs").iterdir())
    listed = bench(folder, "list", *SMALL)
    assert listed.stdout.count(": ok") == 4 and "  table1   16 cells (12 not asked for, 4 ok)" in listed.stdout
    planned = bench(folder, "dry_run=true", *SMALL)
    assert "0 cells to run, in 0 jobs" in planned.stdout
    again = bench(folder, *SMALL)
    assert again.returncode == 0 and "4 cells had been recorded before" in again.stdout
    assert {path: path.read_bytes() for path in store(folder).root.iterdir()} == before
    assert sorted(path.name for path in (store(folder).work_dir() / "jobs").iterdir()) == jobs


def test_the_table_is_what_the_records_give(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder = ran[0]
    assert stale_files(store(folder).plan_path("tiny")) == []
    markdown = store(folder).root / "table1-tiny.md"
    text = markdown.read_text()
    markdown.write_text("edited")
    assert bench(folder, "report_only=true", *SMALL).returncode == 0
    assert markdown.read_text() == text


def test_quality_is_the_same_when_it_is_run_again(
    ran: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    again = bench(tmp_path, *SMALL, "cells.kinds=[quality]")
    assert again.returncode == 0, again.stderr

    def values(folder: Path) -> dict[str, list[float]]:
        made = records(folder, ["quality"])
        assert all(record.quality is not None for record in made)
        return {r.cell_id: [view.psnr for scene in r.quality.scenes for view in scene.views] for r in made if r.quality}

    assert values(tmp_path) == values(ran[0])


def test_a_folder_of_scenes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        folder_scene(tmp_path / "scenes" / name)
    source = "profile.datasets.gso"
    done = bench(
        tmp_path,
        *SMALL,
        "cells.kinds=[quality]",
        "cells.rows=[2]",
        f"{source}.source=folder",
        f"{source}.name=mine",
        f"{source}.root=scenes",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = records(tmp_path)
    assert made.quality is not None
    assert [scene.scene for scene in made.quality.scenes] == ["first", "second"]


def test_a_broken_scene_fails_by_name(tmp_path: Path) -> None:
    for name in ("first", "second"):
        folder_scene(tmp_path / "scenes" / name)
    (tmp_path / "scenes" / "second" / "005.png").write_bytes(b"not an image")
    source = "profile.datasets.gso"
    overrides = (f"{source}.source=folder", f"{source}.name=mine", f"{source}.root=scenes", "cells.rows=[2]")
    done = bench(tmp_path, *SMALL, *overrides, "cells.kinds=[quality]")
    assert done.returncode == 1
    (made,) = records(tmp_path)
    assert made.status == "failed" and made.reason is not None
    assert made.reason.startswith("SceneError") and "005.png" in made.reason
    assert made.reason in done.stdout


def test_the_paper_profile_without_its_means_is_a_table_of_reasons(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA GPU is here, so that the speed cells would run")
    done = bench(tmp_path, "profile=paper", "machine=here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "32 printed numbers: 32 not available" in done.stdout
    assert "  8 cells unavailable: the authors' weights for this table are not released\n" in done.stdout
    assert "  8 cells unavailable: no CUDA GPU on this machine; the tiny profile needs none\n" in done.stdout
    markdown = (store(tmp_path).root / "table1-paper.md").read_text()
    assert "the authors' weights for this table are not released" in markdown
    assert "no CUDA GPU on this machine" in markdown


def test_another_table_with_trained_models(tmp_path: Path) -> None:
    """Table 4, on fewer scenes: what differs between its rows is run for real, and its claim is judged."""
    fewer = ("profile.datasets.dl3dv.scenes=2", "profile.datasets.dl3dv.test_views=1", "profile.lpips=false")
    done = bench(tmp_path, "table=table4", "machine=here", *fewer)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Store.at(tmp_path / "results", "here", "table4").root
    markdown = (folder / "table4-tiny.md").read_text()
    for said in (
        "tiny-room-ar (sha256 ",
        "32 → 16",
        "predict-and-merge",
        "full reconstruction above predict-and-merge",
    ):
        assert said in markdown, said
    assert "means nothing" not in markdown
    table = load_table(folder / "plan-tiny.json")
    merged, full = (line.cells["psnr"].measured.by_scene for line in table.lines)
    assert merged.keys() == full.keys() == {"0", "1"} and all(merged[name] != full[name] for name in full)
    (claim,) = table.claims
    assert len(claim.comparisons) == 1 and claim.comparisons[0].gain.has_interval


def test_interrupting_it_ends_its_workers_and_keeps_what_is_done(tmp_path: Path) -> None:
    slow = (*SMALL, "cells.kinds=[speed]", "profile.sampling.limit_s=100", "profile.sampling.interval=1e-9")
    slow = (*slow, "profile.sampling.max_samples=100000000")
    command = [sys.executable, "-m", "bench", *slow]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    locks = store(tmp_path).work_dir() / "locks"
    deadline = time.monotonic() + 100
    while not list(locks.glob("*.lock")) and time.monotonic() < deadline:
        time.sleep(0.1)
    (lock,) = locks.glob("*.lock")
    worker = json.loads(lock.read_text())["pid"]
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert records(tmp_path) == []


def test_defaults_and_committed_results_go_together() -> None:
    """The folder that a plain run uses is the one that holds the committed tables."""
    assert load_settings().results_dir == Path("results")
    for plan in sorted((ROOT / "results").glob("*/*/*/plan-*.json")):
        load_table(plan)
