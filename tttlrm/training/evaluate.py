"""``python -m tttlrm.training.evaluate MODEL ... -o FOLDER``: quality of trained models, and what they must reach.

Writes a JSON record for each model, data set and number of views, a contact sheet for each, and a table in Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tttlrm.checkpoints import digest, load_model
from tttlrm.config import Compute
from tttlrm.environment import describe_environment
from tttlrm.errors import UserError
from tttlrm.files import write_json, write_text
from tttlrm.lpips import Lpips, load_lpips
from tttlrm.scenes import read_scene
from tttlrm.scenes.procedural import ProceduralSpec
from tttlrm.training.figures import bootstrap, to_markdown
from tttlrm.training.quality import Runner, TestScenes, Unit, capture_size, measure_capture, measure_procedural
from tttlrm.training.summary import git_commit
from tttlrm.training.trained import TrainedModel, find_trained
from tttlrm.training.validation import write_contact_sheet

RECORD_VERSION = 1
_PICTURES = 8


@dataclass(frozen=True)
class Options:
    """What is measured, and on what."""

    output: Path
    views: tuple[int, ...]
    scenes: int
    targets: int
    size: int
    captures: tuple[tuple[str, Path], ...]
    device: torch.device
    dtype: torch.dtype
    lpips: Lpips | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for wrong input."""
    try:
        parsed = _parser().parse_args(arguments)
        models = [find_trained(path) for path in parsed.models]
        options = _options(parsed)
        options.output.mkdir(parents=True, exist_ok=True)
        scenes = TestScenes(options.scenes, (options.size, options.size), options.device)
        records = [record for model in models for record in evaluate(model, options, scenes)]
        table = to_markdown(records)
        write_text(options.output / "evaluation.md", table)
        print(table)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def evaluate(trained: TrainedModel, options: Options, scenes: TestScenes) -> list[dict[str, Any]]:
    """Measure a model on the test scenes of the kind that it was trained on, and on the captures of that kind."""
    settings = trained.settings
    runner = Runner(
        load_model(trained.weights, options.device),
        settings.schedule,
        Compute(dtype=None if options.dtype == torch.float32 else options.dtype),
        options.device,
        options.lpips,
    )
    kind, poses = settings.data.kind, settings.data.poses
    records = []
    for num_views in options.views:
        pictures = _Pictures()
        spec = ProceduralSpec(kind, settings.data.seed, "test")
        units = measure_procedural(runner, scenes(spec), num_views, options.targets, poses, pictures)
        size = (options.size, options.size)
        data = {"name": kind, "source": "procedural", "seed": spec.seed, "split": "test", "targets": options.targets}
        records.append(_record(trained, options, data, num_views, size, units, pictures))
        for _, path in (capture for capture in options.captures if capture[0] == kind):
            name = read_scene(path).name
            pictures = _Pictures()
            size = capture_size(path, options.size, settings.model.patch)
            units = measure_capture(runner, path, num_views, size, poses, pictures)
            data = {"name": name, "source": "capture", "targets": len(units)}
            records.append(_record(trained, options, data, num_views, size, units, pictures))
    return records


class _Pictures:
    """Keeps the first few."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def __call__(self, index: int, picture: Tensor) -> None:
        if len(self.kept) < _PICTURES:
            self.kept.append(picture)


def _record(
    trained: TrainedModel,
    options: Options,
    data: dict[str, Any],
    num_views: int,
    size: tuple[int, int],
    units: list[Unit],
    pictures: _Pictures,
) -> dict[str, Any]:
    """Write a record and its contact sheet, and say its PSNR."""
    record = {
        "version": RECORD_VERSION,
        "model": trained.name,
        "weights_sha256": digest(trained.weights),
        "data": data,
        "views": num_views,
        "size": list(size),
        "schedule": trained.settings.schedule.kind,
        "poses": trained.settings.data.poses,
        "dtype": str(options.dtype).removeprefix("torch."),
        "lpips_absent": None if options.lpips is not None else "not asked for",
        "commit": git_commit(),
        "environment": describe_environment(options.device),
        "units": [unit.to_dict() for unit in units],
    }
    name = f"{trained.name}-{data['name']}-{num_views}views"
    write_json(options.output / f"{name}.json", record)
    write_contact_sheet(torch.stack(pictures.kept, dim=1), options.output / f"{name}.png")
    value, low, high = bootstrap([unit.psnr for unit in units])
    print(f"{name}: PSNR {value:.2f} dB [{low:.2f}, {high:.2f}]", file=sys.stderr, flush=True)
    return record


def _options(parsed: argparse.Namespace) -> Options:
    device = torch.device(parsed.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA GPU; give --device cpu")
    for name in ("scenes", "targets", "size"):
        if getattr(parsed, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(parsed, name)}")
    captures = []
    for text in parsed.capture:
        kind, found, path = text.partition("=")
        if kind not in ("object", "room") or not found:
            raise UserError(f"--capture must be object=FOLDER or room=FOLDER, not {text!r}")
        captures.append((kind, Path(path)))
    lpips = None if parsed.no_lpips else load_lpips(device, parsed.lpips_weights)
    dtype = torch.bfloat16 if parsed.dtype == "bfloat16" else torch.float32
    return Options(
        output=parsed.output,
        views=tuple(parsed.views),
        scenes=parsed.scenes,
        targets=parsed.targets,
        size=parsed.size,
        captures=tuple(captures),
        device=device,
        dtype=dtype,
        lpips=lpips,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tttlrm.training.evaluate", description=__doc__)
    add = parser.add_argument
    add("models", nargs="+", type=Path, metavar="MODEL", help="a run's folder, or an exported .safetensors file")
    add("-o", "--output", type=Path, required=True, help="folder for records, pictures and the table")
    add("--views", nargs="+", type=int, default=[4, 8, 16, 24], help="numbers of input views")
    add("--scenes", type=int, default=50, help="test scenes")
    add("--targets", type=int, default=8, help="test views of a scene")
    add("--size", type=int, default=128, help="longer side of the images")
    add("--capture", action="append", default=[], metavar="KIND=FOLDER", help="a real scene; KIND is object or room")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of matrix products")
    add("--lpips-weights", type=Path, help="folder of the LPIPS weights; default: the user's cache")
    add("--no-lpips", action="store_true", help="leave LPIPS out")
    return parser


if __name__ == "__main__":
    sys.exit(main())
