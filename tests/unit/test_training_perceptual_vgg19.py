"""The perceptual loss on VGG-19, with random weights in torchvision's layout: the true ones were not tried."""

from __future__ import annotations

import copy
import csv
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tests.training_cases import make_settings
from tttlrm.checkpoints import digest
from tttlrm.errors import UserError
from tttlrm.training import export
from tttlrm.training.__main__ import compose
from tttlrm.training.checkpoint import CHECKPOINT
from tttlrm.training.groups import Processes
from tttlrm.training.perceptual import Vgg19Loss, load_perceptual_loss
from tttlrm.training.settings import TrainingSettings
from tttlrm.training.trainer import Trainer
from tttlrm.training.vgg import read_vgg19

CPU = torch.device("cpu")


def layers() -> nn.Sequential:
    """As torchvision's ``vgg19().features``: the layers' places are the numbers in the names of the weights."""
    modules: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        modules.append(nn.MaxPool2d(2))
    return nn.Sequential(*modules)


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = layers().requires_grad_(False)
        for layer in made:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.normal_(layer.bias, std=0.1)
    return made


@pytest.fixture(scope="module")
def state(network: nn.Sequential) -> dict[str, Tensor]:
    """With what else such a file has."""
    features = {f"features.{name}": tensor for name, tensor in network.state_dict().items()}
    return OrderedDict(features | {"classifier.0.weight": torch.ones(3, 3)})


@pytest.fixture(scope="module")
def file(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg19") / "vgg19.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def loss(file: Path) -> Vgg19Loss:
    loaded = load_perceptual_loss("vgg19", file, CPU, torch.float64)
    assert isinstance(loaded, Vgg19Loss)
    return loaded


def images(size: int = 32) -> tuple[Tensor, Tensor]:
    """Two pairs; some of the first's values are outside [0, 1], as renderings may be."""
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(2, 3, size, size, generator=generator, dtype=torch.float64)
    return target + 0.2 * torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64), target


def expected_distance(network: nn.Sequential, predicted: Tensor, target: Tensor) -> Tensor:
    """With torchvision's layers, of which 3, 8, 13, 22 and 31 are the ReLU after conv1_2, ..., conv5_2."""
    factors = {3: 1 / 2.6, 8: 1 / 4.8, 13: 1 / 3.7, 22: 1 / 5.6, 31: 10 / 1.5}
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    spread = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    total = (predicted - target).abs().flatten(1).mean(1)
    x, y = (predicted - mean) / spread, (target - mean) / spread
    for place, layer in enumerate(network):
        x, y = layer(x), layer(y)
        if place in factors:
            total = total + float(spread.mean()) * factors[place] * (x - y).abs().flatten(1).mean(1)
    return total


def test_equals_the_sum_over_torchvisions_layers(loss: Vgg19Loss, network: nn.Sequential, file: Path) -> None:
    predicted, target = images()
    expected = expected_distance(copy.deepcopy(network).double(), predicted, target)
    assert torch.allclose(loss(predicted, target), expected, rtol=1e-6)
    rounded = load_perceptual_loss("vgg19", file, CPU, torch.bfloat16)(predicted.float(), target.float())
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded.double(), expected, rtol=0.02)


def test_equal_images_have_no_distance(loss: Vgg19Loss) -> None:
    same = images()[0].requires_grad_()
    distance = loss(same, same.detach().clone())
    assert distance.tolist() == [0, 0]
    distance.sum().backward()
    assert same.grad is not None and bool((same.grad == 0).all())


