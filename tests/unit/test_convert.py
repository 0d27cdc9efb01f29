"""Conversions of captures: equal to reference conversions, the same from text and binary, and clear about bad input."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tttlrm.cli import main
from tttlrm.errors import SceneError, UserError
from tttlrm.scenes import read_scene
from tttlrm.scenes.convert import convert, read_colmap, read_dl3dv, read_nerfstudio
from tttlrm.scenes.convert.capture import Capture, SourceCamera, SourceFrame
from tttlrm.scenes.convert.undistortion import undistortion

DATA = Path(__file__).parents[1] / "data" / "convert"
SIZE = (64, 48)
IDENTITY = tuple(tuple(float(i == j) for j in range(4)) for i in range(4))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"), dtype=np.int64)


@pytest.mark.parametrize(("kind", "read"), [("dl3dv", read_dl3dv), ("colmap", read_colmap)])
def test_equal_to_the_reference(kind: str, read: Callable[[Path], Capture], tmp_path: Path) -> None:
    done = convert(read(DATA / kind / "input"), tmp_path / "scene", name="input", jobs=1)
    ours = json.loads(done.scene_file.read_text())
    expected = json.loads((DATA / kind / "expected" / "opencv_cameras.json").read_text())
    assert ours["scene_name"] == expected["scene_name"]
    compared = 0
    for one, other in zip(ours["frames"], expected["frames"], strict=True):
        assert one["file_path"] == other["file_path"] and (one["w"], one["h"]) == (other["w"], other["h"])
        np.testing.assert_allclose(one["w2c"], other["w2c"], atol=1e-6)
        for key in ("fx", "fy", "cx", "cy"):
            assert one[key] == pytest.approx(other[key], abs=1e-6)
        reference = DATA / kind / "expected" / other["file_path"]
        if reference.is_file():
            compared += 1
            assert np.abs(pixels(tmp_path / "scene" / one["file_path"]) - pixels(reference)).max() <= 1
    assert compared == done.undistorted == 3
    assert not list((tmp_path / "scene").glob(".*"))


def write_binary(model: Path) -> None:
    """COLMAP's text files of a folder as binary ones, with some points in each image."""
    numbers = {"PINHOLE": 1, "SIMPLE_RADIAL": 2, "OPENCV": 4}
    lines = [line.split() for line in (model / "cameras.txt").read_text().splitlines() if not line.startswith("#")]
    data = struct.pack("<Q", len(lines))
    for key, name, width, height, *values in lines:
        data += struct.pack("<iiQQ", int(key), numbers[name], int(width), int(height))
        data += struct.pack(f"<{len(values)}d", *map(float, values))
    (model / "cameras.bin").write_bytes(data)
    lines = [line.split() for line in (model / "images.txt").read_text().splitlines() if not line.startswith("#")]
    data = struct.pack("<Q", len(lines) // 2)
    for at, (key, *values, camera, name) in enumerate(lines[::2]):
        data += struct.pack("<i7di", int(key), *map(float, values), int(camera)) + name.encode() + b"\0"
        data += struct.pack("<Q", at) + struct.pack("<ddq", 1.0, 2.0, -1) * at
    (model / "images.bin").write_bytes(data)
    for name in ("cameras.txt", "images.txt"):
        (model / name).unlink()


def test_binary_models_are_read_as_text_ones_are(tmp_path: Path) -> None:
    shutil.copytree(DATA / "colmap" / "input", tmp_path / "binary")
    write_binary(tmp_path / "binary" / "sparse" / "0")
    text, binary = read_colmap(DATA / "colmap" / "input"), read_colmap(tmp_path / "binary")
    assert [(f.name, f.camera, f.world_to_camera) for f in text.frames] == [
        (f.name, f.camera, f.world_to_camera) for f in binary.frames
    ]
    for name in ("cameras.bin", "images.bin"):
        file = tmp_path / "binary" / "sparse" / "0" / name
        whole = file.read_bytes()
        for size in (0, 7, 30, len(whole) - 1):
            file.write_bytes(whole[:size])
            with pytest.raises(SceneError, match=f"{name}: is truncated or not a COLMAP model"):
                read_colmap(tmp_path / "binary")
        file.write_bytes(b"\xff" * 200)  # claims more images than atoms
        with pytest.raises(SceneError, match=name):
            read_colmap(tmp_path / "binary")
        file.write_bytes(whole)


def write_colmap(root: Path, cameras: str, images: dict[str, int], size: tuple[int, int] = SIZE) -> Path:
    """A project whose images are noise, with the identity pose."""
    (root / "sparse" / "0").mkdir(parents=True)
    (root / "sparse" / "0" / "cameras.txt").write_text(cameras)
    lines = [f"{at} 1 0 0 0 0 0 {at} {camera} {name}\n\n" for at, (name, camera) in enumerate(images.items())]
    (root / "sparse" / "0" / "images.txt").write_text("# images\n" + "".join(lines))
    for at, name in enumerate(images):
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(at).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 3)).save(path)
    return root


