"""Checkpoints: both formats, exact round trips, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.model_cases import load_case
from tttlrm.checkpoints import digest, load_model, save_model
from tttlrm.config import ModelConfig
from tttlrm.errors import CheckpointError
from tttlrm.model import TTTLRM

CASE = load_case("full")


def save_pickle(path: Path, state: dict, **more: object) -> Path:
    torch.save({"model": state, **more}, path)
    return path


def test_round_trip(tmp_path: Path) -> None:
    model = CASE.model()
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.config == CASE.config
    for (name, a), (_, b) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(model(CASE.scene()).sh, loaded(CASE.scene()).sh)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_half_precision_file_and_load(tmp_path: Path) -> None:
    save_model(CASE.model(), tmp_path / "whole.safetensors")
    save_model(CASE.model(), tmp_path / "half.safetensors", torch.bfloat16)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "whole.safetensors").stat().st_size
    loaded = load_model(tmp_path / "half.safetensors", dtype=torch.float64)
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}


def test_published_format_without_training_only_keys(tmp_path: Path) -> None:
    extra = {"perceptual_loss_module.vgg.0.weight": torch.zeros(3), "depth_anything.head.bias": torch.zeros(1)}
    path = save_pickle(tmp_path / "model.pt", CASE.state | extra, config=CASE.config.to_dict())
    assert torch.equal(load_model(path)(CASE.scene()).sh, CASE.model()(CASE.scene()).sh)


def test_old_pickle_format(tmp_path: Path) -> None:
    torch.save({"model": CASE.state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert load_model(tmp_path / "old.pt", config=CASE.config).config == CASE.config


def test_file_without_configuration_is_taken_as_released(tmp_path: Path) -> None:
    path = save_pickle(tmp_path / "model.pt", CASE.state)
    assert load_model(path, config=CASE.config).config == CASE.config
    with pytest.raises(CheckpointError, match=r"374 missing: blocks\.10.*36 of another shape: blocks\.0"):
        load_model(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_every_mismatch_is_listed(tmp_path: Path, suffix: str) -> None:
    state = dict(CASE.state)
    del state["input_layernorm.weight"]
    state["surprise.weight"] = torch.zeros(2)
    state["decoder.0.weight"] = torch.zeros(47)
    state["blocks.0.module_list.0.ln.weight"] = torch.zeros(48, dtype=torch.int64)
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        save_pickle(path, state)
    else:
        safetensors.torch.save_file(state, path)
    with pytest.raises(CheckpointError) as error:
        load_model(path, config=CASE.config)
    for part in (
        str(path),
        "1 missing: input_layernorm.weight",
        "1 extra: surprise.weight",
        "decoder.0.weight [47] instead of [48]",
        "blocks.0.module_list.0.ln.weight (torch.int64)",
    ):
        assert part in str(error.value)


def test_parameters_must_be_finite(tmp_path: Path) -> None:
    state = dict(CASE.state)
    state["decoder.1.weight"] = state["decoder.1.weight"].clone()
    state["decoder.1.weight"][3, 4] = float("nan")
    with pytest.raises(CheckpointError, match=r"1 not finite: decoder\.1\.weight"):
        load_model(save_pickle(tmp_path / "model.pt", state), config=CASE.config)


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("new_format", [True, False])
def test_pickled_code_is_not_run(tmp_path: Path, new_format: bool) -> None:
    marker = tmp_path / "was_run"
    content = {"model": {**CASE.state, "x": Hostile(marker)}}
    torch.save(content, tmp_path / "bad.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match="bad.pt: refused"):
        load_model(tmp_path / "bad.pt")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"PK\x03\x04 not a zip file", b"text"])
def test_unreadable_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_model(tmp_path / name)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_truncated_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".pt"):
        save_pickle(path, CASE.state)
    else:
        save_model(CASE.model(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=name):
        load_model(path, config=None if name.endswith("s") else CASE.config)


def test_other_content(tmp_path: Path) -> None:
    for number, content in enumerate(([1, 2], {"weights": {}}, {"model": {"a": 3}}, {"model": torch.zeros(2)})):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(CheckpointError, match=r'form {"model": parameters}'):
            load_model(tmp_path / f"{number}.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(print))
    with pytest.raises(CheckpointError, match=r"plain\.pt"):
        load_model(tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_model(tmp_path / "absent.pt")


@pytest.mark.parametrize("config", ["{}}", json.dumps({"depth": 2}), json.dumps({"width": "wide"}), "[1]"])
def test_wrong_configuration_in_the_file(tmp_path: Path, config: str) -> None:
    safetensors.torch.save_file(CASE.state, tmp_path / "m.safetensors", {"config": config})
    with pytest.raises(CheckpointError, match="its model configuration is not valid"):
        load_model(tmp_path / "m.safetensors")


def test_the_same_model_makes_the_same_file(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for path in paths:
        save_model(CASE.model(), path)
    assert len({digest(path) for path in paths}) == 1


def test_two_configurations(tmp_path: Path) -> None:
    save_model(CASE.model(), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="a configuration of its own"):
        load_model(tmp_path / "m.safetensors", config=ModelConfig())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save_model(CASE.model(), path)
    before = digest(path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(TTTLRM(CASE.config), path)
    assert digest(path) == before and os.listdir(tmp_path) == ["m.safetensors"]
