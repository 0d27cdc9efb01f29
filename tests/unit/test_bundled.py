"""The bundled models: the files are the right ones, their cards are true, and they reach what was recorded."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tttlrm import bundled
from tttlrm.bundled import BUNDLED, bundled_model, looks_like_object
from tttlrm.checkpoints import digest, load_model
from tttlrm.config import Compute
from tttlrm.errors import CheckpointError, UserError
from tttlrm.metrics import psnr
from tttlrm.model import TTTLRM
from tttlrm.rendering import render
from tttlrm.scenes.procedural import ProceduralSpec
from tttlrm.training.export import export
from tttlrm.training.figures import read_records, to_markdown
from tttlrm.training.heldout import HeldOutScenes, held_out_scenes
from tttlrm.training.settings import TrainingSettings

RECORDS = Path(__file__).parents[2] / "results" / "training"
SIZE = (128, 128)
FLOOR = 1.0
"""dB below what was recorded for the same scenes."""


@pytest.mark.parametrize("name", BUNDLED)
def test_files_and_cards_are_the_models(name: str) -> None:
    model = bundled_model(name)
    card = json.loads(model.path.with_suffix(".json").read_text(encoding="utf-8"))
    settings = TrainingSettings.from_dict(card["settings"])
    loaded = load_model(model.path)
    assert card["name"] == name and card["weights_sha256"] == model.sha256 == digest(model.path)
    assert card["weights_bytes"] == model.path.stat().st_size <= 16e6
    assert sum(p.numel() for p in loaded.parameters()) == card["parameters"]
    assert loaded.config == settings.model
    assert (settings.data.kind, settings.schedule.kind) == (model.content, model.schedule)
    assert model.sha256 in model.card.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", BUNDLED)
def test_card_texts_are_made_of_their_data_and_records(name: str, tmp_path: Path) -> None:
    made = export(bundled_model(name).path, tmp_path, records=RECORDS).with_suffix(".md")
    assert made.read_text(encoding="utf-8") == bundled_model(name).card.read_text(encoding="utf-8")


def test_attention_has_as_many_parameters() -> None:
    ours, other = (
        sum(p.numel() for p in load_model(BUNDLED[name].path).parameters())
        for name in ("tiny-object", "tiny-object-attention")
    )
    assert abs(ours - other) < 0.1 * ours


def test_a_changed_or_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match="tiny-room.safetensors: the bundled model is missing"):
        bundled_model("tiny-room")
    (tmp_path / "tiny-room.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="has been changed"):
        bundled_model("tiny-room")
    with pytest.raises(UserError, match="no bundled model 'tiny-car'; there are tiny-object, "):
        bundled_model("tiny-car")


def ring(distance: float, aim: float = 0.0, count: int = 6) -> torch.Tensor:
    """Cameras around the z axis that look ``aim`` beside it."""
    poses = []
    for at in range(count):
        angle = 2 * math.pi * at / count
        out = torch.tensor([math.cos(angle), math.sin(angle), 0.0])
        along = torch.tensor([-math.sin(angle), math.cos(angle), 0.0])
        pose = torch.eye(4)
        pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = along, torch.tensor([0.0, 0, -1]), -out, distance * out
        pose[:3, 3] += aim * along
        poses.append(pose)
    return torch.stack(poses)


def test_objects_are_told_from_rooms_by_their_cameras() -> None:
    assert looks_like_object(ring(2.0)) and looks_like_object(ring(1.6, aim=0.3))
    assert not looks_like_object(ring(2.0, aim=0.8))
    assert not looks_like_object(ring(0.7)) and not looks_like_object(ring(6.0))
    outward = ring(2.0)
    outward[:, :3, 2] *= -1
    assert not looks_like_object(outward)
    one_away = ring(2.0)
    one_away[3, :3, 2] *= -1
    assert not looks_like_object(one_away)


def recorded(name: str, content: str, views: int, scenes: int) -> float:
    record: dict[str, Any] = json.loads((RECORDS / f"{name}-{content}-{views}views.json").read_text(encoding="utf-8"))
    assert record["weights_sha256"] == BUNDLED[name].sha256 and record["size"] == list(SIZE)
    assert [unit["index"] for unit in record["units"][:scenes]] == list(range(scenes))
    return sum(unit["psnr"] for unit in record["units"][:scenes]) / scenes


@torch.no_grad()
def measured(model: TTTLRM, name: str, scenes: HeldOutScenes) -> float:
    settings = TrainingSettings.from_dict(json.loads(BUNDLED[name].path.with_suffix(".json").read_text())["settings"])
    values = []
    for at in range(len(scenes.depths)):
        scene = scenes.select(slice(at, at + 1))
        images = render(model(scene.inputs, settings.schedule, Compute()), scene.targets.cameras).images
        values.append(psnr(images[0], scene.targets.images[0]).mean())
    return float(torch.stack(values).mean())


@pytest.mark.parametrize(("content", "views", "count"), [("object", 8, 2), ("room", 8, 1)])
def test_quality_is_what_was_recorded(content: str, views: int, count: int) -> None:
    spec = ProceduralSpec(content, 0, "test")  # type: ignore[arg-type]
    scenes: dict[str, HeldOutScenes] = {}
    for name, model in BUNDLED.items():
        if model.content != content:
            continue
        reference = "scene" if content == "object" else "first" if model.schedule == "ar" else "mean"
        if reference not in scenes:
            scenes[reference] = held_out_scenes(spec, range(count), views, 8, SIZE, reference)  # type: ignore[arg-type]
        value = measured(load_model(model.path), name, scenes[reference])
        assert value > recorded(name, content, views, count) - FLOOR, name


def test_random_weights_do_not_pass_the_floor() -> None:
    scenes = held_out_scenes(ProceduralSpec("object", 0, "test"), range(1), 8, 8, SIZE, "scene")
    torch.manual_seed(0)
    model = TTTLRM(load_model(BUNDLED["tiny-object"].path).config)
    assert measured(model, "tiny-object", scenes) < recorded("tiny-object", "object", 8, 1) - FLOOR


def test_the_committed_table_is_that_of_its_records(tmp_path: Path) -> None:
    for file in RECORDS.glob("*.json"):
        shutil.copy(file, tmp_path)
    assert to_markdown(read_records(tmp_path)) == (RECORDS / "evaluation.md").read_text(encoding="utf-8")