MODELS = {
    "SIMPLE_PINHOLE 64 48 50 32 24": ("perspective", (50, 50), ()),
    "PINHOLE 64 48 50 51 32 24": ("perspective", (50, 51), ()),
    "SIMPLE_RADIAL 64 48 50 32 24 0.1": ("perspective", (50, 50), (0.1, 0, 0, 0)),
    "RADIAL 64 48 50 32 24 0.1 -0.02": ("perspective", (50, 50), (0.1, -0.02, 0, 0)),
    "OPENCV 64 48 50 51 32 24 0.1 -0.02 0.001 0.002": ("perspective", (50, 51), (0.1, -0.02, 0.001, 0.002)),
    "FULL_OPENCV 64 48 50 51 32 24 0.1 -0.02 0.001 0.002 0.01 0.02 0.03 0.04": (
        "perspective",
        (50, 51),
        (0.1, -0.02, 0.001, 0.002, 0.01, 0.02, 0.03, 0.04),
    ),
    "OPENCV_FISHEYE 64 48 50 51 32 24 0.1 -0.02 0.003 0.001": ("fisheye", (50, 51), (0.1, -0.02, 0.003, 0.001)),
    "SIMPLE_RADIAL_FISHEYE 64 48 50 32 24 0.1": ("fisheye", (50, 50), (0.1, 0, 0, 0)),
    "RADIAL_FISHEYE 64 48 50 32 24 0.1 -0.02": ("fisheye", (50, 50), (0.1, -0.02, 0, 0)),
}


@pytest.mark.parametrize("line", MODELS)
def test_camera_models_mean_what_opencv_means(line: str, tmp_path: Path) -> None:
    """A point seen in the undistorted image is where OpenCV's projection puts it in the original."""
    lens, focal, coefficients = MODELS[line]
    capture = read_colmap(write_colmap(tmp_path, f"1 {line}\n", {"a.png": 1}))
    camera = capture.frames[0].camera
    assert (camera.lens, (camera.fx, camera.fy), camera.distortion) == (lens, focal, coefficients)
    result = undistortion(camera, "here")
    if not coefficients:
        assert result.maps is None and result.camera == camera
        return
    rays = np.array([[[-0.2, -0.1, 1.0], [0.0, 0.0, 1.0], [0.25, 0.15, 1.0]]])
    matrix = np.array([[focal[0], 0, 32.0], [0, focal[1], 24.0], [0, 0, 1.0]])
    zero = np.zeros(3)
    if lens == "fisheye":
        truth, _ = cv2.fisheye.projectPoints(rays, zero, zero, matrix, np.array(coefficients, dtype=np.float64))
    else:
        truth, _ = cv2.projectPoints(rays, zero, zero, matrix, np.array(coefficients, dtype=np.float64))
    pinhole = result.camera
    x = rays[0, :, 0] * pinhole.fx + pinhole.cx
    y = rays[0, :, 1] * pinhole.fy + pinhole.cy
    columns = np.broadcast_to(np.arange(64, dtype=np.float32), (48, 64))
    rows = np.broadcast_to(np.arange(48, dtype=np.float32)[:, None], (48, 64))
    assert result.maps is not None
    seen = [cv2.remap(np.ascontiguousarray(grid), *result.maps, cv2.INTER_LINEAR) for grid in (columns, rows)]
    at = x.astype(np.float32)[None], y.astype(np.float32)[None]
    found = np.stack([cv2.remap(grid, *at, cv2.INTER_LINEAR)[0] for grid in seen], axis=-1)
    np.testing.assert_allclose(found, truth.reshape(-1, 2), atol=0.1)


def test_the_maps_of_a_camera_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = cv2.initUndistortRectifyMap
    monkeypatch.setattr(cv2, "initUndistortRectifyMap", lambda *a: made.append(a) or original(*a))
    camera = SourceCamera("perspective", *SIZE, 41.5, 50, 32, 24, (0.1, 0, 0, 0))
    one, other = undistortion(camera, "frame 1"), undistortion(camera, "frame 2")
    assert one is other and len(made) == 1


def test_subfolders_several_cameras_and_vertical_images(tmp_path: Path) -> None:
    cameras = "1 PINHOLE 48 64 50 50 24 32\n2 SIMPLE_RADIAL 96 128 100 48 64 0.05\n"
    source = write_colmap(tmp_path / "src", cameras, {"right/0.jpg": 2, "left/0.png": 1}, size=(48, 64))
    assert convert(read_colmap(source), tmp_path / "scene", jobs=1).undistorted == 1
    scene = read_scene(tmp_path / "scene")
    assert [frame.file_path for frame in scene.frames] == ["images/left/0.png", "images_undistort/right/0.png"]
    assert all((frame.width, frame.height) == (48, 64) for frame in scene.frames)
    assert scene.name == "scene"


