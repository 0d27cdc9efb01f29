"""The suite's runs on CUDA: times, memory and clocks are there, and quality is what a CPU gives."""

from __future__ import annotations

import pytest
import torch

from bench.cells import Cell
from bench.environment import machine_label, read_clocks, read_environment
from bench.methods import build_method
from bench.quality import run_quality
from bench.speed import run_speed
from tests.bench_cases import tiny_plan

pytestmark = pytest.mark.gpu


def cell(kind: str, *overrides: str) -> Cell:
    """tttLRM at 32x32, 8 views."""
    plan = tiny_plan("profile.lpips=false", "profile.datasets.quality.scenes=1", *overrides).plan
    return plan.cells[plan.rows[1].cells[kind][0]]  # type: ignore[index]


def test_speed_has_stages_memory_and_clocks() -> None:
    pytest.importorskip("gsplat")
    wanted = cell("speed", "device=cuda", "profile.sampling.limit_s=2")
    result, memory = run_speed(wanted, build_method(wanted, None), None)
    assert list(result.reconstruct.stages) == ["encode", "blocks", "decode"]
    assert list(result.show.stages) == ["prune", "render"]
    assert all(seconds > 0 for runs in result.reconstruct.stages.values() for (seconds,) in runs)
    assert memory.allocated_mib is not None and memory.reserved_mib is not None
    assert 0 < memory.allocated_mib <= memory.reserved_mib
    assert memory.resident_mib is None
    assert len(result.clocks_before) == torch.cuda.device_count() and result.clocks_before[0].sm_mhz > 0


def test_quality_is_that_of_a_cpu() -> None:
    pytest.importorskip("gsplat")
    values = []
    for device in ("cpu", "cuda"):
        wanted = cell("quality", f"device={device}")
        result = run_quality(wanted, build_method(wanted, None), None, lambda done, total: None)
        values.append([view.psnr for view in result.scenes[0].views])
    assert values[0] == pytest.approx(values[1], abs=0.02)


def test_environment_names_the_gpu() -> None:
    environment = read_environment(use_gpu=True)
    assert environment.gpus[0].name == torch.cuda.get_device_name(0)
    assert environment.gpus[0].driver and environment.cuda and environment.nccl
    assert machine_label("cuda").startswith("nvidia-") and read_clocks()
