"""The accelerated model against the plain one: the same Gaussians, closer to float32, and the same on several GPUs."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bench.kernel_profile import random_views
from tests.model_cases import relative_error
from tttlrm.accelerated import AcceleratedModel, accelerate, why_not
from tttlrm.bundled import bundled_model
from tttlrm.cameras import Views
from tttlrm.checkpoints import load_model
from tttlrm.config import Compute, ElasticUpdate, ModelConfig, Schedule
from tttlrm.gaussians import Gaussians
from tttlrm.launch import run_local
from tttlrm.model import TTTLRM
from tttlrm.parallel import SequenceGroup

pytestmark = pytest.mark.gpu

HALF = Compute(dtype=torch.bfloat16, tile_tokens=300)
EXACT = Compute(dtype=torch.float32, newton_schulz_dtype=torch.float32)
SMALL = ModelConfig(width=256, blocks=3, attention_head=64, fast_weight_expansion=2, sh_degree=2)
CONFIGS = {
    "released": SMALL,
    "trained here": dataclasses.replace(
        SMALL, near=0.1, far=12.0, distance_spacing="log", color_residual=True, scale_unit="pixel", patch=4
    ),
}
SCHEDULES = {
    "full": Schedule(),
    "ar": Schedule(kind="ar", views_per_chunk=2),
    "selective": Schedule(kind="ar", views_per_chunk=2, elastic=ElasticUpdate()),
}


@pytest.fixture(autouse=True)
def _exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("the kernels are for Hopper GPUs and newer")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def small_views(count: int, height: int = 48, width: int = 80) -> Views:
    return random_views(count, height, width)


def random_model(config: ModelConfig) -> TTTLRM:
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = TTTLRM(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def errors(found: Gaussians, expected: Gaussians) -> list[float]:
    return [relative_error(a, b) for a, b in zip(found.tensors, expected.tensors, strict=True)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("config", CONFIGS)
def test_no_further_from_float32_than_autocast(config: str, schedule: str) -> None:
    model, views, plan = random_model(CONFIGS[config]), small_views(5), SCHEDULES[schedule]
    with torch.no_grad():
        exact = model(views, plan, EXACT)
        with torch.autocast("cuda", torch.bfloat16):
            rounded = errors(model(views, plan, Compute()), exact)
    accelerated = accelerate(model, HALF)
    assert isinstance(accelerated, AcceleratedModel)
    found = errors(accelerated(views, plan, HALF), exact)
    print(config, schedule, "accelerated", found, "autocast", rounded)
    assert all(ours <= 1.05 * theirs + 1e-4 for ours, theirs in zip(found, rounded, strict=True)), (found, rounded)


def test_tiles_and_queries_do_not_matter() -> None:
    model, views = accelerate(random_model(SMALL), HALF), small_views(6)
    whole = model(views, compute=dataclasses.replace(HALF, tile_tokens=10**6))
    tiled = model(views, compute=dataclasses.replace(HALF, tile_tokens=64))
    assert max(errors(tiled, whole)) < 1e-2
    chosen = model(views, compute=HALF, queries=[4, 1])
    per_view = views.height * views.width
    rows = torch.cat([torch.arange(view * per_view, (view + 1) * per_view, device="cuda") for view in (4, 1)])
    assert max(errors(chosen, model(views, compute=HALF).select(rows))) < 1e-6


def test_weights_stay_as_they_are() -> None:
    model, views = accelerate(random_model(SMALL), HALF), small_views(4)
    first, second = (model(views, SCHEDULES["ar"], HALF) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.tensors, second.tensors, strict=True))


def test_a_trained_model_prunes_and_renders_alike() -> None:
    pytest.importorskip("gsplat")
    from tttlrm.rendering import render

    plain, views = load_model(bundled_model("tiny-object").path, "cuda"), small_views(8, 64, 64)
    images: list[Tensor] = []
    for model in (plain, accelerate(plain, HALF)):
        with torch.no_grad():
            kept = model(views, compute=HALF).prune(0.4, 0.1, seed=0)
        assert {tensor.dtype for tensor in kept.tensors} == {torch.float32}
        images.append(render(kept, views.cameras).images)
    assert (images[0] - images[1]).square().mean() < 1e-3


def test_reasons_not_to() -> None:
    model = random_model(SMALL)
    assert why_not(model, HALF) is None
    assert "bfloat16 or float16" in str(why_not(model, EXACT)) and accelerate(model, EXACT) is model
    assert "multiple of 128" in str(why_not(random_model(dataclasses.replace(SMALL, width=192)), HALF))


def test_the_first_call_takes_seconds_for_any_number_of_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    model = accelerate(random_model(dataclasses.replace(SMALL, sh_degree=1)), HALF)
    times = []
    for views in (4, 16):
        started = time.perf_counter()
        model(small_views(views), Schedule(kind="ar", views_per_chunk=2), HALF)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    assert times[0] < 20 and times[1] < 2, times  # the second compiles nothing


def test_a_gpu_need_not_be_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA GPUs")
    model, views = random_model(SMALL), small_views(3)
    here = accelerate(model, HALF)(views, compute=HALF)
    there = accelerate(model.to("cuda:1"), HALF)(views.to("cuda:1"), compute=HALF)
    assert torch.cuda.current_device() == 0
    assert max(errors(there.to("cuda:0"), here)) < 1e-6


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ranks_do_not_matter(schedule: str, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA GPUs")
    alone = accelerate(random_model(SMALL), HALF)(small_views(7), SCHEDULES[schedule], HALF)
    run_local(_on_rank, 2, "cuda", (schedule, tmp_path))
    for rank in range(2):
        together = Gaussians(*torch.load(tmp_path / f"{rank}.pt"))
        assert max(errors(together.to("cuda"), alone)) < 1e-2


def _on_rank(rank: int, schedule: str, folder: Path) -> None:
    torch.cuda.set_device(rank)
    views = small_views(7).to(f"cuda:{rank}")
    shard = SequenceGroup().shard(views.num_views)
    model = accelerate(random_model(SMALL).to(f"cuda:{rank}"), HALF)
    local = views.select(list(shard.views))
    gaussians = model(local, SCHEDULES[schedule], HALF, shard=shard)
    chosen = model(local, SCHEDULES[schedule], HALF, queries=[6, 1, 3], shard=shard)
    per_view = views.height * views.width
    rows = torch.cat([torch.arange(view * per_view, (view + 1) * per_view, device="cuda") for view in (6, 1, 3)])
    assert max(errors(chosen, gaussians.select(rows))) < 1e-6
    torch.save(tuple(tensor.cpu() for tensor in gaussians.tensors), folder / f"{rank}.pt")
    dist.destroy_process_group()