def test_nerfstudio_frames_may_have_cameras_of_their_own(tmp_path: Path) -> None:
    write_colmap(tmp_path, "1 PINHOLE 64 48 50 50 32 24\n", {"a.png": 1, "sub/b.png": 1})
    frame = {"transform_matrix": np.eye(4).tolist()}
    content: dict[str, Any] = {"fl_x": 50, "cx": 32, "cy": 24, "w": 64, "h": 48, "camera_model": "PINHOLE"}
    content["frames"] = [{**frame, "file_path": "images/a.png"}, {**frame, "file_path": "images/sub/b.png", "fl_x": 40}]
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    capture = read_nerfstudio(tmp_path)
    assert [(f.name, f.camera.fx, f.camera.fy) for f in capture.frames] == [("a.png", 50, 50), ("sub/b.png", 40, 40)]


def test_the_first_bad_image_ends_a_conversion(tmp_path: Path) -> None:
    source = write_colmap(tmp_path / "src", "1 SIMPLE_RADIAL 64 48 50 32 24 0.1\n", {f"{i}.png": 1 for i in range(6)})
    broken = source / "images" / "5.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SceneError, match=r"frame 5 \('5.png'\): image is truncated or damaged"):
        convert(read_colmap(source), tmp_path / "scene", jobs=1)
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "scene" / "images_undistort").glob("*.png")}
    assert set(made) >= {f"{i}.png" for i in range(4)}
    assert not (tmp_path / "scene" / "opencv_cameras.json").exists()

    # Mended, it is another source: nothing that was made of the old one may be mixed with it.
    broken.write_bytes(whole)
    with pytest.raises(UserError, match="holds the beginning of another conversion"):
        convert(read_colmap(source), tmp_path / "scene", jobs=1)
    assert convert(read_colmap(source), tmp_path / "scene", jobs=1, overwrite=True).kept == 0


