"""``python -m tttlrm.training.export RUN -o FOLDER``: a complete run's model as bf16 safetensors, with its card.

Writes ``NAME.safetensors``, ``NAME.json`` (the card for programs, with the sha256 of the weights) and ``NAME.md``.
RUN may also be an exported model, whose card is then made anew: with results, or with the runs before it. With
``--unfinished`` it is a run that has not ended, and the model is the running mean at its last checkpoint.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tttlrm.checkpoints import digest, load_model, save_model
from tttlrm.errors import UserError
from tttlrm.files import atomic_path, write_json, write_text
from tttlrm.training.figures import records_markdown
from tttlrm.training.progress import Plan, Position
from tttlrm.training.settings import TrainingSettings
from tttlrm.training.trained import TrainedModel, find_trained
from tttlrm.training.trainer import CURVE, VALIDATION
from tttlrm.training.unfinished import model_so_far

_CURVE_POINTS = 12
_PATHS = ("output", "initial_weights", "perceptual_weights")
"""Settings that are paths."""
_WORD = re.compile(r"""^((?:[^='"]*=)?)(['"]?)(.*?)\2$""", re.DOTALL)
"""Of a command: a key, if there is one, and a value, which may be in quotes of Hydra's."""
_EARLIER = ("command", "commit", "settings", "steps", "seconds", "weights_sha256", "initial_weights_sha256")
_EARLIER_IF_ANY = ("changes_became", "before", "mean_of", "perceptual_weights_sha256")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m tttlrm.training.export", description=__doc__)
    add = parser.add_argument
    add("run", type=Path, help="folder of a complete run, or an exported .safetensors file")
    add("-o", "--output", type=Path, required=True, help="folder that the three files are written to")
    add("--records", type=Path, help="folder of evaluation records, whose results the card then shows")
    add("--before", type=Path, help="card (.json) of the exported model whose weights the run began with")
    add("--mean-with", type=Path, help="exported model of the same shape: the weights become the mean of both")
    add("--unfinished", action="store_true", help="the model that the run has so far; the run may go on meanwhile")
    add("--became", help="the commit that local changes became, where the run says that there were some")
    add("--max-megabytes", type=float, default=16.0, help="refuse a larger file (MB of 10^6 bytes)")
    parsed = parser.parse_args(arguments)
    try:
        options = {key: value for key, value in vars(parsed).items() if key not in ("run", "output")}
        weights = export(parsed.run, parsed.output, **options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{weights}: sha256 {digest(weights)}, {weights.stat().st_size} bytes")
    return 0


def export(
    run: Path,
    output: Path,
    max_megabytes: float = 16.0,
    records: Path | None = None,
    before: Path | None = None,
    became: str | None = None,
    mean_with: Path | None = None,
    unfinished: bool = False,
) -> Path:
    """Write the model and its card, or nothing. Returns the path of the weights.

    Args:
        run: folder of a complete run, or an exported model.
        records: folder of evaluation records; those of the run's or the exported weights are shown in the card.
        before: card of the model whose weights the run began with.
        became: the commit that local changes to the run's code became.
        mean_with: exported model of the same shape; the result has the mean of both models' weights.
        unfinished: the running mean at the last checkpoint of a run that has not ended.
    """
    if not run.exists():
        raise UserError(f"{run}: no such run or file")
    with tempfile.TemporaryDirectory() as scratch:
        trained = model_so_far(run, Path(scratch)) if unfinished else find_trained(run)
        size = sum(parameter.numel() for parameter in load_model(trained.weights).parameters()) * 2
        if size > max_megabytes * 1e6:
            raise UserError(f"{run}: the model takes {size / 1e6:.1f} MB in bf16, more than {max_megabytes:g} MB")
        earlier = None if before is None else _earlier_run(before, trained.summary["initial_weights_sha256"])
        made = Path(scratch) / "exported.safetensors"
        if mean_with is None:
            _write_weights(trained.weights, made, exported=run.is_file())
            mean_of = {}
        else:
            parts = (find_trained(mean_with), trained)
            _write_mean(parts, made)
            mean_of = {"mean_of": [part.summary["weights_sha256"] for part in parts]}
        card = _card(trained, made, run) | mean_of
        if earlier is not None:
            card["before"] = earlier
        if became is not None:
            card["changes_became"] = became
        text = card_markdown(card, _records_of(card, records))
        output.mkdir(parents=True, exist_ok=True)
        weights = output / f"{trained.name}.safetensors"
        with atomic_path(weights) as partial:
            shutil.copyfile(made, partial)
        write_json(weights.with_suffix(".json"), card)
        write_text(weights.with_suffix(".md"), text)
        return weights


def _write_weights(source: Path, target: Path, exported: bool) -> None:
    """In bf16. Exported ones stay the same to the byte: the order of a file's metadata is chance."""
    if exported:
        shutil.copyfile(source, target)
    else:
        save_model(load_model(source), target, torch.bfloat16)


def _write_mean(parts: Sequence[TrainedModel], target: Path) -> None:
    """The mean of several models' weights, in bf16."""
    models = [load_model(part.weights) for part in parts]
    if len({model.config for model in models}) > 1:
        raise UserError(f"{' and '.join(str(part.weights) for part in parts)}: models of different shapes have no mean")
    with torch.no_grad():
        for parameters in zip(*(model.parameters() for model in models), strict=True):
            parameters[0].copy_(torch.stack(parameters).mean(0))
    save_model(models[0], target, torch.bfloat16)


def _card(trained: TrainedModel, weights: Path, run: Path) -> dict[str, Any]:
    summary = {key: value for key, value in _public(trained.summary).items() if key != "weights_sha256"}
    card = {
        "name": trained.name,
        "weights_sha256": digest(weights),
        "weights_bytes": weights.stat().st_size,
        "weights_dtype": "bfloat16",
    }
    if not run.is_dir():
        return summary | card
    return {
        **card,
        "run_weights_sha256": trained.summary["weights_sha256"],
        **summary,
        "curve": _thin(_rows_until(trained.summary["steps"], run / CURVE)),
        "validation_curve": _rows_until(trained.summary["steps"], run / VALIDATION),
    }


def _public(run: dict[str, Any]) -> dict[str, Any]:
    """A run, and those before it, without the folders that a user's files are in: they say nothing about the run."""
    settings, command, before = (run.get(key) for key in ("settings", "command", "before"))
    return run | {
        **({"settings": _public_settings(settings)} if settings else {}),
        **({"command": _public_command(command)} if command else {}),
        **({"before": _public(before)} if before else {}),
    }


def _public_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {key: _public_path(settings[key]) for key in _PATHS if settings.get(key)}


def _public_command(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"the run's command is not a shell's ({error}): {command}") from None
    return shlex.join(
        _WORD.sub(lambda found: found[1] + found[2] + _public_path(found[3]) + found[2], w) for w in words
    )


def _public_path(path: str) -> str:
    """The last part alone of a path that leads out of the working directory."""
    parts = Path(path).parts
    outside = parts[:1] == ("/",) or ".." in parts or path.startswith("~")
    return parts[-1] if outside else path


def _earlier_run(path: Path, weights_sha256: str | None) -> dict[str, Any]:
    """What a later card keeps of the card of the run before it.

    Raises:
        UserError: the card cannot be read, or is of other weights than those that the run began with.
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        earlier = {key: card[key] for key in _EARLIER}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a readable model card ({error})") from error
    if weights_sha256 not in (earlier["weights_sha256"], card.get("run_weights_sha256")):
        raise UserError(f"{path}: is of other weights than those that the run began with (sha256 differs)")
    return _public(earlier | {key: card[key] for key in _EARLIER_IF_ANY if card.get(key)})


def _history(card: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that led to a card's, the first one first, itself the last."""
    runs = [card]
    while runs[0].get("before"):
        runs.insert(0, runs[0]["before"])
    return runs


def _share_of_schedule(card: dict[str, Any]) -> float:
    """How much of its schedule a run went through, from 0 to 1."""
    settings = TrainingSettings.from_dict(card["settings"])
    return Plan(settings.phases, settings.budget).progress(Position(step=card["steps"], seconds=card["seconds"]))


def _part_of_schedule(run: dict[str, Any]) -> str:
    """For a run of the history; cards of before these were kept have no settings of theirs."""
    done = _share_of_schedule(run) if "settings" in run else 1
    return f" ({done:.0%} of its schedule)" if done < 1 else ""


def _mean(run: dict[str, Any]) -> list[str]:
    """What else went into a run's weights, if anything."""
    of = " and ".join(f"`{part}`" for part in run.get("mean_of") or [])
    return [f"mean of two models' weights, sha256 {of}"] if of else []


def _perceptual(run: dict[str, Any]) -> list[str]:
    """The weights of the perceptual loss, if they are not LPIPS'."""
    weights = run.get("perceptual_weights_sha256")
    return [f"perceptual loss of VGG-19 with weights of sha256 `{weights}`"] if weights else []


def _command(run: dict[str, Any]) -> str:
    return f"`{run['command']}`" if run["command"] else "not recorded"


def _commit(run: dict[str, Any]) -> str:
    became = f", whose changes became {run['changes_became']}" if run.get("changes_became") else ""
    return f"{run['commit'] or 'not recorded'}{became}"


def _records_of(card: dict[str, Any], folder: Path | None) -> list[dict[str, Any]]:
    if folder is None:
        return []
    files = sorted(folder.glob(f"{card['name']}-*views.json"))
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    digests = (card["weights_sha256"], card["run_weights_sha256"])
    own = [record for record in found if record["model"] == card["name"] and record["weights_sha256"] in digests]
    if not own:
        raise UserError(f"{folder}: has no evaluation records of {card['name']} with these weights")
    return own


def card_markdown(card: dict[str, Any], records: Sequence[dict[str, Any]]) -> str:
    """A model card for people, of its JSON and of evaluation records (of this model, if any)."""
    settings, environment = card["settings"], card["environment"]
    model, data = settings["model"], settings["data"]
    gpus = ", ".join(gpu["name"] for gpu in environment["gpus"]) or f"CPU ({environment['cpu']})"
    phases = "; ".join(
        f"{'x'.join(map(str, p['size']))}, {p['scenes']} scenes a step, {'/'.join(map(str, p['views']))} views"
        for p in settings["phases"]
    )
    lines = [
        f"# {card['name']}",
        "",
        f"A small tttLRM ({card['parameters']:,} parameters, mixer {model['mixer']}, width {model['width']}, "
        f"{model['blocks']} blocks, patch {model['patch']}), trained from nothing on procedural {data['kind']} scenes. "
        f"Schedule: {settings['schedule']['kind']}. Poses: {_POSES[data['poses']]}.",
        "",
        "## Training",
        "",
        f"- command: {_command(card)}",
        f"- commit: {_commit(card)}; seed {settings['seed']}, data seed {data['seed']}",
        f"- on {gpus}, torch {environment['torch']}: {card['steps']:,} steps in {card['seconds']:.0f} s; "
        f"{card['steps_not_finite']} steps skipped as not finite, {card['steps_too_long']} as too long",
        f"- phases: {phases}",
        f"- weights: {card['weights_bytes']:,} bytes, bf16, sha256 `{card['weights_sha256']}`",
    ]
    done = _share_of_schedule(card)
    if done < 1:
        lines.append(f"- stopped at {done:.0%} of its schedule: the weights are the running mean at that step")
    lines += [f"- {line}" for line in (*_mean(card), *_perceptual(card))]
    if card["initial_weights_sha256"]:
        lines.append(f"- fine-tuned from weights of sha256 `{card['initial_weights_sha256']}`")
    history = _history(card)
    lines += [
        f"- before: {_command(run)} at commit {_commit(run)}: {run['steps']:,} steps in {run['seconds']:.0f} s"
        f"{_part_of_schedule(run)}, to weights of sha256 "
        + ", ".join([f"`{run['weights_sha256']}`", *_mean(run), *_perceptual(run)])
        for run in history[:-1]
    ]
    if len(history) > 1:
        steps, seconds = (sum(run[key] for run in history) for key in ("steps", "seconds"))
        lines.append(f"- in all: {steps:,} steps in {seconds:.0f} s")
    lines += ["", "| step | seconds | loss | PSNR of targets (dB) |", "|---|---|---|---|"]
    lines += [
        f"| {row['step']} | {float(row['seconds']):.0f} | {row['loss']} | {row['psnr']} |" for row in card["curve"]
    ]
    lines += ["", "On validation scenes (mean of the weights over the last steps):", ""]
    lines += [
        "| step | size | views | PSNR (dB) | gain over the better trivial prediction (dB) |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['step']} | {row['height']}x{row['width']} | {row['views']} | {row['psnr']} | {row['gain']} |"
        for row in card["validation_curve"]
    ]
    if records:
        lines += ["", "## Results", "", *records_markdown(records).splitlines()]
    lines += ["", "## Limits", "", *(f"- {limit}" for limit in _limits(card))]
    return "\n".join(lines) + "\n"


_POSES = {
    "scene": "the scene's own frame, an object in [-1, 1]^3 seen from about 1.5 to 2.8 away",
    "mean": "normalised to the mean camera",
    "first": "normalised to the first camera",
}


def _limits(card: dict[str, Any]) -> list[str]:
    settings = card["settings"]
    sizes = sorted({"x".join(map(str, phase["size"])) for phase in settings["phases"]})
    views = sorted({count for phase in settings["phases"] for count in phase["views"]})
    model = settings["model"]
    return [
        f"{'In its last run it saw' if card.get('before') else 'It has seen'} images of {', '.join(sizes)} pixels and "
        f"{', '.join(map(str, views))} input views only; other sizes and numbers work, and are worse.",
        "It has seen procedural scenes only. On photographs expect blur and wrong geometry, the more they differ.",
        f"Surfaces nearer than {model['near']:g} or farther than {model['far']:g} (in the units of the poses) "
        "cannot be placed.",
        "It is far smaller than the published model, whose quality it says nothing about.",
    ]


def _thin(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """About a dozen rows, the last among them."""
    step = max(1, len(rows) // _CURVE_POINTS)
    return rows[::-1][::step][::-1]


def _rows_until(step: int, path: Path) -> list[dict[str, str]]:
    """Those that a run wrote up to a step: one that goes on has written more."""
    if not path.is_file():
        raise UserError(f"{path}: missing; the card needs the run's curve")
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # the last line may be half written
    return [row for row in csv.DictReader(io.StringIO(whole)) if int(row["step"]) <= step]


if __name__ == "__main__":
    sys.exit(main())
