"""Cells whose scenes are shared by several processes of this machine, and what happens when one of them fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from bench.records import Record
from bench.run import Outcome, find_work, run_table
from bench.settings import Settings, load_settings
from bench.store import Store
from tests.bench_cases import MACHINE

ROOT = Path(__file__).resolve().parents[2]

SMALL = (
    f"machine={MACHINE}",
    "quiet=true",
    "profile.lpips=false",
    "profile.weights.quality={default: random}",
    "profile.scales.object.resolutions={256x256: [32, 32], 512x512: [32, 32]}",
    "profile.threads={quality: 1, speed: 1}",
    "profile.datasets.gso.test_views=1",
    "profile.datasets.gso.scenes=2",
    "profile.sampling.limit_s=0.5",
    "cells.kinds=[quality]",
)

WORKER = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import bench.quality
from bench import worker

RANK = int(sys.argv[sys.argv.index("--rank") + 1]) if "--rank" in sys.argv else 0
original = bench.quality._reconstruct


def reconstruct(cell, method, name, root):
    {body}
    return original(cell, method, name, root)


bench.quality._reconstruct = reconstruct
sys.exit(worker.main())
"""


def settings(tmp_path: Path, *overrides: str) -> Settings:
    return load_settings([*SMALL, f"results_dir={tmp_path / 'results'}", *overrides])


def command(tmp_path: Path, body: str = "pass") -> tuple[str, ...]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(root=str(ROOT), body=body))
    return (sys.executable, str(script))


def by_method(outcome: Outcome, tmp_path: Path) -> dict[tuple[str, int], Record]:
    store = Store.at(tmp_path / "results", MACHINE, "table1")
    made = [store.read(cell_id) for cell_id in store.record_ids()]
    return {(r.cell.method, r.cell.sp_size): r for r in made if r is not None}


def test_every_sp_size_gives_the_same_quality(tmp_path: Path) -> None:
    outcome = run_table(settings(tmp_path, "cells.sp_size=[1,2,4]", "cells.rows=[2]"))
    assert outcome.exit_code == 0
    found = by_method(outcome, tmp_path)
    values = {}
    for (_, sp_size), record in found.items():
        assert record.quality is not None and [memory.rank for memory in record.memory] == list(range(sp_size))
        views = [view for scene in record.quality.scenes for view in scene.views]
        values[sp_size] = [value for view in views for value in (view.psnr, view.ssim)]
    assert values[2] == pytest.approx(values[1], rel=1e-5) and values[4] == pytest.approx(values[1], rel=1e-5)


def test_a_sample_of_several_ranks_has_a_time_of_each(tmp_path: Path) -> None:
    outcome = run_table(settings(tmp_path, "cells.sp_size=[2]", "cells.rows=[2]", "cells.kinds=[speed]"))
    assert outcome.exit_code == 0
    (record,) = by_method(outcome, tmp_path).values()
    assert record.speed is not None and len(record.memory) == 2
    samples = [sample for stage in record.speed.reconstruct.stages.values() for sample in stage]
    assert samples and {len(sample) for sample in samples} == {2}


def test_a_rank_that_raises_leaves_its_traceback_and_the_other_cell_runs(tmp_path: Path) -> None:
    broken = "assert (RANK, cell.method) != (1, 'gs-lrm'), 'rank 1 broke'"
    started = time.monotonic()
    outcome = run_table(settings(tmp_path, "cells.sp_size=[2]", "cells.rows=[1,2]"), command(tmp_path, broken))
    assert outcome.exit_code == 1 and time.monotonic() - started < 300
    found = by_method(outcome, tmp_path)
    assert found["tttlrm", 2].status == "ok"
    record = found["gs-lrm", 2]
    assert record.status == "failed" and record.reason == "AssertionError: rank 1 broke"
    assert record.failure is not None and record.failure.rank == 1
    assert record.failure.traceback is not None and "rank 1 broke" in record.failure.traceback


def test_a_rank_that_is_killed_is_named(tmp_path: Path) -> None:
    killed = "(RANK, cell.method) == (1, 'gs-lrm') and os.kill(os.getpid(), signal.SIGKILL)"
    outcome = run_table(settings(tmp_path, "cells.sp_size=[2]", "cells.rows=[1,2]"), command(tmp_path, killed))
    found = by_method(outcome, tmp_path)
    assert found["tttlrm", 2].status == "ok"
    record = found["gs-lrm", 2]
    assert record.status == "failed" and record.reason is not None
    assert record.reason.startswith("rank 1 was killed by SIGKILL")


def test_a_run_that_was_interrupted_goes_on_from_its_scenes(tmp_path: Path) -> None:
    overrides = [*SMALL, "results_dir=results", "cells.rows=[1]", "profile.datasets.gso.scenes=4", "cells.sp_size=[2]"]
    wanted = settings(tmp_path, *overrides[len(SMALL) + 1 :])
    slow = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from bench.run import run_table
from bench.settings import load_settings
run_table(load_settings({[*overrides]!r}), {command(tmp_path, "name in '23' and time.sleep(100)")!r})
"""
    process = subprocess.Popen([sys.executable, "-c", slow], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    work = Store.at(tmp_path / "results", MACHINE, "table1").work_dir()
    deadline = time.monotonic() + 90
    while len(list(work.glob("partial/*/1/*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    first = [path.read_text() for path in work.glob("jobs/*.events.jsonl")]
    assert len(find_work(wanted).pending) == 1
    assert run_table(wanted).exit_code == 0
    second = [path.read_text() for path in work.glob("jobs/*.events.jsonl")]
    events = [json.loads(line) for text in [*first, *second] for line in text.splitlines()]
    assert Counter(event["scene"] for event in events if event["kind"] == "scene") == Counter("0123")
    record = find_work(wanted).found
    assert [found.attempt for found in record.values() if not hasattr(found, "problem")] == [1]
    assert not list(work.glob("partial/*/*/*.json"))
