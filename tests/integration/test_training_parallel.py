"""Gradients do not depend on how the processes share the work; from real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training_cases import CONFIG
from tttlrm.errors import UserError
from tttlrm.training.groups import Processes, join_processes

ROOT = Path(__file__).resolve().parent.parent.parent
Results = dict[str, tuple[torch.Tensor, torch.Tensor]]


def run(size: int, sp_size: int, dtype: str, folder: Path) -> list[Results]:
    """What every process computed."""
    store = folder / f"store-{size}-{sp_size}"
    command = [sys.executable, "-m", "tests.integration.training_worker"]
    arguments = [str(size), str(sp_size), str(store), dtype, str(folder)]
    ranks = [subprocess.Popen([*command, str(rank), *arguments], cwd=ROOT) for rank in range(size)]
    try:
        assert [rank.wait(timeout=240) for rank in ranks] == [0] * size
    finally:
        for rank in ranks:
            rank.kill()
    return [torch.load(folder / f"{size}-{sp_size}-{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("float64", 1e-9)])
def test_gradients_are_the_same_for_every_split(tmp_path: Path, dtype: str, bound: float) -> None:
    reference = run(1, 1, dtype, tmp_path)[0]
    for size, sp_size in ((2, 2), (4, 4), (2, 1), (4, 2)):
        for rank, results in enumerate(run(size, sp_size, dtype, tmp_path)):
            assert results.keys() == reference.keys()
            for name, (gradient, loss) in results.items():
                expected, expected_loss = reference[name]
                error = float((gradient - expected).norm() / expected.norm())
                assert error <= bound, (size, sp_size, rank, name, error)
                assert abs(float(loss / expected_loss) - 1) <= bound


def test_training_with_processes(tmp_path: Path) -> None:
    """The command itself, with two processes a scene and two scenes: the same weights as in one process."""
    weights = []
    for size, sp_size in ((1, 1), (4, 2)):
        output = tmp_path / f"{size}"
        model = [f"model.{key}={value}" for key, value in CONFIG.items()]
        phase = "{size:[16,16],scenes:2,views:[4],learning_rate:3e-3,warmup_steps:1,steps:3}"
        arguments = [
            "stage=tiny-object", f"output={output}", *model, "model.fast_weight_head=16",
            f"phases=[{phase}]", f"compute.sp_size={sp_size}",
            "compute.device=cpu", "compute.dtype=float64", "compute.master_dtype=float64", "data.compile=false",
            "data.steps_per_block=1", "report.validation_scenes=1", "report.validation_targets=1",
            "report.validation_views=[2]", "report.log_every=1", "budget.stop_after_seconds=1000",
        ]  # fmt: skip
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"] if size > 1 else []
        command = [sys.executable, *launch, "-m", "tttlrm.training", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr[-2000:]
        state = torch.load(output / "checkpoint.pt", weights_only=True)
        weights.append(state["optimizer"]["values"])
        assert len((output / "curve.csv").read_text().splitlines()) == 4
        launcher = json.loads((output / "summary.json").read_text())["command"].split(" -m ")[0]
        assert launcher == ("python" if size == 1 else "torchrun --nproc-per-node 4")
    assert torch.allclose(*weights, rtol=1e-6, atol=1e-9)
    assert (tmp_path / "1" / "curve.csv").read_text().split("\n")[1].split(",")[5:8] == (
        tmp_path / "4" / "curve.csv"
    ).read_text().split("\n")[1].split(",")[5:8]


def test_splits_that_do_not_work_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="sp_size 3 does not divide the number of processes, 4"):
        join_processes(3, "cpu")
    with pytest.raises(UserError, match="a batch of 3 scenes is not a multiple of the 2 groups"):
        Processes(0, 4, 2).scenes(3)
    assert [Processes(rank, 4, 2).scenes(4) for rank in range(4)] == [slice(0, 2)] * 2 + [slice(2, 4)] * 2
