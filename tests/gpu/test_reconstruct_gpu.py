"""``tttlrm reconstruct`` on CUDA: one GPU and two, and what is measured there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.test_reconstruct_cli import NUM_FRAMES, command, write_scene
from tttlrm.cli import main
from tttlrm.errors import DownloadError
from tttlrm.gaussians import Gaussians
from tttlrm.lpips import load_lpips
from tttlrm.stages import StageClock

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = torch.rand(NUM_FRAMES, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    return write_scene(tmp_path_factory.mktemp("scene") / "arc", images)


def gaussians_of(folder: Path) -> Gaussians:
    return Gaussians.load_ply(folder / "gaussians.ply")


def test_cuda_gives_what_the_cpu_gives(scene: Path, tmp_path: Path) -> None:
    pytest.importorskip("gsplat")
    more = ["--dtype", "float32", "--no-lpips", "--no-prune", "--video-frames", "3"]
    assert main(command(scene, tmp_path / "cpu", *more, "--device", "cpu")) == 0
    assert main(command(scene, tmp_path / "cuda", *more, "--device", "cuda")) == 0
    for a, b in zip(gaussians_of(tmp_path / "cpu").tensors, gaussians_of(tmp_path / "cuda").tensors, strict=True):
        assert float((a - b).norm() / a.norm()) < 1e-3
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("cpu", "cuda")]
    assert reports[0]["quality"]["mean"]["psnr"] == pytest.approx(reports[1]["quality"]["mean"]["psnr"], abs=0.05)
    stages = {stage["name"]: stage for stage in reports[1]["stages_by_rank"][0]}
    assert stages["blocks"]["peak_allocated_bytes"] > 0 and stages["blocks"]["process_peak_rss_bytes"] is None
    assert reports[1]["environment"]["gpus"]


def test_two_gpus_give_what_one_gives(scene: Path, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    more = ["--dtype", "float32", "--no-lpips", "--no-prune", "--schedule", "ar", "--video-frames", "2"]
    assert main(command(scene, tmp_path / "one", *more)) == 0
    assert main(command(scene, tmp_path / "two", *more, "--sp-size", "2")) == 0
    for a, b in zip(gaussians_of(tmp_path / "one").tensors, gaussians_of(tmp_path / "two").tensors, strict=True):
        assert float((a - b).norm() / a.norm()) < 1e-4


def test_stage_memory_is_that_of_the_stage() -> None:
    clock = StageClock("cuda")
    with clock.stage("large"):
        torch.empty(2**28, dtype=torch.uint8, device="cuda")
    with clock.stage("small"):
        torch.empty(2**20, dtype=torch.uint8, device="cuda")
    large, small = (stage.peak_allocated_bytes or 0 for stage in clock.stages)
    assert large >= 2**28 and 2**20 <= small < 2**28


def test_lpips_is_the_same_on_both_devices() -> None:
    try:
        on_cpu, on_cuda = load_lpips("cpu"), load_lpips("cuda")
    except DownloadError as error:
        pytest.skip(f"the weights of LPIPS cannot be had: {error}")
    golden = load_file(Path(__file__).parents[1] / "data" / "metrics.safetensors")
    predicted, target = golden["predicted"], golden["target"]
    assert torch.allclose(on_cuda(predicted.cuda(), target.cuda()).cpu(), on_cpu(predicted, target), atol=1e-5, rtol=0)