def test_the_gradient_flows_to_the_first_image_and_is_that_of_finite_differences(loss: Vgg19Loss) -> None:
    """In float64. The function has kinks, which steps of 1e-6 seldom meet."""
    predicted, target = (image[:1].requires_grad_() for image in images(16))
    loss(predicted, target).sum().backward()
    assert target.grad is None and predicted.grad is not None
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        direction = torch.randn(predicted.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ends = [float(loss(predicted + step * direction, target)) for step in (1e-6, -1e-6)]
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((predicted.grad * direction).sum()), rel=1e-3)
    assert all(not tensor.requires_grad for tensor in loss.buffers())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_every_kind_of_file_gives_the_same(state: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {key: tensor.to(dtype) for key, tensor in state.items()}
    paths = [tmp_path / name for name in ("a.pth", "old.pt", "a.safetensors")]
    torch.save(stored, paths[0])
    torch.save(stored, paths[1], _use_new_zipfile_serialization=False)  # as torchvision's own file is
    safetensors.torch.save_file(stored, paths[2])
    for path in paths:
        convolutions = read_vgg19(path)
        assert len(convolutions) == 16
        for index, place in enumerate((0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)):
            for part, name in ((convolutions[index].kernel, "weight"), (convolutions[index].bias, "bias")):
                assert part.dtype == torch.float32
                assert torch.equal(part, stored[f"features.{place}.{name}"].float())


def test_vgg19_without_a_file_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match="torchvision's vgg19 weights, as a .pth, .pt or .safetensors file") as error:
        load_perceptual_loss("vgg19", None, CPU, torch.float32)
    assert "perceptual_features=vgg16" in str(error.value) and "set to 0" in str(error.value)


