"""From image files to views: decoding, resizing, normalisation."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tttlrm.cameras import normalize_poses
from tttlrm.errors import SceneError, UserError
from tttlrm.scenes import Frame, Scene, ViewSplit, evaluation_size, load_split, load_views, read_scene, select_views
from tttlrm.scenes.images import check_image, read_image, resize_image

GOLDEN = Path(__file__).parents[1] / "data" / "resize.safetensors"
MYDESK = Path(__file__).parents[3] / "shared" / "data" / "mydesk"


def pose(index: int) -> tuple[tuple[float, ...], ...]:
    """World-to-camera: turned by 0.1 * index about y, and moved."""
    c, s = float(np.cos(0.1 * index)), float(np.sin(0.1 * index))
    return ((c, 0.0, s, 0.3 * index), (0.0, 1.0, 0.0, -0.1), (-s, 0.0, c, 2.0), (0.0, 0.0, 0.0, 1.0))


def make_scene(root: Path, pixels: list[np.ndarray], suffix: str = "png") -> Scene:
    """A scene of these images [H, W, C] uint8, with files on disk."""
    frames = []
    for index, image in enumerate(pixels):
        height, width = image.shape[:2]
        Image.fromarray(image).save(root / f"{index}.{suffix}")
        frames.append(Frame(f"{index}.{suffix}", width, height, 20.0, 21.0, width / 2, height / 3, pose(index)))
    return Scene("made", root, tuple(frames))


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_resize_matches_golden(tmp_path: Path) -> None:
    golden = load_file(GOLDEN)
    image = golden["image"].numpy()
    height, width = image.shape[:2]
    Image.fromarray(image).save(tmp_path / "0.png")
    fx, fy, cx, cy = golden["fxfycxcy"].double().tolist()
    scene = Scene("golden", tmp_path, (Frame("0.png", width, height, fx, fy, cx, cy, pose(0)),))
    size = (golden["out_image"].shape[0], golden["out_image"].shape[1])
    views = load_views(scene, [0], size)
    resized = (views.images[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
    assert torch.equal(resized, golden["out_image"])
    torch.testing.assert_close(views.intrinsics[0].float(), golden["out_fxfycxcy"], rtol=1e-6, atol=0)


def test_views_are_read_in_inference_mode_too(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, [noise(8, 12), noise(8, 12, seed=1)])
    with torch.inference_mode():
        views = load_views(scene, [0, 1])
        assert torch.equal(views.images + 0, load_views(scene, [0, 1]).images)


def test_views_hold_pixels_poses_and_intrinsics(tmp_path: Path) -> None:
    pixels = [noise(8, 12, seed=i) for i in range(4)]
    scene = make_scene(tmp_path, pixels)
    views = load_views(scene, [3, 1])
    assert views.images.dtype == torch.float32
    assert views.camera_to_world.dtype == views.intrinsics.dtype == torch.float64
    expected = torch.from_numpy(np.stack([pixels[3], pixels[1]])).permute(0, 3, 1, 2)
    assert torch.equal(views.images, expected.float() / 255)
    world_to_camera = torch.tensor([pose(3), pose(1)], dtype=torch.float64)
    torch.testing.assert_close(views.cameras.world_to_camera, world_to_camera, rtol=0, atol=1e-12)
    assert views.intrinsics.tolist() == [[20.0, 21.0, 6.0, 8 / 3]] * 2


def test_vertical_capture_is_resized_by_axis(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, [noise(30, 10)])
    views = load_views(scene, [0], evaluation_size(30, 10))
    assert views.images.shape == (1, 3, 24, 8)
    torch.testing.assert_close(
        views.intrinsics[0], torch.tensor([20 * 0.8, 21 * 0.8, 4.0, 8.0], dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_flat_image_stays_flat(tmp_path: Path) -> None:
    flat = np.full((20, 30, 3), (0, 77, 255), dtype=np.uint8)
    images = load_views(make_scene(tmp_path, [flat]), [0], (16, 24)).images
    assert torch.equal(images[0, :, 3, 5], torch.tensor([0, 77, 255]).float() / 255)
    assert images.flatten(2).std(-1).max() == 0


def test_transparency_is_composited_over_white(tmp_path: Path) -> None:
    rgba = noise(8, 12, channels=4)
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 255
    image = load_views(make_scene(tmp_path, [rgba]), [0]).images[0]
    colors, alpha = torch.from_numpy(rgba[..., :3]).double() / 255, torch.from_numpy(rgba[..., 3:]).double() / 255
    expected = (colors * alpha + 1 - alpha).permute(2, 0, 1)
    assert (image.double() - expected).abs().max() < 1.01 / 255  # 8-bit rounding
    assert torch.equal(image[:, 0, 0], torch.ones(3))
    assert torch.equal(image[:, 0, 1], torch.from_numpy(rgba[0, 1, :3]).float() / 255)


def test_transparent_colour_of_palette_and_rgb_becomes_white(tmp_path: Path) -> None:
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    Image.new("RGB", (6, 4), (0, 255, 0)).save(tmp_path / "rgb.png", transparency=(0, 255, 0))
    for name in ("palette.png", "rgb.png"):
        assert torch.equal(read_image(tmp_path / name, 6, 4, name), torch.ones(3, 4, 6))


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P"])
def test_greyscale_and_palette_are_converted(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(noise(8, 12, channels=1)[..., 0]).convert(mode)
    image.save(tmp_path / "0.png")
    expected = torch.from_numpy(np.array(image.convert("L"), dtype=np.uint8)).float() / 255
    assert torch.equal(read_image(tmp_path / "0.png", 12, 8, "0"), expected.expand(3, 8, 12))


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_other_formats_are_read(tmp_path: Path, suffix: str) -> None:
    flat = np.full((16, 24, 3), (200, 77, 20), dtype=np.uint8)
    images = load_views(make_scene(tmp_path, [flat], suffix), [0]).images
    assert (images - torch.tensor([200, 77, 20]).view(3, 1, 1) / 255).abs().max() < 4 / 255


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    image = Image.fromarray(noise(8, 16))
    image.save(tmp_path / "0.jpg", exif=exif, quality=95)
    image.save(tmp_path / "plain.jpg", quality=95)
    rotated = read_image(tmp_path / "0.jpg", 16, 8, "0")
    assert torch.equal(rotated, read_image(tmp_path / "plain.jpg", 16, 8, "plain"))
    with pytest.raises(SceneError, match="image is 16x8 pixels, but the scene file states 8x16"):
        check_image(tmp_path / "0.jpg", 8, 16, "0")


def png(width: int, height: int, bits: int, color_type: int, data: bytes) -> bytes:
    """A PNG file made by hand, for what Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_images_are_refused(tmp_path: Path, color_type: int, channels: int) -> None:
    data = (b"\0" + b"\x12\x34" * channels * 5) * 3
    (tmp_path / "deep.png").write_bytes(png(5, 3, 16, color_type, data))
    with pytest.raises(SceneError, match="deep: image has 16 bits a channel"):
        check_image(tmp_path / "deep.png", 5, 3, "deep")
    (tmp_path / "shallow.png").write_bytes(png(5, 3, 8, color_type, (b"\0" + b"\x12" * channels * 5) * 3))
    check_image(tmp_path / "shallow.png", 5, 3, "shallow")


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_decompression_bombs_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 2, b""))
    with pytest.raises(SceneError, match="bomb: image of .* is larger than the limit"):
        check_image(tmp_path / "bomb.png", side, side, "bomb")


