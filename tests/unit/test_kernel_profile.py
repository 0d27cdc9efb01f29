from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import end_to_end
from bench.kernel_profile import Kernel, kernel_table, main
from bench.statistics import Estimate


def test_the_table_adds_up_and_puts_small_kernels_together() -> None:
    kernels = [Kernel("a" * 100, 3, 0.9), Kernel("b", 2, 0.0995), Kernel("c", 1, 0.0003), Kernel("d", 5, 0.0002)]
    lines = kernel_table(kernels, 1.25).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[1].split() == ["a" * 61 + "...", "3", "900.00", "90.0%"]
    assert lines[3].split() == ["2", "others", "6", "0.50", "0.1%"]
    assert lines[4].split()[-2:] == ["11", "1000.00"] and lines[5].split()[-1] == "1250.00"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err == "error: no CUDA GPU on this machine\n"


def test_end_to_end_reports_the_networks_share() -> None:
    times = {"read": 0.1, "encode": 0.1, "blocks": 0.6, "decode": 0.1, "render": 0.1}
    text = end_to_end.report({stage: Estimate(value, None, None, 1) for stage, value in times.items()})
    assert text.splitlines()[-1] == "network: 80.0% of 1.000 s"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA GPU")
def test_end_to_end_needs_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert end_to_end.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: no CUDA GPU on this machine\n"
