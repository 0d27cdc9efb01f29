"""The task of finding tokens of the same point, and that layers of the model learn it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import matching
from bench.matching import MatchingNetwork, Mixer, Task, train
from tttlrm.blocks import FastWeightLayer, GlobalAttention
from tttlrm.errors import UserError
from tttlrm.progress import Bars


def test_the_answer_is_what_the_other_views_say_of_the_point() -> None:
    task = Task(views=3, points=4, features=5, message=2, noise=0.0)
    tokens, expected = task.draw(torch.Generator().manual_seed(0))
    assert tokens.shape == (4, 12, 7) and expected.shape == (4, 12, 2)
    features, messages = tokens.unflatten(1, (3, 4)).split([5, 2], dim=-1)
    assert torch.equal(features[:, 0], features[:, 1]) and not torch.equal(messages[:, 0], messages[:, 1])
    assert torch.allclose(expected.unflatten(1, (3, 4))[:, 0], (messages[:, 1] + messages[:, 2]) / 2**0.5)
    many = Task(points=500).draw(torch.Generator().manual_seed(0))[1]
    assert float(many.var()) == pytest.approx(1, abs=0.02)


def test_mixers_are_layers_of_the_model() -> None:
    attention, single, heads = (MatchingNetwork(Mixer.parse(m), Task()) for m in ("attention", "128x2", "32x8"))
    assert isinstance(attention.sublayers[0].f, GlobalAttention)
    assert tuple(single.sublayers[0].f.w0.shape) == (1, 128, 256)  # type: ignore[union-attr]
    assert tuple(heads.sublayers[0].f.w0.shape) == (4, 32, 256)  # type: ignore[union-attr]
    assert isinstance(heads.sublayers[2].f, FastWeightLayer)
    assert str(Mixer.parse("32x8")) == "fast weights, 4 heads of 32, hidden 256"
    for wrong in ("rnn", "32", "x8", "32x"):
        with pytest.raises(UserError, match="--mixers"):
            Mixer.parse(wrong)


def test_attention_learns_it_soon() -> None:
    torch.set_num_threads(1)
    errors = train(Mixer(), Task(views=4, points=8), 160, 2e-3, 0, Bars())
    assert errors[0] > 0.9 and errors[-1] < 0.5


def test_the_table_and_what_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "matching.md"
    small = ["--points", "4", "--views", "2", "--steps", "4", "--seeds", "0", "1", "-o", str(output)]
    assert matching.main(["--mixers", "attention", "32x2", *small]) == 0
    text = capsys.readouterr().out
    assert output.read_text() == text
    assert "| attention, 4 heads of 32 | 65," in text and "| fast weights, 4 heads of 32, hidden 64 | " in text
    assert text.count("| 1 | ") == text.count("| 0 | ") == 2
    for wrong, message in (
        (["--steps", "3"], "--steps must be at least 4"),
        (["--learning-rate", "0"], "--learning-rate must be positive"),
        (["--views", "1"], "--views must be at least 2"),
        (["--mixers", "rnn"], "neither 'attention' nor"),
        (["--mixers", "30x2", *small], "fast_weight_head must divide the width 128"),
    ):
        assert matching.main(wrong) == 2
        assert message in capsys.readouterr().err
