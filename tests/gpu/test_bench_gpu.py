"""The suite's runs on CUDA: times, memory and clocks are there, and quality is what a CPU gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.cells import Cell
from bench.devices import energy_used, read_state
from bench.environment import machine_label, read_environment
from bench.methods import build_method
from bench.quality import run_quality
from bench.speed import run_speed
from tests.bench_cases import tiny_plan

pytestmark = pytest.mark.gpu


def cell(kind: str, *overrides: str) -> tuple[Cell, Path | None]:
    """tttLRM at 96x96, 8 views, and where its weights are."""
    planned = tiny_plan("profile.lpips=false", "profile.datasets.gso.scenes=1", *overrides)
    cell_id = planned.plan.rows[1].cells[kind][0]
    return planned.plan.cells[cell_id], planned.locations[cell_id].weights


def test_speed_has_stages_memory_and_clocks() -> None:
    pytest.importorskip("gsplat")
    wanted, weights = cell("speed", "device=cuda", "profile.sampling.limit_s=2")
    result, memory = run_speed(wanted, build_method(wanted, weights), None)
    assert list(result.reconstruct.stages) == ["encode", "blocks", "decode"]
    assert list(result.show.stages) == ["prune", "render"]
    assert all(seconds > 0 for runs in result.reconstruct.stages.values() for (seconds,) in runs)
    assert memory.allocated_mib is not None and memory.reserved_mib is not None
    assert 0 < memory.allocated_mib <= memory.reserved_mib
    assert memory.resident_mib is None
    (before,), (after,) = result.reconstruct.before, result.reconstruct.after
    assert before.clock_mhz and before.memory_clock_mhz and before.temperature_c
    assert before.throttle_reasons is not None and after.throttle_reasons is not None
    assert before.power_w and 0 < (energy_used(before, after) or 0) < 2000 * (result.reconstruct.sampled_s or 0)
    assert result.flops and result.peak_flops and result.peak_flops > 1e12


def test_quality_is_that_of_a_cpu() -> None:
    pytest.importorskip("gsplat")
    values = []
    for device in ("cpu", "cuda"):
        wanted, weights = cell("quality", f"device={device}")
        result = run_quality(wanted, build_method(wanted, weights), None, lambda scene: None)
        values.append([view.psnr for view in result.scenes[0].views])
    assert values[0] == pytest.approx(values[1], abs=0.02)


def test_environment_names_the_gpu() -> None:
    environment = read_environment(use_gpu=True)
    assert environment.gpus[0].name == torch.cuda.get_device_name(0)
    assert environment.gpus[0].driver and environment.cuda and environment.nccl
    assert machine_label("cuda").startswith("nvidia-") and read_state("cuda").clock_mhz
