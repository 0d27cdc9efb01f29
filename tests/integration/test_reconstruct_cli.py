"""``tttlrm reconstruct`` and ``tttlrm render`` on a small scene: what they write, what they refuse, what they leave."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tttlrm.bundled import BUNDLED
from tttlrm.cameras import Cameras, normalize_poses
from tttlrm.checkpoints import digest, save_model
from tttlrm.cli import main
from tttlrm.config import ModelConfig
from tttlrm.errors import DownloadError
from tttlrm.gaussians import Gaussians
from tttlrm.model import TTTLRM
from tttlrm.outputs import Origin, check_output
from tttlrm.ply import read_comments
from tttlrm.rendering import render

HEIGHT, WIDTH, NUM_FRAMES = 24, 32, 11
ROOT = Path(__file__).parents[2]
FAST = ["--no-lpips", "--no-video"]
TINY = ["--random-weights", "--config", "tiny", "--views", "4"]


def arc_cameras() -> Cameras:
    """Cameras on an arc around a point in front of them, with a tilted world, so that no axis is special."""
    poses = []
    tilt = torch.linalg.qr(torch.tensor([[1.0, 0.2, 0.1], [-0.3, 1.0, 0.4], [0.2, -0.1, 1.0]]).double())[0]
    tilt = tilt * torch.linalg.det(tilt)
    for angle in torch.linspace(-0.5, 0.5, NUM_FRAMES).tolist():
        z = torch.tensor([math.sin(angle), 0.0, math.cos(angle)], dtype=torch.float64)
        y = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3] = torch.stack([torch.linalg.cross(y, z), y, z, -3 * z], dim=1)
        pose[:3] = tilt @ pose[:3]
        pose[:3, 3] += torch.tensor([5.0, -2.0, 1.0])
        poses.append(pose)
    intrinsics = torch.tensor([[30.0, 31.0, WIDTH / 2, HEIGHT / 2]], dtype=torch.float64).repeat(NUM_FRAMES, 1)
    return Cameras(torch.stack(poses), intrinsics, HEIGHT, WIDTH)


def write_scene(folder: Path, images: torch.Tensor, name: str = "arc") -> Path:
    """A scene folder from images [V, 3, H, W] of :func:`arc_cameras`."""
    cameras = arc_cameras()
    frames: list[dict[str, Any]] = []
    (folder / "images").mkdir(parents=True)
    for index in range(NUM_FRAMES):
        pixels = (images[index].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        fx, fy, cx, cy = cameras.intrinsics[index].tolist()
        frame = {"file_path": f"images/{index}.png", "w": WIDTH, "h": HEIGHT, "fx": fx, "fy": fy, "cx": cx, "cy": cy}
        frames.append({**frame, "w2c": cameras.world_to_camera[index].tolist()})
    (folder / "opencv_cameras.json").write_text(json.dumps({"scene_name": name, "frames": frames}))
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = torch.rand(NUM_FRAMES, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    return write_scene(tmp_path_factory.mktemp("scene") / "arc", images)


def command(scene: Path, output: Path, *more: str) -> list[str]:
    return ["reconstruct", str(scene), "-o", str(output), *TINY, *more]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def result(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run, but for LPIPS, into a folder whose parent does not exist yet."""
    output = tmp_path_factory.mktemp("out") / "deep" / "result"
    assert main(command(scene, output, "--no-lpips", "--video-frames", "5")) == 0
    assert left_behind(output.parent) == ["result"]
    return output


# --- what is written ---


def test_gaussians_are_written_and_pruned(result: Path) -> None:
    gaussians = Gaussians.load_ply(result / "gaussians.ply")
    count = 4 * HEIGHT * WIDTH
    assert len(gaussians) == math.floor(0.4 * count) + math.floor(0.6 * 0.1 * count)
    assert gaussians.sh_degree == 1
    assert "random weights (seed 0)" in read_comments(result / "gaussians.ply")[0]


