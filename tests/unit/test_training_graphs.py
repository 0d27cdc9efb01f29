"""What cannot be recorded as a CUDA graph is computed as it is. What is recorded: tests/gpu/test_training_gpu.py."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
import torch

from tests.training_cases import make_batch
from tttlrm.training import graphs
from tttlrm.training.graphs import GraphedSurfaceTerms, RecordedFunction
from tttlrm.training.points import Surfaces, surface_pixels, surface_terms


@pytest.fixture
def unrecordable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise RuntimeError("operation not permitted\nmore")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", refuse)
    monkeypatch.setattr(graphs, "_current_stream", lambda: torch.no_grad())


@pytest.mark.usefixtures("unrecordable")
def test_a_function_goes_on_and_says_so() -> None:
    said: list[str] = []
    recorded = RecordedFunction(lambda x: 2 * x, said.append)
    for value in range(8):
        assert float(recorded(torch.tensor(float(value)))) == 2 * value
    assert said == ["steps could not be recorded as a CUDA graph: operation not permitted"]


@pytest.mark.usefixtures("unrecordable")
@pytest.mark.parametrize("names", [("points", "coverage", "solidity"), ("points",), ("solidity",)])
def test_surface_terms_go_on_and_say_so(names: tuple[str, ...]) -> None:
    said: list[str] = []
    graphed, batch = GraphedSurfaceTerms(said.append), make_batch(torch.float32)
    inputs = Surfaces(batch.inputs.cameras, batch.input_depths, batch.input_masks)
    positions, logits = torch.rand(2, 4, 256, 3), torch.randn(2, 4, 256)
    for _ in range(2):
        assert graphed(names, positions, logits, inputs, 8) == surface_terms(names, positions, logits, inputs, 8)
    assert said == ["surface terms could not be recorded as a CUDA graph: operation not permitted"]


def test_a_share_of_a_scenes_views_is_not_recorded() -> None:
    batch = make_batch(torch.float32)
    surfaces = Surfaces(
        batch.inputs.cameras, batch.input_depths, batch.input_masks, surface_pixels(batch.input_masks) * 2, 8
    )
    arguments = (("points", "coverage"), torch.rand(2, 4, 256, 3), torch.randn(2, 4, 256), surfaces, 8)
    assert GraphedSurfaceTerms(pytest.fail)(*arguments) == surface_terms(*arguments)
