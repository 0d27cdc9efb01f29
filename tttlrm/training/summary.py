"""What a finished run writes about itself; a model card is made of it."""

from __future__ import annotations

import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tttlrm.checkpoints import digest
from tttlrm.environment import describe_environment
from tttlrm.errors import UserError
from tttlrm.files import write_json
from tttlrm.training.progress import Position
from tttlrm.training.settings import TrainingSettings
from tttlrm.training.validation import Validation

SUMMARY = "summary.json"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Origin:
    """Where a run comes from, as found when it starts: files and code may change while it goes on.

    Attributes:
        command: what was typed for the run's last sitting; None: not known (so of the others).
        commit: of that sitting's code, as :func:`git_commit`.
        initial_weights_sha256: of the weights that the run began with; None as well where it began with none.
        perceptual_weights_sha256: of the file of VGG-19; None as well where the loss is without. (LPIPS' are known.)
    """

    command: str | None = None
    commit: str | None = None
    initial_weights_sha256: str | None = None
    perceptual_weights_sha256: str | None = None

    @classmethod
    def of(cls, settings: TrainingSettings, command: str | None, before: Origin | None) -> Origin:
        """Of a sitting that starts now; ``before``: what the run's sittings so far have saved, if there were any.

        Raises:
            UserError: those had other perceptual weights.
        """
        began = None if before is None else before.initial_weights_sha256
        if began is None and settings.initial_weights is not None:
            began = digest(settings.initial_weights)
        perceptual = _perceptual_digest(settings)
        earlier = None if before is None else before.perceptual_weights_sha256
        if earlier is not None and perceptual != earlier:
            raise UserError(
                f"{settings.perceptual_weights}: are other perceptual weights than those that the run began with "
                f"(sha256 {perceptual}, not {earlier})"
            )
        return cls(command, git_commit(), began, perceptual)


@dataclass(frozen=True)
class RunSummary:
    """A run. ``validation``: at its end; None where something is not known."""

    settings: TrainingSettings
    position: Position
    origin: Origin
    steps_taken: int
    steps_not_finite: int
    steps_too_long: int
    parameters: int
    compiled: bool | None
    graphed: bool | None
    device: torch.device
    validation: list[Validation]


def write_summary(run: RunSummary, folder: Path) -> None:
    """Write ``summary.json`` beside the run's weights."""
    values = {
        **asdict(run.origin),
        "settings": run.settings.to_dict(),
        "environment": describe_environment(run.device),
        "device": run.device.type,
        "compiled": run.compiled,
        "graphed": run.graphed,
        "parameters": run.parameters,
        "steps": run.position.step,
        "seconds": run.position.seconds,
        "steps_taken": run.steps_taken,
        "steps_not_finite": run.steps_not_finite,
        "steps_too_long": run.steps_too_long,
        "weights_sha256": digest(folder / WEIGHTS),
        "validation": [
            {
                "views": result.num_views,
                "psnr": result.psnr,
                "mean_color_psnr": result.mean_color,
                "nearest_view_psnr": result.nearest_view,
                "gain": result.gain,
            }
            for result in run.validation
        ],
    }
    write_json(folder / SUMMARY, values)


def _perceptual_digest(settings: TrainingSettings) -> str | None:
    file = settings.perceptual_weights
    if file is None or settings.perceptual_features == "vgg16" or not settings.has_perceptual_term:
        return None
    return digest(file)


def git_commit() -> str | None:
    """The commit of the code, with ``-dirty`` where files differ from it; None outside a repository."""
    folder = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--match="]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