def test_renderings_are_beside_their_targets(result: Path, scene: Path) -> None:
    assert left_behind(result / "renders") == ["frame_00000.png", "frame_00008.png"]
    target = np.asarray(Image.open(scene / "images" / "8.png"))
    with Image.open(result / "renders" / "frame_00008.png") as picture:
        assert picture.info["Comment"].startswith("RANDOM WEIGHTS frame 8: target | rendering")
        pixels = np.asarray(picture)
    strip = pixels.shape[0] - HEIGHT
    assert strip > 8 and (pixels[:strip] < 128).any(), "a caption is drawn above the images"
    assert (pixels[strip:, :WIDTH] == target).all()
    rendering = pixels[strip:, WIDTH + 4 : 2 * WIDTH + 4]
    assert rendering.std() > 0


def test_metrics_are_written_by_view_with_their_mean(result: Path) -> None:
    rows = read_csv(result / "metrics.csv")
    assert [row["frame"] for row in rows] == ["0", "8", "mean"]
    assert rows[1]["image"] == "images/8.png"
    assert float(rows[2]["psnr"]) == pytest.approx((float(rows[0]["psnr"]) + float(rows[1]["psnr"])) / 2, abs=1e-4)
    assert all(row["lpips"] == "" and row["weights"] == "random weights (seed 0)" for row in rows)


def test_video_is_written_and_labelled(result: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(result / "trajectory.mp4")) as container:
        assert "random weights (seed 0)" in container.metadata["comment"]
        frames = list(container.decode(video=0))
    assert len(frames) == 5 and (frames[0].height, frames[0].width) == (HEIGHT, WIDTH)


def test_report_is_complete_and_private(result: Path, scene: Path) -> None:
    text = (result / "report.json").read_text()
    report = json.loads(text)
    assert report["random_weights"] is True and "says nothing" in report["warning"]
    assert report["scene"] == {
        "name": "arc",
        "frames": NUM_FRAMES,
        "input_frames": report["scene"]["input_frames"],
        "input_frames_from": "k-means",
        "test_frames": [0, 8],
    }
    assert len(report["scene"]["input_frames"]) == 4
    assert report["gaussians"]["decoded"] == 4 * HEIGHT * WIDTH
    names = [stage["name"] for stage in report["stages_by_rank"][0]]
    assert names[:6] == ["read inputs", "load model", "move inputs", "encode", "blocks", "decode"]
    assert names[6:] == ["prune", "write PLY", "read test views", "render", "metrics", "write images", "video"]
    assert all(stage["seconds"] >= 0 and stage["process_peak_rss_bytes"] > 0 for stage in report["stages_by_rank"][0])
    assert report["quality"]["lpips_absent"] == "not asked for"
    assert report["configuration"]["parameters"] == sum(p.numel() for p in tiny_model().parameters())
    for private in (str(scene.parent), str(result.parent), str(Path.home()), os.uname().nodename):
        assert private not in text


def tiny_model() -> TTTLRM:
    from tttlrm.plan import CONFIGS

    return TTTLRM(CONFIGS["tiny"])


def test_the_same_seed_gives_the_same_gaussians(scene: Path, result: Path, tmp_path: Path) -> None:
    assert main(command(scene, tmp_path / "again", *FAST)) == 0
    assert main(command(scene, tmp_path / "other", *FAST, "--seed", "1")) == 0
    first, again, other = (folder / "gaussians.ply" for folder in (result, tmp_path / "again", tmp_path / "other"))
    assert torch.equal(Gaussians.load_ply(first).positions, Gaussians.load_ply(again).positions)
    assert not torch.equal(Gaussians.load_ply(first).positions, Gaussians.load_ply(other).positions)


