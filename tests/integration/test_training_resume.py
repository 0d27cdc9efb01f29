"""A run that is killed at any moment and started again ends with exactly the same weights."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training_cases import CONFIG
from tttlrm.training.__main__ import main

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 30


def arguments(output: Path) -> list[str]:
    phases = (
        "{size:[16,16],scenes:2,views:[2,4],learning_rate:3e-3,warmup_steps:4,steps:20},"
        "{size:[24,24],scenes:2,views:[2,4],learning_rate:1e-3,warmup_steps:4,steps:10}"
    )
    return [
        "stage=tiny-object", f"output={output}", *(f"model.{key}={value}" for key, value in CONFIG.items()),
        "model.fast_weight_head=16",
        f"phases=[{phases}]", "compute.device=cpu", "compute.dtype=float32", "compute.compile=false",
        "data.compile=false", "data.steps_per_block=3", "data.passes=2", "data.novel_targets=2",
        "report.log_every=1", "report.checkpoint_every=1", "report.validate_every=10",
        "report.validation_scenes=1", "report.validation_targets=1", "report.validation_views=[2]",
    ]  # fmt: skip


def train(output: Path) -> subprocess.Popen[bytes]:
    # One thread: sums of several may be taken in another order in another process.
    program = "import sys, torch; torch.set_num_threads(1); from tttlrm.training.__main__ import main; sys.exit(main())"
    with (output.parent / f"{output.name}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", program, *arguments(output)], cwd=ROOT, stdout=log, stderr=log)


def steps_done(output: Path) -> int:
    path = output / "curve.csv"
    return max(0, path.read_text().count("\n") - 1) if path.exists() else 0


def kill_after(output: Path, steps: int) -> None:
    """Kill the run, without warning, once it has done so many steps."""
    process = train(output)
    deadline = time.monotonic() + 200
    while steps_done(output) < steps and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, (output.parent / f"{output.name}.log").read_text()[-2000:]
    process.kill()
    process.wait()


def test_killed_runs_end_with_the_same_weights(tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    reference = train(unbroken)
    assert reference.wait(timeout=250) == 0, (tmp_path / "unbroken.log").read_text()[-2000:]
    # Within a block of scenes, between blocks, and in the second phase.
    for steps in (2, 9, 21):
        kill_after(broken, steps)
        assert not (broken / "weights.safetensors").exists()
    assert train(broken).wait(timeout=250) == 0
    ours, expected = (load_file(folder / "weights.safetensors") for folder in (broken, unbroken))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    states = [torch.load(f / "checkpoint.pt", weights_only=True)["optimizer"] for f in (broken, unbroken)]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0] if n != "layout")
    rows = [list(csv.DictReader((folder / "curve.csv").open())) for folder in (broken, unbroken)]
    assert [row["step"] for row in rows[0]] == [str(step) for step in range(1, STEPS + 1)]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill while the checkpoint is written: the file there is the one before it."""
    save = torch.save
    calls = iter(range(100))

    def cut_off(state: object, path: Path) -> None:
        save(state, path)
        if next(calls) == 3:
            path.write_bytes(path.read_bytes()[:1000])
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        main(arguments(tmp_path / "run"))
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["position"]["step"] == 3
    assert not list((tmp_path / "run").glob(".checkpoint*"))
