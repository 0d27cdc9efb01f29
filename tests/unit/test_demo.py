"""``tttlrm demo``: a scene that can be read, there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tttlrm.bundled import looks_like_object
from tttlrm.cli import main
from tttlrm.scenes import load_views, read_scene, select_views
from tttlrm.scenes.demo import Demo
from tttlrm.scenes.procedural import ProceduralSpec, make_batch
from tttlrm.scenes.views import scene_cameras


@pytest.mark.parametrize("kind", ["object", "room"])
def test_it_writes_a_scene_of_the_test_split(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "demo"
    assert main(["demo", str(folder), "--kind", kind, "--views", "10", "--size", "16x24", "--seed", "3"]) == 0
    said = capsys.readouterr()
    assert said.out == f"wrote {folder / 'opencv_cameras.json'}\n"
    assert "10 views of 16x24 pixels (height x width): about " in said.err and "10/10" in said.err
    scene = read_scene(folder)
    assert scene.name == f"{kind}_test_3_0" and {(f.height, f.width) for f in scene.frames} == {(16, 24)}
    assert select_views(scene, 8).targets == (0, 8)
    assert looks_like_object(scene_cameras(scene, range(10), (16, 24)).camera_to_world) == (kind == "object")
    spec = ProceduralSpec("object" if kind == "object" else "room", seed=3, split="test")
    expected = make_batch(spec, [0], 10, (16, 24)).views.images[0]
    torch.testing.assert_close(load_views(scene, range(10)).images, expected, atol=0.6 / 255, rtol=0)
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]


def test_the_defaults_suit_the_bundled_models() -> None:
    demo = Demo()
    assert (demo.kind, demo.views, demo.size, demo.seed) == ("object", 24, (128, 128), 0)
    assert 2 < demo.core_seconds < 10


def test_a_folder_that_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("demo", "file", "link"):
        assert main(["demo", str(tmp_path / name), "--size", "8x8"]) == 2
        said = capsys.readouterr().err
        assert said == f"tttlrm: error: {tmp_path / name}: exists already; choose another folder for the scene\n"
    assert not list((tmp_path / "demo").iterdir()) and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--views", "1"], "views must be from 2 to 1000, not 1"),
        (["--views", "2000"], "views must be from 2 to 1000, not 2000"),
        (["--seed", "-1"], "seed must be from 0 to 2^63 - 1, not -1"),
        (["--size", "99999x99999"], "size 99999x99999: images must have from 1 to 67108864 pixels"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", str(tmp_path / "new" / "demo"), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tttlrm.scenes.procedural.export.render_scenes", interrupted)
    assert main(["demo", str(tmp_path / "new" / "demo")]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