@pytest.mark.parametrize("schedule", ["full", "ar"])
def test_two_processes_give_the_same_gaussians(scene: Path, tmp_path: Path, schedule: str) -> None:
    more = [*FAST, "--schedule", schedule, "--views-per-chunk", "3", "--no-prune"]
    assert main(command(scene, tmp_path / "one", *more)) == 0
    assert main(command(scene, tmp_path / "two", *more, "--sp-size", "2")) == 0
    one, two = (Gaussians.load_ply(tmp_path / name / "gaussians.ply") for name in ("one", "two"))
    assert len(one) == 4 * HEIGHT * WIDTH
    for a, b in zip(one.tensors, two.tensors, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert [len(stages) > 5 for stages in report["stages_by_rank"]] == [True, True]
    assert report["configuration"]["schedule"]["kind"] == schedule
    assert left_behind(tmp_path) == ["one", "two"]


def test_trained_weights_are_named_in_every_output(scene: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    save_model(TTTLRM(ModelConfig(width=32, blocks=1, attention_head=16, sh_degree=0, far=4.0)), weights)
    output = tmp_path / "out"
    arguments = ["reconstruct", str(scene), "-o", str(output), "--weights", str(weights), "--views", "3", *FAST]
    assert main(arguments) == 0
    label = f"weights model.safetensors (sha256 {digest(weights)})"
    report = json.loads((output / "report.json").read_text())
    assert report["weights"] == label and report["random_weights"] is False and "warning" not in report
    assert report["configuration"]["model"]["width"] == 32
    assert label in read_comments(output / "gaussians.ply")[0]
    assert read_csv(output / "metrics.csv")[-1]["weights"] == label
    assert Image.open(output / "renders" / "frame_00000.png").info["Comment"].startswith("frame 0")


def test_lpips_that_cannot_be_had_is_absent_with_its_reason(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DownloadError("no network here")

    monkeypatch.setattr("tttlrm.lpips.load_lpips", fail)
    assert main(command(scene, tmp_path / "out", "--no-video")) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["quality"]["lpips_absent"] == "no network here"
    assert read_csv(tmp_path / "out" / "metrics.csv")[0]["lpips"] == ""


def test_costs_are_told_before_the_start(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(scene, tmp_path / "out", *FAST)) == 0
    captured = capsys.readouterr()
    assert captured.out == f"wrote {tmp_path / 'out'}\n"
    lines = captured.err.splitlines()
    assert lines[0] == f"scene      arc: 4 input views (k-means), 2 test views, {WIDTH}x{HEIGHT} pixels"
    assert "505,868 parameters, random weights (seed 0)" in lines[1]
    assert "3,072 Gaussians, 1,412 after pruning" in lines[3]
    assert "RANDOM WEIGHTS" in lines[4] and "RANDOM WEIGHTS" in lines[-1]


# --- what is refused ---


def fails(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with status 2 and one sentence on the error stream."""
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("tttlrm: error: ") and message in error[-1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--weights", "model.pt"], "exclude each other"),
        (["--views", "10"], "only 9 of its 11 frames"),
        (["--views", "0"], "at least 1"),
        (["--sp-size", "5"], "sp_size 5 is larger than the number of input views, 4"),
        (["--sp-size", "0"], "sp_size must be at least 1"),
        (["--size", "20x32"], "not a multiple of the patch size 8"),
        (["--device", "tpu"], "device must be auto, cpu, cuda or cuda:N"),
        (["--device", "mps"], "device must be auto, cpu, cuda or cuda:N"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--views-per-chunk", "0"], "views_per_chunk must be at least 1"),
        (["--attention-backend", "flash-attn", "--dtype", "float64"], "attention backend flash-attn"),
    ],
)
def test_wrong_settings(
    scene: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(command(scene, tmp_path / "sub" / "out", *FAST, *more), message, capsys)
    assert left_behind(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_cuda_that_is_not_there(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(command(scene, tmp_path / "out", "--device", "cuda"), "finds no CUDA GPU", capsys)


@pytest.mark.parametrize("size", ["536", "0x8", "8x-8", "8x8x8", "axb"])
def test_sizes_that_are_none(scene: Path, tmp_path: Path, size: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(command(scene, tmp_path / "out", "--size", size))
    assert exit_info.value.code == 2


def test_without_weights_the_bundled_model_that_suits_is_used(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    four = ["--views", "4", *FAST]
    assert main(["reconstruct", str(scene), "-o", str(tmp_path / "out"), *four, "--schedule", "ar"]) == 0
    said = capsys.readouterr().err
    assert "bundled model tiny-room-ar (sha256" in said and "not pruned" in said
    assert "the scene was taken for a room" in said and "trained on procedural scenes of 128 pixels" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert BUNDLED["tiny-room-ar"].sha256 in json.dumps(report)
    assert report["configuration"]["size"] == [96, 128]  # the longer side is what the model was trained on

    named = ["reconstruct", str(scene), "-o", str(tmp_path / "named"), *four, "--weights", "tiny-object", "--prune"]
    assert main([*named, "--size", "24x32"]) == 0
    said = capsys.readouterr().err
    assert "bundled model tiny-object (sha256" in said and "after pruning" in said and "was taken for" not in said


def test_weights_that_are_not_there(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["reconstruct", str(scene), "-o", str(tmp_path / "out"), "--views", "4"]
    fails([*start, "--weights", str(tmp_path / "gone.pt")], "gone.pt: no such checkpoint file", capsys)
    fetch = "`tttlrm download weights` fetches the authors'"
    for name in ("dl3dv_full.pt", "dl3dv_ar.safetensors"):
        fails([*start, "--weights", str(tmp_path / name)], fetch, capsys)
    fails([*start, "--weights", "tiny-car"], "tiny-car: no such checkpoint file, and no bundled model", capsys)
    fails([*start, "--config", "tiny"], "the bundled model tiny-room: has a configuration of its own", capsys)


def test_missing_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(command(tmp_path / "gone", tmp_path / "out"), "no such scene", capsys)


@pytest.mark.parametrize("sp_size", ["1", "2"])
def test_damaged_image_leaves_nothing(
    scene: Path, tmp_path: Path, sp_size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = write_scene(tmp_path / "broken", torch.rand(NUM_FRAMES, 3, HEIGHT, WIDTH))
    for index in range(NUM_FRAMES):  # whichever views are chosen; headers stay whole
        path = broken / "images" / f"{index}.png"
        path.write_bytes(path.read_bytes()[:400])
    fails(command(broken, tmp_path / "a" / "b" / "out", *FAST, "--sp-size", sp_size), "truncated or damaged", capsys)
    assert left_behind(tmp_path) == ["broken"]


def test_gaussians_that_are_not_finite_are_an_error(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decode = TTTLRM.decode

    def broken(*arguments: Any) -> Gaussians:
        gaussians = decode(*arguments)
        gaussians.positions[..., 3, 0] = float("nan")
        return gaussians

    monkeypatch.setattr(TTTLRM, "decode", broken)
    fails(command(scene, tmp_path / "out", *FAST), "1 of the 3072 Gaussians are not finite", capsys)
    assert left_behind(tmp_path) == []


def test_output_that_cannot_be_made_is_named(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "n" * 250  # the folder itself could be made, but not the temporary one beside it
    fails(command(scene, tmp_path / name, *FAST), f"{name}: cannot be written", capsys)
    fails(command(scene, tmp_path / "new" / "..", *FAST), f"{tmp_path}: exists already", capsys)
    assert left_behind(tmp_path) == []


def test_existing_output_is_kept(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    output.mkdir()
    fails(command(scene, output, *FAST), "exists already", capsys)
    (output / "thesis.tex").write_text("years of work")
    fails(command(scene, output, *FAST, "--overwrite"), "holds something other than a result of tttlrm", capsys)
    assert (output / "thesis.tex").read_text() == "years of work"
    file = tmp_path / "file"
    file.write_text("")
    fails(command(scene, file, *FAST, "--overwrite"), "is not a folder", capsys)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    fails(command(scene, link, *FAST), "exists already", capsys)


def test_overwrite_replaces_a_result_only_when_the_new_one_is_whole(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(command(scene, output, *FAST)) == 0
    before = (output / "gaussians.ply").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("tttlrm.reconstruct.write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        assert main(command(scene, output, *FAST, "--overwrite", "--seed", "1")) == 1
        assert "No space left" in capsys.readouterr().err.splitlines()[-1]
    assert (output / "gaussians.ply").read_bytes() == before
    assert main(command(scene, output, *FAST, "--overwrite", "--seed", "1")) == 0
    assert (output / "gaussians.ply").read_bytes() != before
    assert left_behind(tmp_path) == ["out"]
    check_output(output, overwrite=True)


def living_processes(group: int) -> list[int]:
    """Processes of a group that are more than zombies."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, process_group = entry.read_text().rsplit(")", 1)[1].split()[:3]
            if int(process_group) == group and state not in "ZX":
                found.append(int(entry.parent.name))
    return found


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("sp_size", [1, 2])
def test_interrupted_run_leaves_nothing(
    scene: Path, tmp_path: Path, stop: signal.Signals, status: int, sp_size: int
) -> None:
    """Stopped as a terminal does it (every process of the group), or as a scheduler does (the first one alone)."""
    arguments = command(scene, tmp_path / "out", "--no-lpips", "--video-frames", "1000000")
    process = subprocess.Popen(
        [sys.executable, "-m", "tttlrm", *arguments, "--sp-size", str(sp_size)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not left_behind(tmp_path):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5 if sp_size == 1 else 3)
        if stop == signal.SIGINT:
            os.killpg(process.pid, stop)
        else:
            process.send_signal(stop)
        _, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == status, error
    assert left_behind(tmp_path) == []
    deadline = time.monotonic() + 20
    while living_processes(process.pid):
        assert time.monotonic() < deadline, "a rank goes on after its command has ended"
        time.sleep(0.1)


# --- tttlrm render ---


def test_render_shows_saved_gaussians_as_their_scene_shows_them(tmp_path: Path) -> None:
    """Images of known Gaussians make a scene; the same Gaussians in the normalised world must render to them."""
    generator = torch.Generator().manual_seed(3)
    cameras = arc_cameras()
    normalization = normalize_poses(cameras.camera_to_world, "mean")
    count = 300
    center = torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64)
    world = center + 0.6 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    matrix = normalization.world_to_reference
    normalized = (world @ matrix[:3, :3].mT + matrix[:3, 3]) / normalization.scale
    gaussians = Gaussians(
        normalized.float(),
        torch.randn(count, 1, 3, generator=generator),
        torch.full((count, 3), math.log(0.15 / normalization.scale)),
        torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        torch.full((count,), 1.5),
    )
    moved = Cameras(normalization.apply(cameras.camera_to_world), cameras.intrinsics, HEIGHT, WIDTH)
    images = render(gaussians, moved).images
    scene = write_scene(tmp_path / "scene", images)
    origin = Origin("weights of a test", False, "arc", (HEIGHT, WIDTH), normalization)
    gaussians.save_ply(tmp_path / "known.ply", origin.ply_comment())

    output = tmp_path / "out"
    assert main(["render", str(tmp_path / "known.ply"), str(scene), "-o", str(output), "--no-lpips"]) == 0
    rows = read_csv(output / "metrics.csv")
    assert [row["frame"] for row in rows] == ["0", "8", "mean"]
    # What is left is the rounding of PNG, 10 log10(12 * 255^2) = 58.9 dB, and what PNG clips.
    assert float(rows[-1]["psnr"]) > 50
    assert float(rows[-1]["ssim"]) > 0.995
    assert json.loads((output / "report.json").read_text())["weights"] == "weights of a test"


def test_render_repeats_what_reconstruct_measured(scene: Path, result: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert main(["render", str(result / "gaussians.ply"), str(scene), "-o", str(output), "--no-lpips"]) == 0
    assert (output / "metrics.csv").read_bytes() == (result / "metrics.csv").read_bytes()
    assert left_behind(output) == ["metrics.csv", "renders", "report.json"]


def test_render_refuses_what_does_not_belong_together(
    scene: Path, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_scene(tmp_path / "other", torch.rand(NUM_FRAMES, 3, HEIGHT, WIDTH), name="other")
    output = ["-o", str(tmp_path / "out"), "--no-lpips"]
    fails(["render", str(result / "gaussians.ply"), str(other), *output], "made from scene arc, not other", capsys)
    plain = tmp_path / "plain.ply"
    Gaussians.load_ply(result / "gaussians.ply").save_ply(plain, "from elsewhere")
    fails(["render", str(plain), str(scene), *output], "does not say how the scene was normalised", capsys)
    damaged = (result / "gaussians.ply").read_bytes().replace(b'"scale"', b'"skale"')
    plain.write_bytes(damaged)
    fails(["render", str(plain), str(scene), *output], "is damaged", capsys)
    fails(["render", str(tmp_path / "gone.ply"), str(scene), *output], "cannot be read", capsys)
    assert left_behind(tmp_path) == ["other", "plain.ply"]


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["reconstruct", "--help"], ["render", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as exit_info:
            main(arguments)
        assert exit_info.value.code == 0
    assert "report.json" in capsys.readouterr().out