def test_image_larger_than_stated_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(100_000, 100_000, 8, 2, b""))
    with pytest.raises(SceneError, match="bomb: "):
        check_image(tmp_path / "bomb.png", 8, 8, "bomb")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_damage_behind_the_header_is_found_on_loading(tmp_path: Path, suffix: str) -> None:
    scene = make_scene(tmp_path, [noise(40, 60, seed=i) for i in range(4)], suffix)
    for index in (1, 2):
        file = tmp_path / f"{index}.{suffix}"
        file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(SceneError, match=rf"{index - 1}\.{suffix} \(frame 1\)"):  # always the first of both
        load_views(scene, range(4))
    assert load_views(scene, [0, 3]).num_views == 2


def test_corrupt_bytes_are_found_on_loading(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, [noise(40, 60)])
    content = bytearray((tmp_path / "0.png").read_bytes())
    content[200:260] = b"\xff" * 60
    (tmp_path / "0.png").write_bytes(content)
    with pytest.raises(SceneError, match="truncated or damaged"):
        load_views(scene, [0])


def test_image_that_vanished_or_changed_after_reading(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, [noise(8, 12), noise(8, 12)])
    (tmp_path / "0.png").unlink()
    Image.fromarray(noise(8, 11)).save(tmp_path / "1.png")
    with pytest.raises(SceneError, match=r"0\.png \(frame 0\): image is missing"):
        load_views(scene, [0])
    with pytest.raises(SceneError, match=r"1\.png \(frame 1\): image is 11x8 pixels"):
        load_views(scene, [1])


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, [noise(8, 12), noise(12, 8)])
    with pytest.raises(SceneError, match=r"1\.png \(frame 1\): image is 8x12 pixels, but that of frame 0 is 12x8"):
        load_views(scene, [0, 1])
    with pytest.raises(SceneError, match="give a size"):
        load_split(scene, ViewSplit((0,), (1,), "test"))
    assert load_views(scene, [0, 1], (8, 8)).images.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("index", [2, -1])