def test_a_killed_conversion_keeps_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tttlrm.scenes.convert import conversion

    source = write_colmap(tmp_path / "src", "1 SIMPLE_RADIAL 64 48 50 32 24 0.1\n", {f"{i}.png": 1 for i in range(6)})
    run = conversion._run

    def stop_early(todo: list[Any], *arguments: Any) -> None:
        run(todo[:4], *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "_run", stop_early)
    with pytest.raises(KeyboardInterrupt):
        convert(read_colmap(source), tmp_path / "scene", jobs=1)
    assert not (tmp_path / "scene" / "opencv_cameras.json").exists()
    monkeypatch.setattr(conversion, "_run", run)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "scene" / "images_undistort").iterdir()}
    time.sleep(0.02)
    done = convert(read_colmap(source), tmp_path / "scene", jobs=1)
    assert (done.frames, done.kept) == (6, 4)
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert len(read_scene(tmp_path / "scene").frames) == 6
    with pytest.raises(UserError, match="holds a finished scene; give another folder, or --overwrite"):
        convert(read_colmap(source), tmp_path / "scene", jobs=1)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    source = write_colmap(tmp_path / "src", "1 PINHOLE 64 48 50 50 32 24\n", {"a.png": 1})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="is not empty, and what it holds was not made by a conversion"):
        convert(read_colmap(source), tmp_path / "mine", jobs=1, overwrite=True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


GOOD = "1 OPENCV 64 48 50 51 32 24 0.1 -0.02 0.001 0.002\n"
BAD_CAMERAS = {
    "1 FOV 64 48 50 51 32 24 0.5\n": "camera model FOV cannot be undistorted here; these can: SIMPLE_PINHOLE, ",
    "1 MAGIC 64 48 50\n": "camera model MAGIC cannot be undistorted",
    "1 OPENCV 64 48 50 51 32 24\n": "camera model OPENCV has 8 parameters, not 4",
    "1 PINHOLE 64 48 50 nan 32 24\n": "must be a finite number",
    "1 PINHOLE 64 48 50 -3 32 24\n": "the focal length must be positive, not -3",
    "1 PINHOLE 0 48 50 50 32 24\n": "the image size must be positive whole numbers",
    "camera\n": "line 1: is not a camera",
    "2 PINHOLE 64 48 50 50 32 24\n": "its camera 1 is not in the model",
    "1 PINHOLE 48 64 50 50 32 24\n": "image is 64x48 pixels, and its camera is of 48x64, which is not the same shape",
    "1 SIMPLE_RADIAL 64 48 5 32 24 -40\n": "leaves no pixels",
}


@pytest.mark.parametrize("cameras", BAD_CAMERAS)
def test_bad_cameras_are_named(cameras: str, tmp_path: Path) -> None:
    source = write_colmap(tmp_path / "src", cameras, {"a.png": 1})
    with pytest.raises(SceneError, match=BAD_CAMERAS[cameras]) as caught:
        convert(read_colmap(source), tmp_path / "scene", jobs=1)
    assert str(source) in str(caught.value)
    assert not (tmp_path / "scene" / "opencv_cameras.json").exists()


BAD_IMAGES = {
    "1 0 0 0 0 0 0 0 1 a.png\n": "its rotation is not a quaternion",
    "1 1 0 0 0 0 0 1e300 1 a.png\n": "the pose must be finite numbers of a usable size",
    "1 1 0 0 0 0 0 0 1 gone.png\n": "the image 'gone.png' is missing from",
    "1 1 0 0 0 0 0 0 1 ../../etc/passwd\n": "is not inside",
    "1 1 0 0 0 0 0 0 1 text.png\n": "not a readable PNG, JPEG or WebP image",
    "1 1 0 0 0\n": "line 1: is not an image",
    "# nothing\n": "has no registered images",
}


@pytest.mark.parametrize("images", BAD_IMAGES)
def test_bad_images_are_named(images: str, tmp_path: Path) -> None:
    source = write_colmap(tmp_path / "src", GOOD, {"a.png": 1})
    (source / "images" / "text.png").write_text("no image")
    (source / "sparse" / "0" / "images.txt").write_text(images)
    with pytest.raises(SceneError, match=BAD_IMAGES[images]):
        convert(read_colmap(source), tmp_path / "scene", jobs=1)
    assert not (tmp_path / "scene").exists()


BAD_TRANSFORMS: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"camera_model": "EQUIRECTANGULAR"}, "camera model 'EQUIRECTANGULAR' is not one that is read"),
    "focal": ({"fl_x": "50"}, "fl_x must be a number, not '50'"),
    "matrix": ({"frames": [{"file_path": "images/a.png"}]}, "transform_matrix must be 4 rows of 4"),
    "scale": (
        {"frames": [{"file_path": "images/a.png", "transform_matrix": (2 * np.eye(4)).tolist()}]},
        "not a rotation and a translation",
    ),
    "frames": ({"frames": []}, "a list of at least one frame"),
    "outside": (
        {"frames": [{"file_path": "images/../../a.png", "transform_matrix": np.eye(4).tolist()}]},
        "is not inside",
    ),
}


@pytest.mark.parametrize("case", BAD_TRANSFORMS)
def test_bad_transforms_are_named(case: str, tmp_path: Path) -> None:
    changes, message = BAD_TRANSFORMS[case]
    write_colmap(tmp_path, GOOD, {"a.png": 1})
    content: dict[str, Any] = {"fl_x": 50, "cx": 32, "cy": 24, "w": 64, "h": 48}
    content["frames"] = [{"file_path": "images/a.png", "transform_matrix": np.eye(4).tolist()}]
    (tmp_path / "transforms.json").write_text(json.dumps({**content, **changes}))
    with pytest.raises(SceneError, match=message) as caught:
        read_nerfstudio(tmp_path)
    assert "transforms.json" in str(caught.value)


def test_two_images_for_one_place(tmp_path: Path) -> None:
    source = write_colmap(tmp_path / "src", GOOD, {"a.png": 1, "a.jpg": 1})
    convert(read_colmap(source), tmp_path / "scene", jobs=1)
    paths = [frame.file_path for frame in read_scene(tmp_path / "scene").frames]
    assert paths == ["images_undistort/a.png", "images_undistort/a.png.png"]
    camera = SourceCamera("perspective", *SIZE, 50, 50, 32, 24)
    frame = SourceFrame("a.png", source / "images" / "a.png", camera, IDENTITY)
    with pytest.raises(SceneError, match="the image comes twice"):
        convert(Capture(Path("x"), (frame, frame)), tmp_path / "twice", jobs=1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", "dl3dv", str(DATA / "dl3dv" / "input"), str(tmp_path / "scene")]
    assert main([*arguments, "--jobs", "1", "--name", "garden"]) == 0
    assert "opencv_cameras.json: 3 frames, 3 undistorted" in capsys.readouterr().out
    assert read_scene(tmp_path / "scene").name == "garden"
    assert main(arguments) == 2
    assert "holds a finished scene" in capsys.readouterr().err
    assert main([*arguments, "--jobs", "0"]) == 2
    assert main([*arguments, "--name", "a/b", "--overwrite"]) == 2
    assert "a plain one without path separators" in capsys.readouterr().err
