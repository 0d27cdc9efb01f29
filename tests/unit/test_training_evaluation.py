"""Baselines, figures with intervals, and the commands that evaluate and export a trained model."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training_cases import make_batch, make_settings
from tttlrm.checkpoints import digest, load_model, save_model
from tttlrm.errors import CheckpointError, UserError
from tttlrm.model import TTTLRM
from tttlrm.scenes.procedural import ProceduralSpec, write_scene
from tttlrm.training import evaluate, export
from tttlrm.training.baselines import mean_color, nearest_view
from tttlrm.training.data import TrainingBatch
from tttlrm.training.figures import Figure, bootstrap, results, to_markdown
from tttlrm.training.groups import Processes
from tttlrm.training.settings import Phase
from tttlrm.training.trained import find_trained
from tttlrm.training.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    phase = {"size": [16, 16], "scenes": 2, "views": [2], "learning_rate": 1e-3, "steps": 2}
    settings = make_settings(folder, stage="tiny-object", phases=[phase])
    assert Trainer(settings, Processes(), torch.device("cpu"), "the command").run()
    return folder


def test_baselines() -> None:
    batch = make_batch(torch.float32, num_inputs=4, num_targets=3)
    inputs, targets = batch.inputs, batch.targets
    color = mean_color(inputs, targets)
    assert color.shape == targets.images.shape
    assert torch.allclose(color[1, 2, :, 3, 4], inputs.images[1].mean(dim=(0, 2, 3)))
    # The cameras stand on a circle in order: targets 4, 5, 6 of 7 are nearest to inputs 3, 3 or 0, and 0.
    nearest = nearest_view(inputs, targets)
    assert torch.equal(nearest[0, 0], inputs.images[0, 3])
    assert torch.equal(nearest[0, 2], inputs.images[0, 0])
    single = nearest_view(inputs.select(range(1)), targets)
    assert torch.equal(single[:, 1], inputs.images[:, 0])
    assert torch.equal(nearest_view(inputs, inputs), inputs.images)


def record(model: str, views: int, psnr: list[float], baseline: float = 10.0, name: str = "object") -> dict[str, Any]:
    units = [
        {"index": i, "psnr": value, "ssim": 0.5, "lpips": None, "depth_error": 0.1}
        | {"mean_color": baseline, "nearest_view": baseline - 1}
        for i, value in enumerate(psnr)
    ]
    return {"model": model, "data": {"name": name}, "views": views, "size": [128, 128], "units": units}


def test_figures() -> None:
    records = [
        record("a", 8, [22.0, 24.0, 23.0]),
        record("a", 4, [21.0, 23.5, 22.0]),
        record("b", 8, [23.0, 25.0, 24.0]),
    ]
    figures = (
        Figure("a", "object", 8, 11, 15),
        Figure("a", "object", 8, 0, 1, other="a", other_views=4, beyond_interval=True),
        Figure("a", "object", 8, -0.3, 1, other="b"),
        Figure("a", "object", 16, 11, 15),
    )
    gain, step, against, absent = (result for _, result in results(records, figures))
    assert gain is not None and step is not None and against is not None and absent is None
    assert (gain.value, gain.verdict, gain.count) == (13.0, "reached", 3)
    assert gain.low < 13 < gain.high
    assert (step.value, step.verdict) == (pytest.approx(2.5 / 3), "reached")
    assert (against.value, against.low, against.high, against.verdict) == (-1.0, -1.0, -1.0, "missed")


def test_a_gain_within_the_interval_is_missed() -> None:
    records = [record("a", 8, [10.0, 12.0, 10.1]), record("a", 4, [10.5, 10.0, 10.0])]
    figure = Figure("a", "object", 8, 0, 1, other="a", other_views=4, beyond_interval=True)
    result = results(records, (figure,))[0][1]
    assert result is not None and result.value > 0 > result.low and result.verdict == "missed"


def test_records_of_other_scenes_or_sizes_are_not_compared() -> None:
    figure = Figure("a", "object", 8, 0, 1, other="b")
    other_size = record("b", 8, [20.0]) | {"size": [64, 64]}
    for second in (record("b", 8, [20.0, 21.0]), other_size):
        assert results([record("a", 8, [22.0]), second], (figure,))[0][1] is None


def test_bootstrap_covers_the_mean_and_repeats() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).tolist()
    value, low, high = bootstrap(values)
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.96 * torch.tensor(values).std().item() / 50**0.5, rel=0.15)
    assert bootstrap(values) == (value, low, high)


def test_markdown_leaves_nothing_blank() -> None:
    text = to_markdown([record("tiny-object", 8, [22.0, 23.0])])
    assert "| tiny-object on object, 8 views: gain over the better trivial prediction | +12.50 [+12.00, +13.00]" in text
    assert "not run" in text
    assert (
        "| tiny-object | object | 8 | 128x128 | 2 | 22.50 [22.00, 23.00] | 0.500 | - | 0.100 | 10.00 | 9.00 |" in text
    )


def test_evaluate_and_export(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scene(ProceduralSpec("object", split="test"), 3, tmp_path / "capture", 12, (16, 16))
    options = ["--views", "2", "--scenes", "2", "--targets", "2", "--size", "16", "--no-lpips", "--device", "cpu"]
    capture = ["--capture", f"object={tmp_path / 'capture'}", "--capture", f"room={tmp_path / 'unused'}"]
    assert evaluate.main([str(run), "-o", str(tmp_path / "results"), *options, *capture]) == 0
    assert "| tiny-object | object | 2 | 16x16 | 2 |" in capsys.readouterr().out
    found = json.loads((tmp_path / "results" / "tiny-object-object-2views.json").read_text())
    assert found["weights_sha256"] == digest(run / "weights.safetensors")
    assert [unit["index"] for unit in found["units"]] == [0, 1]
    assert all(0 < unit["depth_error"] <= 1 and unit["lpips"] is None for unit in found["units"])
    assert len(list((tmp_path / "results").glob("*.json"))) == 2

    assert export.main([str(run), "-o", str(tmp_path / "out"), "--records", str(tmp_path / "results")]) == 0
    exported = tmp_path / "out" / "tiny-object.safetensors"
    model = load_model(exported)
    for name, parameter in load_model(run / "weights.safetensors").named_parameters():
        assert torch.equal(model.get_parameter(name), parameter.bfloat16().float())
    card = json.loads(exported.with_suffix(".json").read_text())
    assert card["weights_sha256"] == digest(exported)
    text = exported.with_suffix(".md").read_text()
    for part in ("# tiny-object", "the command", card["weights_sha256"], "## Results", "## Limits", "16x16"):
        assert part in text
    # A card does not say where the run was.
    assert find_trained(exported).settings == dataclasses.replace(find_trained(run).settings, output=Path(run.name))
    assert str(run.parent) not in text + exported.with_suffix(".json").read_text()


def test_a_card_names_the_runs_before_its_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([str(run), "-o", str(tmp_path / "first")]) == 0
    first = tmp_path / "first" / "tiny-object.safetensors"
    later = tmp_path / "later"
    later.mkdir()
    shutil.copy(first, later)
    card = json.loads(first.with_suffix(".json").read_text())
    began = card | {
        "initial_weights_sha256": card["weights_sha256"],
        "command": "the later command",
        "commit": "c0ffee-dirty",
    }
    (later / "tiny-object.json").write_text(json.dumps(began))

    options = ["-o", str(tmp_path / "out"), "--before", str(first.with_suffix(".json")), "--became", "c0de"]
    assert export.main([str(later / "tiny-object.safetensors"), *options]) == 0
    exported = tmp_path / "out" / "tiny-object.safetensors"
    assert exported.read_bytes() == first.read_bytes()
    text = exported.with_suffix(".md").read_text()
    assert "- command: `the later command`" in text and "- commit: c0ffee-dirty, whose changes became c0de;" in text
    assert f"- before: `the command` at commit {card['commit'] or 'not recorded'}: {card['steps']:,} steps" in text
    assert f"- in all: {2 * card['steps']:,} steps" in text
    assert json.loads(exported.with_suffix(".json").read_text())["before"]["settings"] == card["settings"]

    # Or it began with the run's own weights, before they were exported.
    beside = began | {"initial_weights_sha256": card["run_weights_sha256"]}
    (later / "tiny-object.json").write_text(json.dumps(beside))
    assert export.main([str(later / "tiny-object.safetensors"), *options]) == 0

    capsys.readouterr()
    assert export.main([str(first), "-o", str(tmp_path / "none"), *options[2:]]) == 2
    assert "is of other weights than those that the run began with" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_run_that_has_not_ended_is_exported_as_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = make_settings(tmp_path / "run", stage="tiny-object", report={"checkpoint_every": 4, "log_every": 1})
    unfinished = Trainer(settings, Processes(), torch.device("cpu"), "the command")
    kept: dict[str, torch.Tensor] = {}

    def interrupted(step: int, phase: Phase) -> TrainingBatch:
        """After a checkpoint, and before the next one."""
        if step == 4:
            kept.update({name: mean.clone() for name, mean in unfinished.flat.named(unfinished.optimizer.mean).items()})
        if step == 5:
            raise KeyboardInterrupt
        return batch(step, phase)

    with pytest.MonkeyPatch.context() as patch:
        batch = unfinished.data.batch
        patch.setattr(unfinished.data, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            unfinished.run()

    with (tmp_path / "run" / "curve.csv").open("a") as curve:
        curve.write("4,")  # as of a row that is being written
    options = [str(tmp_path / "run"), "-o", str(tmp_path / "out")]
    assert export.main(options) == 2
    assert "not a complete training run" in capsys.readouterr().err
    assert export.main([*options, "--unfinished"]) == 0
    exported = tmp_path / "out" / "tiny-object.safetensors"
    for name, parameter in load_model(exported).named_parameters():
        assert torch.equal(parameter, kept[name].bfloat16().float()), name
    text = exported.with_suffix(".md").read_text()
    assert "- command: `the command`" in text and "stopped at 67% of its schedule" in text
    curve_of_card = json.loads(exported.with_suffix(".json").read_text())["curve"]
    assert [row["step"] for row in curve_of_card] == ["1", "2", "3", "4"]

    assert export.main([str(tmp_path / "out"), "-o", str(tmp_path / "none"), "--unfinished"]) == 2
    assert "has no checkpoint.pt of a training run" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("output=/home/me/runs/x", "output=x"),
        ("output=/home/me/runs/x/", "output=x"),
        ("output=/runs", "output=runs"),
        ("\"output='/home/me/r (1)/x'\"", "\"output='x'\""),
        ("+perceptual_weights=/home/me/vgg19.pth", "+perceptual_weights=vgg19.pth"),
        ("initial_weights=../me/w.safetensors", "initial_weights=w.safetensors"),
        ("initial_weights=~/w.safetensors", "initial_weights=w.safetensors"),
        ("--config-dir /home/me/conf", "--config-dir conf"),
        ("output=runs/x 'phases=[{size: [8,8], views: [2]}]'", "output=runs/x 'phases=[{size: [8,8], views: [2]}]'"),
    ],
)
def test_cards_have_no_folders_of_a_users(run: Path, tmp_path: Path, typed: str, kept: str) -> None:
    """Nor has what a later card says of an earlier one, whatever version that is of."""
    assert export.main([str(run), "-o", str(tmp_path / "first")]) == 0
    first, later = (tmp_path / name / "tiny-object.safetensors" for name in ("first", "later"))
    card = json.loads(first.with_suffix(".json").read_text())
    card |= {"command": f"python -m tttlrm.training {typed}"}
    card["settings"] |= {"output": "/home/me/runs/x", "initial_weights": "/home/me/w.safetensors"}
    oldest = {key: card[key] for key in ("command", "commit", "steps", "seconds", "weights_sha256")}
    first.with_suffix(".json").write_text(json.dumps(card | {"before": oldest, "perceptual_weights_sha256": "0ff"}))
    later.parent.mkdir()
    shutil.copy(first, later)
    later.with_suffix(".json").write_text(json.dumps(card | {"initial_weights_sha256": card["weights_sha256"]}))

    options = ["-o", str(tmp_path / "out"), "--before", str(first.with_suffix(".json"))]
    assert export.main([str(later), *options]) == 0
    made = json.loads((tmp_path / "out" / "tiny-object.json").read_text())
    history = [made, made["before"], made["before"]["before"]]
    commands = [shlex.split(entry["command"]) for entry in history]
    assert commands == [shlex.split(f"python -m tttlrm.training {kept}")] * 3
    for entry in history[:2]:
        assert (entry["settings"]["output"], entry["settings"]["initial_weights"]) == ("x", "w.safetensors")
    text = (tmp_path / "out" / "tiny-object.md").read_text()
    assert "perceptual loss of VGG-19 with weights of sha256 `0ff`" in text and "/me" not in text + json.dumps(made)


def test_a_command_that_is_no_shells_is_an_error(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([str(run), "-o", str(tmp_path / "first")]) == 0
    path = tmp_path / "first" / "tiny-object.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"command": "the author's"}))
    assert export.main([str(path.with_suffix(".safetensors")), "-o", str(tmp_path / "out")]) == 2
    assert "the run's command is not a shell's (No closing quotation): the author's" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_records_of_the_weights_nothing_is_exported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(run), "-o", str(tmp_path / "out"), "--records", str(tmp_path)]) == 2
    assert "has no evaluation records of tiny-object with these weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_mean_of_two_models(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([str(run), "-o", str(tmp_path / "one")]) == 0
    one, two = (tmp_path / name / "tiny-object.safetensors" for name in ("one", "two"))
    other = load_model(one)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    two.parent.mkdir()
    save_model(other, two, torch.bfloat16)
    card = json.loads(one.with_suffix(".json").read_text())
    two.with_suffix(".json").write_text(json.dumps(card | {"weights_sha256": digest(two)}))

    assert export.main([str(two), "-o", str(tmp_path / "mean"), "--mean-with", str(one)]) == 0
    mean = load_model(tmp_path / "mean" / "tiny-object.safetensors")
    for name, parameter in load_model(one).named_parameters():
        expected = (parameter + load_model(two).get_parameter(name)) / 2
        torch.testing.assert_close(mean.get_parameter(name), expected.bfloat16().float(), rtol=0, atol=0)
    made = json.loads((tmp_path / "mean" / "tiny-object.json").read_text())
    assert made["mean_of"] == [digest(one), digest(two)]
    text = (tmp_path / "mean" / "tiny-object.md").read_text()
    assert f"- mean of two models' weights, sha256 `{digest(one)}` and `{digest(two)}`" in text

    later = one.with_suffix(".json")
    later.write_text(json.dumps(card | {"initial_weights_sha256": made["weights_sha256"]}))
    before = ["--before", str(tmp_path / "mean" / "tiny-object.json")]
    assert export.main([str(one), "-o", str(tmp_path / "later"), *before]) == 0
    text = (tmp_path / "later" / "tiny-object.md").read_text()
    parts = f"`{digest(one)}` and `{digest(two)}`"
    assert f"to weights of sha256 `{made['weights_sha256']}`, mean of two models' weights, sha256 {parts}\n" in text

    wide = tmp_path / "wide" / "tiny-object.safetensors"
    wide.parent.mkdir()
    save_model(TTTLRM(dataclasses.replace(other.config, mlp_expansion=2)), wide)
    wide.with_suffix(".json").write_text(json.dumps(card | {"weights_sha256": digest(wide)}))
    assert export.main([str(one), "-o", str(tmp_path / "no"), "--mean-with", str(wide)]) == 2
    assert "models of different shapes have no mean" in capsys.readouterr().err


def test_a_card_says_that_its_run_was_stopped(run: Path, tmp_path: Path) -> None:
    assert export.main([str(run), "-o", str(tmp_path)]) == 0
    exported = tmp_path / "tiny-object.safetensors"
    card = json.loads(exported.with_suffix(".json").read_text())
    assert "stopped at" not in exported.with_suffix(".md").read_text()
    exported.with_suffix(".json").write_text(json.dumps(card | {"steps": card["steps"] // 2}))
    assert export.main([str(exported), "-o", str(tmp_path)]) == 0
    assert "- stopped at 50% of its schedule" in exported.with_suffix(".md").read_text()


def test_export_refuses_a_file_that_is_too_large(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([str(run), "-o", str(tmp_path / "out"), "--max-megabytes", "0.01"]) == 2
    assert "more than 0.01 MB" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_that_were_exchanged_are_refused(run: Path, tmp_path: Path) -> None:
    for name in ("summary.json", "weights.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    assert find_trained(tmp_path).name == "tiny-object"
    with (tmp_path / "weights.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckpointError, match="these are not the weights"):
        find_trained(tmp_path)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(UserError, match=r"because summary\.json is missing"):
        find_trained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "-o", "out"], "not a complete training run"),
        (["RUN", "-o", "OUT", "--capture", "car=x", "--no-lpips"], "--capture must be object=FOLDER"),
        (["RUN", "-o", "OUT", "--scenes", "0", "--no-lpips"], "--scenes must be at least 1, not 0"),
        (["RUN", "-o", "OUT", "--views", "31", "--no-lpips", "--device", "cpu"], "too few for 31 inputs"),
    ],
)
def test_evaluate_names_mistakes(
    run: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN": str(run), "OUT": str(tmp_path / "out")}
    assert evaluate.main([places.get(argument, argument) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
