"""The folder of results of a command: written beside its final place, and there whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tttlrm.cameras import PoseNormalization
from tttlrm.errors import UserError
from tttlrm.files import atomic_path, write_text

REPORT = "report.json"
PLY_KEY = "tttlrm-reconstruction "
FRAME_GAP = 4


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a folder that exists, or, with ``overwrite``, one that does not hold an earlier result of ours."""
    output = Path(os.path.abspath(output))
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise UserError(f"{output}: exists already; choose another output folder, or give --overwrite to replace it")
    if output.is_symlink() or not output.is_dir():
        raise UserError(f"{output}: is not a folder, so --overwrite does not replace it")
    if any(output.iterdir()) and not _is_result(output):
        raise UserError(f"{output}: holds something other than a result of tttlrm, so --overwrite does not replace it")


@contextmanager
def staging_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside ``output``, which becomes ``output`` when the block ends well, and is gone otherwise.

    Folders above ``output`` are made as needed, and removed again after a failure.
    """
    output = Path(os.path.abspath(output))
    check_output(output, overwrite)
    made = _make_parents(output.parent)
    staging = output.with_name(f".{output.name}.{secrets.token_hex(6)}.partial")
    try:
        _make_staging(staging, output)
        yield staging
        _put_in_place(staging, output, overwrite)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # someone else may use them meanwhile
            for folder in made:
                folder.rmdir()
        raise


def _make_staging(staging: Path, output: Path) -> None:
    try:
        staging.mkdir()
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}") from error


def _make_parents(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns the new ones, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror or error}") from error
    return missing


def _put_in_place(staging: Path, output: Path, overwrite: bool) -> None:
    check_output(output, overwrite)  # someone may have written it meanwhile
    if not output.exists():
        os.rename(staging, output)
        return
    old = staging.with_suffix(".replaced")
    os.rename(output, old)
    try:
        os.rename(staging, output)
    except BaseException:
        os.rename(old, output)
        raise
    shutil.rmtree(old)


def _is_result(folder: Path) -> bool:
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and str(report.get("format", "")).startswith("tttlrm ")


@dataclass(frozen=True)
class Origin:
    """What a set of Gaussians comes from: all that is needed to render it beside its scene, and to label the result.

    Attributes:
        weights: how every output names the model's weights.
        random_weights: they are random, so that the quality says nothing.
        scene: name of the scene.
        size: (height, width) of the images.
        normalization: from the scene's world to that of the Gaussians.
    """

    weights: str
    random_weights: bool
    scene: str
    size: tuple[int, int]
    normalization: PoseNormalization

    def ply_comment(self) -> str:
        values = {
            "weights": self.weights,
            "random_weights": self.random_weights,
            "scene": self.scene,
            "size": list(self.size),
            "normalization": normalization_to_dict(self.normalization),
        }
        return f"Gaussians of tttlrm, {self.weights}\n{PLY_KEY}{json.dumps(values)}"

    @classmethod
    def from_ply_comments(cls, comments: Sequence[str], path: Path) -> Origin:
        lines = [line.removeprefix(PLY_KEY) for line in comments if line.startswith(PLY_KEY)]
        if len(lines) != 1:
            raise UserError(f"{path}: its header does not say how the scene was normalised, as tttlrm writes it")
        try:
            values = json.loads(lines[0])
            height, width = (int(length) for length in values["size"])
            normalization = normalization_from_dict(values["normalization"])
            random = bool(values["random_weights"])
            return cls(str(values["weights"]), random, str(values["scene"]), (height, width), normalization)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: the reconstruction's data in its header is damaged ({error})") from error


def normalization_to_dict(normalization: PoseNormalization) -> dict[str, Any]:
    """JSON-able; a point p of the scene's world becomes (world_to_reference p) / scale."""
    matrix = normalization.world_to_reference.tolist()
    return {"world_to_reference": matrix, "scale": normalization.scale}


def normalization_from_dict(values: dict[str, Any]) -> PoseNormalization:
    matrix = torch.tensor(values["world_to_reference"], dtype=torch.float64)
    scale = float(values["scale"])
    if matrix.shape != (4, 4) or not bool(torch.isfinite(matrix).all()) or not 0 < scale < float("inf"):
        raise ValueError("normalization")
    return PoseNormalization(matrix, scale)


def write_pair(target: Tensor, rendering: Tensor, path: Path, caption: str) -> None:
    """A PNG of two images [3, H, W] side by side, the target on the left, under a caption; atomic."""
    from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

    height, width = target.shape[-2:]
    font = ImageFont.load_default(size=max(10, height // 30))
    left, top, right, bottom = font.getbbox(caption)
    strip = int(bottom - top) + 6
    canvas = Image.new("RGB", (max(2 * width + FRAME_GAP, int(right - left) + 6), height + strip), "white")
    ImageDraw.Draw(canvas).text((3 - left, 3 - top), caption, fill="black", font=font)
    for column, image in ((0, target), (width + FRAME_GAP, rendering)):
        canvas.paste(Image.fromarray(_to_bytes(image)), (column, strip))
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", caption)
    with atomic_path(path) as temporary:
        canvas.save(temporary, format="PNG", pnginfo=text)


def _to_bytes(image: Tensor) -> Any:
    return (image.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(1, 2, 0).contiguous().numpy()


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A CSV file, atomically. None becomes an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
