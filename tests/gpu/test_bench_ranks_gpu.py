"""Cells whose scenes are shared by several GPUs of this machine, through NCCL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.run import find_work, run_table
from bench.settings import load_settings
from bench.store import Store
from tests.bench_cases import MACHINE

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_two_gpus() -> None:
    pytest.importorskip("gsplat")
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA GPUs")


def test_two_gpus_give_the_quality_of_one_and_times_of_both(tmp_path: Path) -> None:
    overrides = [
        f"results_dir={tmp_path / 'results'}",
        f"machine={MACHINE}",
        "device=cuda",
        "quiet=true",
        "profile.lpips=false",
        "profile.datasets.gso.scenes=2",
        "profile.sampling.limit_s=2",
        "cells.rows=[2]",
        "cells.sp_size=[1,2]",
    ]
    assert run_table(load_settings(overrides)).exit_code == 0
    store = Store.at(tmp_path / "results", MACHINE, "table1")
    made = [record for record in map(store.read, store.record_ids()) if record is not None]
    quality = {record.cell.sp_size: record.quality for record in made if record.quality is not None}
    values = {
        ranks: [view.psnr for scene in result.scenes for view in scene.views] for ranks, result in quality.items()
    }
    assert values[2] == pytest.approx(values[1], abs=0.01)
    (speed,) = [record for record in made if record.speed is not None and record.cell.sp_size == 2]
    assert speed.speed is not None and {len(s) for s in speed.speed.reconstruct.stages["blocks"]} == {2}
    assert [memory.rank for memory in speed.memory] == [0, 1]
    assert all(memory.allocated_mib for memory in speed.memory)


def test_more_ranks_than_gpus_are_a_reason_and_no_run(tmp_path: Path) -> None:
    count = torch.cuda.device_count()
    overrides = [f"results_dir={tmp_path / 'results'}", f"machine={MACHINE}", "device=cuda", "cells.rows=[6]"]
    work = find_work(load_settings([*overrides, f"cells.sp_size=[{count + 1}]"]))
    reasons = set(work.unavailable.values())
    assert f"sp_size {count + 1} needs as many GPUs, and this machine has {count}" in reasons
