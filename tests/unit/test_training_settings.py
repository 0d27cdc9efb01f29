"""Settings of training runs: what is refused, and what the shipped stages are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tttlrm.bundled import BUNDLED
from tttlrm.errors import UserError
from tttlrm.model import TTTLRM
from tttlrm.training.__main__ import compose, main
from tttlrm.training.progress import Plan, Position
from tttlrm.training.settings import BudgetSettings, Phase, TrainingSettings

STAGES = ("tiny-object", "tiny-object-ar", "tiny-object-attention", "tiny-room", "tiny-room-ar")


def settings(**changes: Any) -> dict[str, Any]:
    phase = {"size": [16, 16], "scenes": 2, "views": [2], "learning_rate": 1e-3, "steps": 4}
    return {"stage": "test", "output": "out", "phases": [phase], **changes}


def parameters(stage: str) -> int:
    with torch.device("meta"):
        model = TTTLRM(compose([f"stage={stage}", "output=out"]).model)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("stage", STAGES)
def test_stages_are_valid_and_small(stage: str) -> None:
    composed = compose([f"stage={stage}", "output=out", "seed=3"])
    assert composed.stage == stage
    assert composed.seed == 3
    assert 2 * parameters(stage) <= 16e6 * 0.98  # bf16; the rest is the file's header
    assert composed.model.width // composed.model.attention_head * composed.model.attention_head == composed.model.width
    assert composed.model.attention_head in (32, 64)
    assert composed.phases[-1].size == (128, 128)
    assert composed.schedule.kind == ("ar" if stage.endswith("-ar") else "full")
    assert (composed.initial_weights is not None) == stage.endswith("-ar")


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ("tiny-room", "tiny-room-continued"),
        ("tiny-room", "tiny-room-final"),
        ("tiny-room", "tiny-room-more"),
        ("tiny-room", "tiny-room-alternating"),
        ("tiny-object", "tiny-object-more"),
        ("tiny-object-attention", "tiny-object-attention-more"),
    ],
)
def test_later_stages_go_on_with_the_same_model(first: str, later: str) -> None:
    before, after = (compose([f"stage={stage}", "output=out"]) for stage in (first, later))
    assert (after.stage, after.model) == (before.stage, before.model)
    assert (after.data.kind, after.schedule.kind) == (before.data.kind, "full")


def test_the_wide_stage_is_as_large() -> None:
    assert compose(["stage=tiny-room-wide", "output=out"]).model != compose(["stage=tiny-room", "output=out"]).model
    assert abs(parameters("tiny-room-wide") / parameters("tiny-room") - 1) < 0.1
    assert 2 * parameters("tiny-room-wide") <= 16e6 * 0.98


@pytest.mark.parametrize("part", ["", "-more"])
def test_attention_model_is_comparable(part: str) -> None:
    ours, theirs = (compose([f"stage={s}{part}", "output=out"]) for s in ("tiny-object", "tiny-object-attention"))
    assert theirs.model.mixer == "attention"
    assert abs(parameters("tiny-object-attention") / parameters("tiny-object") - 1) < 0.1
    for part in ("phases", "data", "loss", "optimizer", "seed", "schedule", "compute"):
        assert getattr(ours, part) == getattr(theirs, part), part
    assert (ours.model.width, ours.model.blocks) == (theirs.model.width, theirs.model.blocks)


@pytest.mark.parametrize("stage", STAGES)
def test_bundled_models_are_those_of_their_stages(stage: str) -> None:
    card = json.loads(BUNDLED[stage].path.with_suffix(".json").read_text(encoding="utf-8"))
    composed, trained = compose([f"stage={stage}", "output=out"]), TrainingSettings.from_dict(card["settings"])
    assert trained.model == composed.model and trained.schedule == composed.schedule


@pytest.mark.parametrize(
    ("model", "stages"),
    [
        ("tiny-object", ["tiny-object", "tiny-object-more"]),
        ("tiny-object-attention", ["tiny-object-attention", "tiny-object-attention-more"]),
        ("tiny-object-ar", ["tiny-object", "tiny-object-more", "tiny-object-ar"]),
    ],
)
def test_the_runs_of_bundled_objects_are_their_stages(model: str, stages: list[str]) -> None:
    run = json.loads(BUNDLED[model].path.with_suffix(".json").read_text(encoding="utf-8"))
    for stage in reversed(stages):
        composed, trained = compose([f"stage={stage}", "output=out"]), TrainingSettings.from_dict(run["settings"])
        # How a run's time is shared out is of no account where its steps are given.
        assert [replace(p, share=1.0) for p in trained.phases] == [replace(p, share=1.0) for p in composed.phases]
        for part in ("data", "loss", "optimizer", "seed"):
            assert getattr(trained, part) == getattr(composed, part), part
        run = run.get("before")
    assert run is None


@pytest.mark.parametrize(("model", "stage"), [("tiny-room", "tiny-room-alternating"), ("tiny-room-ar", "tiny-room-ar")])
def test_the_last_run_of_bundled_rooms_is_its_stage(model: str, stage: str) -> None:
    card = json.loads(BUNDLED[model].path.with_suffix(".json").read_text(encoding="utf-8"))
    composed, trained = compose([f"stage={stage}", "output=out"]), TrainingSettings.from_dict(card["settings"])
    # The schedule was by time: the stage has the steps that came of it.
    assert [replace(p, steps=1) for p in trained.phases] == [replace(p, steps=1) for p in composed.phases]
    assert sum(phase.steps for phase in composed.phases) == pytest.approx(card["steps"], rel=0.01)
    for part in ("data", "loss", "optimizer", "seed"):
        assert getattr(trained, part) == getattr(composed, part), part


def test_plain_values_and_back() -> None:
    built = compose(["stage=tiny-room", "output=out", "budget.max_seconds=60", "compute.newton_schulz_dtype=float32"])
    assert TrainingSettings.from_dict(built.to_dict()) == built


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": []}, "phases: a run needs at least one"),
        ({"modle": {}}, "unknown key modle"),
        ({"seed": "x"}, "seed must be of type int, not 'x'"),
        ({"seed": True}, "seed must be of type int"),
        ({"data": {"kind": "car"}}, "data.kind must be one of object, room, not 'car'"),
        ({"data": {"scale_range": [1.0]}}, "data.scale_range must be a list of 2"),
        ({"data": {"scale_range": [2.0, 1.0]}}, "scale_range must be two positive numbers in order"),
        ({"loss": {"mse": -1.0}}, "loss.mse must not be negative"),
        ({"schedule": {"kind": "ar"}}, "needs data.ordered=true"),
        ({"data": {"input_targets": 3}}, "input_targets is larger"),
        ({"budget": {"schedule_by": "time"}}, "needs budget.max_seconds"),
        ({"model": {"patch": 5}}, "not a multiple of the patch size 5"),
        ({"optimizer": {"ema_decay": 1.0}}, "0 <= ema_decay < 1"),
        ({"phases": [{"scenes": 2}]}, r"phases\[0\].size is missing"),
        (
            {"phases": [{"size": [16, 16], "scenes": 2, "views": [2], "learning_rate": 1e-3}]},
            "positive number of steps",
        ),
        ({"phases": [{"size": [16, 16], "scenes": 0, "views": [2], "learning_rate": 1e-3}]}, "positive size, scenes"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingSettings.from_dict(settings(**changes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "You must specify 'stage'"),
        (["stage=nothing", "output=out"], "Could not find 'stage/nothing'"),
        (["stage=tiny-object"], "output"),
        (["stage=tiny-object", "output=out", "model.widht=3"], "model.widht"),
        (["stage=tiny-object", "output=out", "compute.device=cpu", "model.width=100"], "width 100 is not a multiple"),
    ],
)
def test_command_line_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_missing_gpu_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stage=tiny-object", f"output={tmp_path}"]) == 2
    assert "set compute.device=cpu" in capsys.readouterr().err


PHASES = (
    Phase((16, 16), 2, (2,), 1e-3, steps=3, share=3),
    Phase((32, 32), 2, (2,), 1e-3, steps=2, share=1),
)


def test_plan_by_steps() -> None:
    plan, position = Plan(PHASES, BudgetSettings()), Position()
    seen = []
    while not plan.finished(position):
        plan.enter_phase(position)
        seen.append((position.phase, position.step - position.phase_start, plan.phase_progress(position)))
        position.step += 1
    assert seen == [(0, 0, 0), (0, 1, 1 / 3), (0, 2, 2 / 3), (1, 0, 0), (1, 1, 0.5)]
    assert plan.progress(position) == 1


def test_plan_by_time() -> None:
    plan = Plan(PHASES, BudgetSettings(schedule_by="time", max_seconds=100))
    position = Position(step=70, seconds=74)
    assert not plan.enter_phase(position)
    assert plan.phase_progress(position) == pytest.approx(74 / 75)
    position.seconds, position.step = 80, 90
    assert plan.enter_phase(position)
    assert (position.phase, position.phase_start) == (1, 90)
    assert plan.phase_progress(position) == pytest.approx(0.2)
    assert not plan.finished(position)
    position.seconds = 100.5
    assert plan.finished(position)
    assert plan.progress(position) == 1


def test_plan_by_steps_with_a_time_limit() -> None:
    plan = Plan(PHASES, BudgetSettings(max_seconds=10))
    assert plan.finished(Position(step=1, seconds=11))
    assert not plan.finished(Position(step=1, seconds=9))
