"""What is known of a test scene, and what a model's answer becomes with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import limits
from tttlrm.cameras import Views
from tttlrm.metrics import psnr
from tttlrm.scenes.procedural import ProceduralSpec

SIZE = (32, 32)
WEIGHTS = Path(__file__).resolve().parents[2] / "tttlrm" / "weights"


@pytest.fixture(scope="module")
def truth() -> limits.Truth:
    return limits.make_truth(ProceduralSpec("object", 0, "test"), 0, 8, SIZE)


def test_views_of_a_scene_are_told_apart(truth: limits.Truth) -> None:
    assert (truth.inputs.num_views, truth.targets.num_views, truth.more.num_views) == (8, 8, 24)
    places = [
        {tuple(p) for p in v.camera_to_world[:, :3, 3].tolist()} for v in (truth.inputs, truth.targets, truth.more)
    ]
    assert places[0] < places[2] and not places[1] & places[2]


def test_true_surfaces_take_their_colours_along(truth: limits.Truth) -> None:
    images, seen = limits.reproject(truth)
    assert images.shape == truth.targets.images.shape and seen.shape == (8, *SIZE)
    surface = truth.target_masks[:, 0] > 0.5
    assert 0.8 < float(seen[surface].float().mean()) <= 1
    assert torch.equal(images.movedim(1, -1)[~surface], truth.targets.images.movedim(1, -1)[~surface])
    wrong = limits.reproject(replace(truth, inputs=_turned(truth.inputs)))[0]
    good, bad = (float(psnr(found, truth.targets.images).mean()) for found in (images, wrong))
    assert good > 22 and good > bad + 5


def test_input_views_seen_from_where_they_were_taken_are_themselves(truth: limits.Truth) -> None:
    known = replace(truth, targets=truth.inputs, target_depths=truth.input_depths, target_masks=truth.input_masks)
    images, seen = limits.reproject(known)
    inside = truth.input_masks[:, 0] > 0.999
    assert bool(seen.all())
    assert torch.allclose(images.movedim(1, -1)[inside], truth.inputs.images.movedim(1, -1)[inside], atol=1e-3)


def test_the_table_has_a_row_for_each_question(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "limits.md"
    arguments = [str(WEIGHTS / "tiny-object.safetensors"), "--scenes", "1", "--size", "32", "--steps", "2"]
    assert limits.main([*arguments, "-o", str(output)]) == 0
    text = capsys.readouterr().out
    assert output.read_text() == text
    cells = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")][1:]
    values = {name.strip(): (targets, inputs) for name, targets, inputs in cells}
    assert len(values) == 11
    reached = {name: float(targets.split()[0]) for name, (targets, _) in values.items()}
    assert reached["true surfaces, colours of the input views that see them"] > reached["the model"] + 3
    assert reached["fitted to 24 views, all"] > reached["only pixels that show a surface"]


def test_only_models_of_objects(capsys: pytest.CaptureFixture[str]) -> None:
    assert limits.main([str(WEIGHTS / "tiny-room.safetensors")]) == 2
    assert "was trained on rooms" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--scenes", "--steps"])
def test_there_must_be_something_to_measure(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert limits.main([str(WEIGHTS / "tiny-object.safetensors"), option, "0"]) == 2
    assert f"{option} must be at least 1, not 0" in capsys.readouterr().err


def _turned(views: Views) -> Views:
    """The same cameras with each other's images."""
    return Views(views.images.roll(1, 0), views.camera_to_world, views.intrinsics)
