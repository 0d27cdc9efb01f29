"""The state of a run in a file that is whole or absent."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tttlrm.errors import CheckpointError, UserError, first_line
from tttlrm.files import atomic_path
from tttlrm.training.optimizer import FlatAdamW
from tttlrm.training.progress import Position
from tttlrm.training.settings import TrainingSettings
from tttlrm.training.summary import Origin

CHECKPOINT = "checkpoint.pt"
VERSION = 1
FREE = (
    "output",
    "budget.stop_after_seconds",
    "report",
    "compute.compile",
    "compute.graphs",
    "perceptual_weights",
    "data.compile",
)
"""Settings that may change when a run goes on: they do not change what it computes beyond rounding (of the
perceptual weights, the place may change: see :class:`tttlrm.training.summary.Origin`)."""


@dataclass(frozen=True)
class SavedRun:
    """A run's state as a checkpoint has it.

    Attributes:
        path: of the checkpoint.
        settings: as :meth:`tttlrm.training.settings.TrainingSettings.to_dict` gives them.
        position: where the run stands.
        optimizer: as :meth:`tttlrm.training.optimizer.FlatAdamW.state` gives it.
        origin: of the run; its attributes are None in checkpoints that do not have them.
    """

    path: Path
    settings: dict[str, Any]
    position: Position
    optimizer: dict[str, Any]
    origin: Origin

    def complete_settings(self) -> TrainingSettings:
        """With their defaults, those that the version which wrote the checkpoint did not have.

        Raises:
            UserError: some are not known here.
        """
        try:
            return TrainingSettings.from_dict(self.settings)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None


def save_checkpoint(
    folder: Path, settings: TrainingSettings, position: Position, optimizer: FlatAdamW, origin: Origin
) -> None:
    """Write the run's state. Random numbers need none: they are functions of the seed and the step."""
    state = {
        "version": VERSION,
        "settings": settings.to_dict(),
        "position": dataclasses.asdict(position),
        "optimizer": optimizer.state(),
        "origin": dataclasses.asdict(origin),
    }
    with atomic_path(folder / CHECKPOINT) as temporary:
        torch.save(state, temporary)


def read_checkpoint(folder: Path) -> SavedRun | None:
    """The state of the run in a folder, where it holds a checkpoint.

    Raises:
        CheckpointError: unreadable, or of another version.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        version = state["version"]
        if version != VERSION:
            raise CheckpointError(f"{path}: is of version {version}, and only version {VERSION} can be read")
        return SavedRun(
            path,
            state["settings"],
            Position(**state["position"]),
            state["optimizer"],
            Origin(**state.get("origin", {})),
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a readable training checkpoint ({first_line(error)})") from None


def restore(saved: SavedRun, settings: TrainingSettings, optimizer: FlatAdamW) -> Position:
    """Go on with a run.

    Raises:
        CheckpointError: of another model.
        UserError: the run was started with other settings, or with some that are not known here.
    """
    _check_settings(saved.path, saved.complete_settings().to_dict(), settings.to_dict())
    optimizer.load_state(saved.optimizer)
    return saved.position


def _check_settings(path: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    old, new = _flatten(saved), _flatten(given)
    changed = sorted(
        key
        for key in old.keys() | new.keys()
        if old.get(key) != new.get(key) and not any(key == free or key.startswith(f"{free}.") for free in FREE)
    )
    if changed:
        key = changed[0]
        more = f" (and {len(changed) - 1} more differ)" if len(changed) > 1 else ""
        raise UserError(
            f"{path}: the run there was started with {key}={old.get(key)}, not {new.get(key)}{more}; "
            "give the same settings to go on, or another output folder"
        )


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict) and values:
        return {k: v for key, item in values.items() for k, v in _flatten(item, f"{prefix}{key}.").items()}
    if isinstance(values, list) and values and isinstance(values[0], dict):
        return {k: v for i, item in enumerate(values) for k, v in _flatten(item, f"{prefix}{i}.").items()}
    return {prefix[:-1]: values}
