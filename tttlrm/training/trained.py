"""Models that were trained here, with what must be known to use them: schedule, frame of the poses, training data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tttlrm.checkpoints import digest
from tttlrm.errors import CheckpointError, UserError
from tttlrm.training.settings import TrainingSettings
from tttlrm.training.summary import SUMMARY, WEIGHTS


@dataclass(frozen=True)
class TrainedModel:
    """Weights and the summary of the run that made them.

    Attributes:
        weights: safetensors file.
        summary: as :func:`tttlrm.training.summary.write_summary` wrote it, or a model card's.
        settings: of the run.
    """

    weights: Path
    summary: dict[str, Any]
    settings: TrainingSettings

    @property
    def name(self) -> str:
        return self.settings.stage


def find_trained(path: Path) -> TrainedModel:
    """The model of a complete run's folder, or of an exported .safetensors file with its card (.json) beside it.

    Raises:
        UserError: nothing of the kind there, or the weights are not those that the summary is of.
    """
    weights, summary = (path / WEIGHTS, path / SUMMARY) if path.is_dir() else (path, path.with_suffix(".json"))
    for file in (weights, summary):
        if not file.is_file():
            raise UserError(f"{path}: not a complete training run or exported model, because {file.name} is missing")
    try:
        content = json.loads(summary.read_text(encoding="utf-8"))
        settings = TrainingSettings.from_dict(content["settings"])
        expected = content["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{summary}: not a readable summary of a training run ({error})") from error
    if digest(weights) != expected:
        raise CheckpointError(f"{weights}: these are not the weights that {summary.name} describes (sha256 differs)")
    return TrainedModel(weights, content, settings)