def test_frame_that_does_not_exist(tmp_path: Path, index: int) -> None:
    scene = make_scene(tmp_path, [noise(8, 12), noise(8, 12)])
    with pytest.raises(SceneError, match=f"frame {index} does not exist, there are 2 frames"):
        load_views(scene, [0, index])


@pytest.mark.parametrize("size", [(0, 8), (8, -1)])
def test_impossible_size(tmp_path: Path, size: tuple[int, int]) -> None:
    scene = make_scene(tmp_path, [noise(8, 12)])
    with pytest.raises(SceneError, match="cannot resize"):
        load_views(scene, [0], size)


def test_evaluation_size() -> None:
    assert evaluation_size(540, 960) == (536, 960)
    assert evaluation_size(960, 540) == (960, 536)
    assert evaluation_size(64, 64) == (64, 64)
    assert evaluation_size(100, 70, patch=16) == (96, 64)
    with pytest.raises(UserError, match="smaller than a patch"):
        evaluation_size(7, 960)


def test_image_of_the_right_size_is_not_resampled() -> None:
    image = Image.fromarray(noise(8, 12))
    assert resize_image(image, (8, 12)) is image


@pytest.mark.parametrize("reference", ["mean", "first"])
def test_split_is_normalised_together(tmp_path: Path, reference: Any) -> None:
    scene = make_scene(tmp_path, [noise(16, 24, seed=i) for i in range(6)])
    split = ViewSplit((4, 1, 3), (0, 5), "test")
    calls: list[tuple[int, int]] = []
    views = load_split(scene, split, (8, 16), reference, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 5) for i in range(1, 6)]

    raw = load_views(scene, [4, 1, 3, 0, 5], (8, 16))
    expected = normalize_poses(raw.camera_to_world, reference)
    assert views.normalization.scale == expected.scale
    poses = torch.cat([views.inputs.camera_to_world, views.targets.camera_to_world])
    assert poses.dtype == views.inputs.intrinsics.dtype == torch.float32
    assert torch.equal(poses, expected.apply(raw.camera_to_world).float())
    assert torch.equal(torch.cat([views.inputs.images, views.targets.images]), raw.images)
    assert float(poses[:, :3, 3].abs().max()) == 1
    if reference == "first":
        torch.testing.assert_close(views.inputs.camera_to_world[0], torch.eye(4), rtol=0, atol=1e-6)


def test_split_without_targets(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, [noise(8, 12), noise(8, 12)])
    views = load_split(scene, ViewSplit((0, 1), (), "test"))
    assert views.targets.images.shape == (0, 3, 8, 12)
    assert views.targets.camera_to_world.shape == (0, 4, 4)


def test_split_of_cameras_in_one_place_names_the_scene(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, [noise(8, 12)])
    with pytest.raises(SceneError, match="opencv_cameras.json: cannot normalise poses"):
        load_split(scene, ViewSplit((0,), (), "test"), reference="first")


def test_real_capture_loads_at_the_evaluation_size() -> None:
    if not MYDESK.is_dir():
        pytest.skip("the real capture is not on this machine")
    scene = read_scene(MYDESK)
    split = select_views(scene, 4)
    views = load_split(scene, ViewSplit(split.inputs, split.targets[:2], split.source), evaluation_size(540, 960))
    assert views.inputs.images.shape == (4, 3, 536, 960)
    assert views.targets.images.shape == (2, 3, 536, 960)
    frame = scene.frames[split.inputs[0]]
    expected = torch.tensor([frame.fx, frame.fy * 536 / 540, frame.cx, frame.cy * 536 / 540])
    torch.testing.assert_close(views.inputs.intrinsics[0], expected)


def test_import_needs_no_optional_package() -> None:
    code = (
        "import sys, tttlrm.scenes; "
        "print(sorted({'PIL', 'sklearn', 'scipy', 'cv2', 'skimage'} & {m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