class Code:
    """Pickled, it asks for a function to be called."""

    def __reduce__(self) -> Any:
        return print, ("executed",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing.pth", None, "no such file"),
        ("text.pth", b"some text", "not a readable"),
        ("empty.pt", b"", "not a readable"),
        ("cut.pth", b"PK\x03\x04 broken", "not a readable"),
        ("text.safetensors", b"some text", "not a readable safetensors file"),
        ("code.pth", Code(), "holds something other than tensors"),
        ("list.pth", [torch.ones(3)], "does not hold tensors by name"),
    ],
)
def test_what_is_no_file_of_tensors_is_named(
    tmp_path: Path, name: str, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        read_vgg19(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_a_file_is_not_taken_for_the_folder_of_lpips(tmp_path: Path) -> None:
    (tmp_path / "vgg19.pth").write_bytes(b"")
    with pytest.raises(UserError, match="vgg19.pth: is a file; .* a file of VGG-19's is for perceptual_features=vgg19"):
        load_perceptual_loss("vgg16", tmp_path / "vgg19.pth", CPU, torch.float32)


def test_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: is a folder; perceptual_features=vgg19 needs torchvision's"):
        read_vgg19(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("features.16.weight", None, "has no features.16.weight"),
        ("features.0.bias", torch.zeros(1, 64), r"features.0.bias must have the shape \[64\], not \[1, 64\]"),
        ("features.2.weight", torch.zeros(64, 3, 3, 3), r"features.2.weight must have the shape \[64, 64, 3, 3\]"),
        ("features.5.bias", torch.full((128,), torch.nan), "features.5.bias has values that are not finite"),
        ("features.5.bias", torch.full((128,), 1e300, dtype=torch.float64), "features.5.bias has values that are not"),
        ("features.7.bias", torch.zeros(128, dtype=torch.int64), "features.7.bias must be a plain tensor of floating"),
        ("features.7.bias", torch.zeros(128, device="meta"), "features.7.bias must be a plain tensor of floating"),
        ("features.7.bias", torch.zeros(128).to_sparse(), "features.7.bias must be a plain tensor of floating"),
        ("features.7.bias", "zero", "features.7.bias must be a tensor, not of type str"),
    ],
)
def test_a_wrong_tensor_is_named(state: dict[str, Tensor], tmp_path: Path, key: str, value: Any, message: str) -> None:
    changed: dict[str, Any] = {**state, key: value}
    if value is None:
        del changed[key]
    torch.save(changed, tmp_path / "vgg19.pth")
    with pytest.raises(UserError, match=message) as error:
        read_vgg19(tmp_path / "vgg19.pth")
    assert str(tmp_path / "vgg19.pth") in str(error.value)


def test_a_safetensors_file_of_another_network_is_named(tmp_path: Path) -> None:
    safetensors.torch.save_file({"classifier.0.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="other.safetensors: has no features.0.weight"):
        read_vgg19(tmp_path / "other.safetensors")


def test_the_default_is_vgg16() -> None:
    assert compose(["stage=tiny-object", "output=out"]).perceptual_features == "vgg16"
    chosen = compose(["stage=tiny-object", "output=out", "perceptual_features=vgg19", "perceptual_weights=vgg19.pth"])
    assert (chosen.perceptual_features, chosen.perceptual_weights) == ("vgg19", Path("vgg19.pth"))
    assert TrainingSettings.from_dict(chosen.to_dict()) == chosen
    with pytest.raises(UserError, match="perceptual_features must be one of vgg16, vgg19, not 'vgg11'"):
        compose(["stage=tiny-object", "output=out", "perceptual_features=vgg11"])


def trainer(output: Path, **changes: Any) -> Trainer:
    command = f"python -m tttlrm.training 'perceptual_weights={changes.get('perceptual_weights')}' seed=0"
    return Trainer(make_settings(output, **changes), Processes(), CPU, command)


def test_a_run_trains_with_it_and_its_card_does_not_say_where_the_file_is(file: Path, tmp_path: Path) -> None:
    phase = {"size": [16, 16], "scenes": 1, "views": [2], "learning_rate": 1e-3, "steps": 2}
    changes = {"loss": {"perceptual": 0.5}, "perceptual_features": "vgg19", "phases": [phase]}
    run = trainer(tmp_path / "run", perceptual_weights=str(file), **changes)
    assert run.run()
    rows = list(csv.DictReader((tmp_path / "run" / "curve.csv").open()))
    assert len(rows) == 1 and float(rows[0]["perceptual"]) > 0 and float(rows[0]["gradient_norm"]) > 0

    exported = export.export(tmp_path / "run", tmp_path / "out")
    card = json.loads(exported.with_suffix(".json").read_text())
    assert card["settings"]["perceptual_features"] == "vgg19"
    assert card["command"] == "python -m tttlrm.training perceptual_weights=vgg19.pth seed=0"
    assert card["settings"]["perceptual_weights"] == "vgg19.pth"
    assert card["perceptual_weights_sha256"] == digest(file)
    assert (
        f"- perceptual loss of VGG-19 with weights of sha256 `{digest(file)}`"
        in exported.with_suffix(".md").read_text()
    )
    for made in (tmp_path / "out").iterdir():
        assert str(file.parent).encode() not in made.read_bytes()
        assert str(tmp_path).encode() not in made.read_bytes()

    moved = file.rename(tmp_path / "moved.pth")
    try:
        assert trainer(tmp_path / "run", perceptual_weights=str(moved), **changes).position.step == 2
    finally:
        moved.rename(file)
    with pytest.raises(UserError, match="vgg19.pth: no such file"):
        trainer(tmp_path / "run", perceptual_weights=str(tmp_path / "vgg19.pth"), **changes)
    other = tmp_path / "other.pth"
    torch.save({key: 2 * tensor for key, tensor in torch.load(file, weights_only=True).items()}, other)
    with pytest.raises(UserError, match="other.pth: are other perceptual weights than those that the run began with"):
        trainer(tmp_path / "run", perceptual_weights=str(other), **changes)
    with pytest.raises(UserError, match="perceptual_features=vgg19 has no weights"):
        trainer(tmp_path / "run", **changes)
    with pytest.raises(UserError, match="started with perceptual_features=vgg19, not vgg16"):
        trainer(tmp_path / "run", **{**changes, "perceptual_features": "vgg16"})


def test_without_a_perceptual_term_no_file_is_needed(tmp_path: Path) -> None:
    assert trainer(tmp_path, perceptual_features="vgg19").perceptual is None


def test_a_checkpoint_from_before_there_was_a_choice_goes_on_as_vgg16(tmp_path: Path) -> None:
    assert not trainer(tmp_path, budget={"stop_after_seconds": 1e-6}).run()
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["settings"].pop("perceptual_features") == "vgg16"
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match="started with perceptual_features=vgg16, not vgg19"):
        trainer(tmp_path, perceptual_features="vgg19")
    again = trainer(tmp_path)
    assert again.position.step == 1
    assert again.run()

    torch.save({**state, "settings": {**state["settings"], "of_later": 1}}, tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match=f"{CHECKPOINT}: settings: unknown key of_later"):
        trainer(tmp_path)
