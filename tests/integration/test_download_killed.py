"""``tttlrm download`` and ``tttlrm convert`` as processes that are killed, at whatever moment, and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.hub_server import TOKEN, Hub, serve
from tttlrm.downloads.dl3dv import REPOSITORY
from tttlrm.scenes import read_scene

CAPTURE = Path(__file__).parents[1] / "data" / "convert" / "dl3dv" / "input" / "nerfstudio"
NAMES = tuple(digit * 64 for digit in "abc")


@pytest.fixture
def server() -> Iterator[Hub]:
    table = "hash\n" + "".join(f"{name}\n" for name in NAMES)
    files = {"benchmark-meta.csv": table.encode()}
    for name in NAMES:
        for path in CAPTURE.rglob("*.*"):
            files[f"{name}/nerfstudio/{path.relative_to(CAPTURE)}"] = path.read_bytes()
    with serve(Hub(REPOSITORY, files, kind="dataset", gated=True, delay_s=0.1)) as hub:
        yield hub


def start(server: Hub, output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tttlrm", "download", "dl3dv", "--scenes", "all", "-o", str(output)]
    options = ["--convert", "--input-views", "kmeans", "--connections", "1", "--jobs", "1"]
    environment = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_TOKEN": TOKEN}
    return subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not condition() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)


def images(server: Hub) -> list[str]:
    return [name for name in server.fetched() if name.endswith(".png")]


def test_killed_while_it_fetches_and_while_it_converts(server: Hub, tmp_path: Path) -> None:
    output = tmp_path / "scenes"
    process = start(server, output)
    wait_until(lambda: len(images(server)) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(images(server)) in (2, 3) and not list(output.glob("*/opencv_cameras.json"))

    process = start(server, output)
    wait_until(lambda: any(output.glob("*/images_undistort/*")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for file in output.glob("*/opencv_cameras.json"):
        read_scene(file)  # what looks finished is

    process = start(server, output)
    wait_until(lambda: any(output.glob(f"{NAMES[1]}/*")) or len(images(server)) >= 6, process)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130 and "interrupted; the same command goes on where this one stopped" in said

    process = start(server, output)
    out, said = process.communicate()
    assert process.returncode == 0, said
    assert f"{output}: 3 scenes of DL3DV" in out and "0 of 3 scene files list them" in out
    for name in NAMES:
        assert len(read_scene(output / name).frames) == 3
    assert not list((output / ".download").rglob("*.png"))
    # Each file was fetched once, but for those that were under way at an interruption.
    assert len(NAMES) * 3 <= len(images(server)) <= len(NAMES) * 3 + 3
    assert set(json.loads((output / "downloads.json").read_text())[REPOSITORY]["scenes"]) == set(NAMES)
    assert "GiB of disk in" in said and "3 scenes" in said


def test_a_killed_conversion_leaves_no_workers_and_goes_on(tmp_path: Path) -> None:
    source, scene = tmp_path / "source", tmp_path / "scene"
    (source / "images").mkdir(parents=True)
    (source / "sparse").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (270, 480, 3), dtype=np.uint8)
    for at in range(40):
        Image.fromarray(noise).save(source / "images" / f"{at:02}.png")
    (source / "sparse" / "cameras.txt").write_text("1 SIMPLE_RADIAL 480 270 400 240 135 0.05\n")
    poses = "".join(f"{at} 1 0 0 0 0 0 {at} 1 {at:02}.png\n\n" for at in range(40))
    (source / "sparse" / "images.txt").write_text(poses)

    command = [sys.executable, "-m", "tttlrm", "convert", "colmap", str(source), str(scene), "--jobs", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: any(scene.glob("images_undistort/[0-9]*.png")), process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert workers and not (scene / "opencv_cameras.json").exists()
    limit = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]

    (scene / "images_undistort" / ".39.0123456789ab.png").write_bytes(b"half of an image")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "40 frames, " in done.stdout and "by an earlier run" in done.stdout
    assert sorted(path.name for path in (scene / "images_undistort").iterdir()) == [f"{at:02}.png" for at in range(40)]
    assert len(read_scene(scene).frames) == 40
