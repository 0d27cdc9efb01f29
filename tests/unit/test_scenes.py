"""The scene format: what is read, and every way in which a scene can be wrong."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tttlrm.errors import SceneError
from tttlrm.scenes import SCENE_FILE, read_scene

DATA = Path(__file__).parents[3] / "shared" / "data"
WIDTH, HEIGHT = 12, 8

Content = dict[str, Any]


def make_scene(root: Path, count: int = 4, width: int = WIDTH, height: int = HEIGHT) -> Content:
    """Write a valid scene of small PNGs, and return what its JSON file holds."""
    frames = []
    (root / "images").mkdir(parents=True)
    for index in range(count):
        file_path = f"images/{index:03d}.png"
        Image.new("RGB", (width, height), (10 * index, 20, 30)).save(root / file_path)
        pose = np.eye(4)
        pose[:3, 3] = (0.5 * index, 0, 2)
        intrinsics = {"fx": 10.5, "fy": 11, "cx": width / 2, "cy": height / 2}
        frames.append({"file_path": file_path, "w": width, "h": height, **intrinsics, "w2c": pose.tolist()})
    content = {"scene_name": "made", "frames": frames}
    write(root, content)
    return content


def write(root: Path, content: Any) -> None:
    (root / SCENE_FILE).write_text(json.dumps(content))


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, Content]:
    root = tmp_path / "scene"
    return root, make_scene(root)


def error_of(root: Path) -> str:
    with pytest.raises(SceneError) as caught:
        read_scene(root)
    message = str(caught.value)
    assert "\n" not in message
    assert str(root) in message
    return message


def test_reads_folder_and_file_alike(scene: tuple[Path, Content]) -> None:
    root, content = scene
    read = read_scene(root)
    assert read == read_scene(root / SCENE_FILE) == read_scene(str(root))
    assert (read.name, read.root, len(read.frames)) == ("made", root, 4)
    assert (read.target_frames, read.input_frames) == (None, {})
    frame = read.frames[2]
    assert (frame.file_path, frame.width, frame.height) == ("images/002.png", WIDTH, HEIGHT)
    assert (frame.fx, frame.fy, frame.cx, frame.cy) == (10.5, 11.0, 6.0, 4.0)
    assert read.image_path(2) == root / "images" / "002.png"
    assert np.array_equal(read.world_to_camera(), np.array([f["w2c"] for f in content["frames"]]))
    assert pickle.loads(pickle.dumps(read)) == read  # scenes go to worker processes


def test_reads_bare_list_of_frames(scene: tuple[Path, Content]) -> None:
    root, content = scene
    expected = read_scene(root)
    write(root, content["frames"])
    read = read_scene(root)
    assert read.frames == expected.frames
    assert read.name == "scene"  # the folder's


def test_reads_selections_in_their_order(scene: tuple[Path, Content]) -> None:
    root, content = scene
    write(root, content | {"target_frames": [3, 0], "input_frames_2": [2, 1], "input_frames_1": [1]})
    read = read_scene(root)
    assert read.target_frames == (3, 0)
    assert read.input_frames == {1: (1,), 2: (2, 1)}


def test_reads_other_keys_and_whole_floats(scene: tuple[Path, Content]) -> None:
    root, content = scene
    content["frames"][0] |= {"source_frame": 17, "w": float(WIDTH)}
    write(root, content | {"camera_model": "PINHOLE"})
    assert read_scene(root).frames[0].width == WIDTH


def test_reads_vertical_captures(tmp_path: Path) -> None:
    make_scene(tmp_path / "vertical", width=8, height=20)
    frame = read_scene(tmp_path / "vertical").frames[0]
    assert (frame.width, frame.height) == (8, 20)


def test_relative_folder_has_a_name(scene: tuple[Path, Content], monkeypatch: pytest.MonkeyPatch) -> None:
    root, content = scene
    write(root, content["frames"])
    monkeypatch.chdir(root)
    assert read_scene(".").name == "scene"


def test_scene_folder_may_be_a_link(scene: tuple[Path, Content], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(scene[0])
    assert len(read_scene(tmp_path / "link").frames) == 4


def test_links_inside_the_folder_are_followed(scene: tuple[Path, Content]) -> None:
    root, _ = scene
    os.rename(root / "images", root / "stored")
    (root / "images").symlink_to("stored")
    assert len(read_scene(root).frames) == 4


def test_missing_scene(tmp_path: Path) -> None:
    assert "no such scene" in error_of(tmp_path / "nowhere")
    (tmp_path / "photo.jpg").write_bytes(b"")
    said = error_of(tmp_path)
    assert f"no {SCENE_FILE} in this folder; `tttlrm convert` makes one" in said and "COLMAP or nerfstudio" in said
    assert "cannot be opened" in error_of(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1, 2,]", b"\xff\xfe\x00", b"[" * 100_000, b'{"frames": [' + b"9" * 5000 + b"]}"]
)
def test_wrong_json(scene: tuple[Path, Content], text: bytes) -> None:
    root, _ = scene
    (root / SCENE_FILE).write_bytes(text)
    assert "is not valid JSON" in error_of(root)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (3, "list of frames"),
        ("frames", "list of frames"),
        (None, "list of frames"),
        ({}, "list of frames"),
        ({"frames": {"0": {}}}, "list of frames"),
        ({"frames": []}, "has no frames"),
        ([], "has no frames"),
        (["images/000.png"], "frame 0: must be an object, not str"),
        ([{"file_path": "a.png", "w": 1}], "frame 0: lacks h, fx, fy, cx, cy, w2c"),
    ],
)
def test_wrong_structure(scene: tuple[Path, Content], content: Any, reason: str) -> None:
    root, _ = scene
    write(root, content)
    assert reason in error_of(root)


POSE = np.eye(4).tolist()


def pose_with(row: int, column: int, value: Any) -> list[list[Any]]:
    pose = copy.deepcopy(POSE)
    pose[row][column] = value
    return pose


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("fx", 0, "focal length fx must be positive, not 0"),
        ("fy", -3.5, "focal length fy must be positive, not -3.5"),
        ("fx", float("nan"), "fx must be finite, not nan"),
        ("fy", float("inf"), "fy must be finite, not inf"),
        ("fx", 10**400, "fx must be finite, not inf"),
        ("fx", 1e-320, "focal length fx must be at least 0.001 pixels"),
        ("fy", 1e300, "fy must not be larger than 1e+09 in size, but is 1e+300"),
        ("fx", "10", "fx must be a number, not '10'"),
        ("fx", None, "fx must be a number, not None"),
        ("fx", True, "fx must be a number, not True"),
        ("cx", float("nan"), "cx must be finite, not nan"),
        ("cy", float("-inf"), "cy must be finite, not -inf"),
        ("cy", [4], "cy must be a number"),
        ("w", 0, "w must be a positive whole number"),
        ("h", -8, "h must be a positive whole number"),
        ("w", 12.5, "w must be a positive whole number of pixels, not 12.5"),
        ("h", "8", "h must be a number, not '8'"),
        ("w", 10**9, "larger than the limit"),
        ("w2c", None, "4 rows of 4"),
        ("w2c", POSE[:3], "4 rows of 4"),
        ("w2c", [row[:3] for row in POSE], "4 rows of 4"),
        ("w2c", [1.0] * 16, "4 rows of 4"),
        ("w2c", pose_with(1, 3, "x"), "each number of w2c must be a number, not 'x'"),
        ("w2c", pose_with(1, 3, float("nan")), "each number of w2c must be finite, not nan"),
        ("w2c", pose_with(0, 3, float("inf")), "each number of w2c must be finite, not inf"),
        ("w2c", pose_with(0, 3, -1e300), "each number of w2c must not be larger than 1e+09 in size"),
        ("w2c", pose_with(3, 0, 0.5), "bottom row of w2c must be 0 0 0 1, not 0.5 0 0 1"),
        ("w2c", pose_with(3, 3, 2.0), "bottom row of w2c"),
        ("w2c", pose_with(2, 2, 0.0), "w2c is singular"),
        ("w2c", pose_with(0, 0, 1.01), "w2c is not rigid"),
        ("w2c", pose_with(0, 1, 0.2), "w2c is not rigid"),
        ("w2c", pose_with(0, 0, 1e8), "w2c is not rigid"),
        ("w2c", pose_with(1, 1, -1.0), "w2c mirrors space"),
        ("file_path", "", "file_path must be a non-empty string"),
        ("file_path", 7, "file_path must be a non-empty string, not 7"),
        ("file_path", "images/nothing.png", "image is missing"),
        ("file_path", "images", "image is missing"),
        ("file_path", "images/\0.png", "not a usable path"),
        ("file_path", "images/\ud800.png", "not a usable path"),
        ("file_path", "x" * 300, "not a usable path"),
        ("file_path", "/etc/hostname", "must be relative and stay inside"),
        ("file_path", "../scene/images/002.png", "must be relative and stay inside"),
        ("file_path", "images/../images/002.png", "must be relative and stay inside"),
        ("file_path", "images/001.png", "duplicate frame, the same image file as frame 1"),
        ("file_path", "./images//001.png", "duplicate frame, the same image file as frame 1"),
    ],
)
def test_bad_frame_is_named(scene: tuple[Path, Content], key: str, value: Any, reason: str) -> None:
    root, content = scene
    content["frames"][2][key] = value
    write(root, content)
    message = error_of(root)
    assert reason in message
    assert "frame 2" in message
    if key != "file_path":
        assert "images/002.png" in message


def test_poses_written_with_few_decimals_are_rigid_enough(scene: tuple[Path, Content]) -> None:
    root, content = scene
    c, s = round(float(np.cos(0.3)), 4), round(float(np.sin(0.3)), 4)
    content["frames"][1]["w2c"] = [[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    write(root, content)
    assert len(read_scene(root).frames) == 4


def replace_by_link(image: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    os.replace(image, outside)
    image.symlink_to(outside)


def replace_by_loop(image: Path, _: Path) -> None:
    image.unlink()
    image.symlink_to(image.name)


def replace_by_dangling_link(image: Path, _: Path) -> None:
    image.unlink()
    image.symlink_to("gone.png")


def replace_by_second_link(image: Path, _: Path) -> None:
    image.unlink()
    image.symlink_to("001.png")


def replace_by_pipe(image: Path, _: Path) -> None:
    image.unlink()
    os.mkfifo(image)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (replace_by_link, "leads out of the scene's folder through a link"),
        (replace_by_loop, "frame 2"),
        (replace_by_dangling_link, "image is missing"),
        (replace_by_second_link, "duplicate frame, the same image file as frame 1"),
        (replace_by_pipe, "image is missing"),
        (lambda image, _: image.unlink(), "image is missing"),
        (lambda image, _: image.write_bytes(b""), "not a readable PNG, JPEG or WebP image"),
        (lambda image, _: image.write_bytes(b"not an image"), "not a readable PNG, JPEG or WebP image"),
        (lambda image, _: image.write_bytes(image.read_bytes()[:20]), "not a readable PNG, JPEG or WebP image"),
        (lambda image, _: Image.new("RGB", (WIDTH, HEIGHT)).save(image, "BMP"), "not a readable PNG"),
        (lambda image, _: Image.new("RGB", (HEIGHT, WIDTH)).save(image), "image is 8x12 pixels, but the scene file"),
        (lambda image, _: Image.new("I;16", (WIDTH, HEIGHT)).save(image), "image has 16 bits a channel"),
        (lambda image, _: Image.new("CMYK", (WIDTH, HEIGHT)).save(image, "JPEG"), "image has colour mode CMYK"),
    ],
)
def test_bad_image_is_named(
    scene: tuple[Path, Content], tmp_path: Path, damage: Callable[[Path, Path], None], reason: str
) -> None:
    root, _ = scene
    damage(root / "images" / "002.png", tmp_path)
    message = error_of(root)
    assert reason in message
    assert "frame 2" in message
    assert "images/002.png" in message


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        ({"target_frames": [0, 4]}, "target_frames: frame 4 does not exist, there are 4 frames"),
        ({"target_frames": [-1]}, "target_frames: frame -1 does not exist"),
        ({"target_frames": [1, 2, 1]}, "target_frames: frame 1 is listed twice"),
        ({"target_frames": None}, "target_frames: must be a list of whole numbers"),
        ({"target_frames": [0.0]}, "target_frames: must be a list of whole numbers"),
        ({"target_frames": [True]}, "target_frames: must be a list of whole numbers"),
        ({"input_frames_2": [0, 0]}, "input_frames_2: frame 0 is listed twice"),
        ({"input_frames_2": [0, 9]}, "input_frames_2: frame 9 does not exist"),
        ({"input_frames_2": [0, 1, 2]}, "input_frames_2: lists 3 frames, not 2"),
        ({"input_frames_2": {"0": 1}}, "input_frames_2: must be a list of whole numbers"),
        ({"input_frames_two": [0, 1]}, "input_frames_two: such a key must be input_frames_N"),
        ({"input_frames_02": [0, 1]}, "input_frames_02: such a key must be input_frames_N"),
        ({"input_frames": [0, 1]}, "input_frames: such a key must be input_frames_N"),
        ({"target_frames": [1], "input_frames_2": [0, 1]}, "input_frames_2: frame 1 is in target_frames as well"),
        ({"scene_name": ""}, "scene_name must be a plain name"),
        ({"scene_name": ".."}, "scene_name must be a plain name"),
        ({"scene_name": "a/b"}, "scene_name must be a plain name"),
        ({"scene_name": "a\nb"}, "scene_name must be a plain name"),
        ({"scene_name": 3}, "scene_name must be a plain name"),
    ],
)
def test_bad_selection_is_named(scene: tuple[Path, Content], selection: Content, reason: str) -> None:
    root, content = scene
    write(root, content | selection)
    assert reason in error_of(root)


@pytest.mark.parametrize(("name", "count", "size"), [("mydesk", 164, (960, 540)), ("gso_character", 64, (512, 512))])
def test_real_captures_are_read(name: str, count: int, size: tuple[int, int]) -> None:
    if not (DATA / name).is_dir():
        pytest.skip("the real captures are not on this machine")
    scene = read_scene(DATA / name)
    assert (scene.name, len(scene.frames)) == (name, count)
    assert {(frame.width, frame.height) for frame in scene.frames} == {size}
