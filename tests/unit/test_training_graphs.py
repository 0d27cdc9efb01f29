"""What is recorded as a CUDA graph goes on without where that is impossible; GPUs: tests/gpu/test_training_gpu.py."""

from __future__ import annotations

import torch

from tttlrm.training.graphs import RecordedFunction


def test_without_a_gpu_a_function_goes_on_and_says_so() -> None:
    said: list[str] = []

    def double(x: torch.Tensor) -> torch.Tensor:
        if torch.cuda.is_available():  # cannot be recorded: it waits for the device
            torch.cuda.synchronize()
        return 2 * x

    recorded = RecordedFunction(double, said.append)
    for value in range(8):
        assert float(recorded(torch.tensor(float(value)))) == 2 * value
    assert len(said) == 1 and "steps could not be recorded as a CUDA graph: " in said[0]
