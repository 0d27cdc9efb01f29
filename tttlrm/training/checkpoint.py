"""The state of a run in a file that is whole or absent."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import torch

from tttlrm.errors import CheckpointError, UserError, first_line
from tttlrm.files import atomic_path
from tttlrm.training.optimizer import FlatAdamW
from tttlrm.training.progress import Position
from tttlrm.training.settings import TrainingSettings

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
"""Settings that may change when a run goes on: they do not change what it computes beyond rounding."""


def save_checkpoint(
    folder: Path, settings: TrainingSettings, position: Position, optimizer: FlatAdamW, command: str | None = None
) -> None:
    """Write the run's state. Random numbers need none: they are functions of the seed and the step."""
    state = {
        "version": VERSION,
        "command": command,
        "settings": settings.to_dict(),
        "position": dataclasses.asdict(position),
        "optimizer": optimizer.state(),
    }
    with atomic_path(folder / CHECKPOINT) as temporary:
        torch.save(state, temporary)


def load_checkpoint(folder: Path, settings: TrainingSettings, optimizer: FlatAdamW) -> Position | None:
    """Restore the run's state, where the folder holds one.

    Raises:
        CheckpointError: unreadable, or of another version or model.
        UserError: the run was started with other settings.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    state = _read(path)
    _check_settings(path, state["settings"], settings.to_dict())
    optimizer.load_state(state["optimizer"])
    return Position(**state["position"])


def checkpoint_origin(folder: Path) -> tuple[TrainingSettings, str | None]:
    """The settings of the run whose checkpoint is in a folder, and the command that wrote it, where that is known.

    Raises:
        UserError: no checkpoint there, or its settings are none.
        CheckpointError: unreadable, or of another version.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise UserError(f"{folder}: has no {CHECKPOINT} of a training run")
    state = _read(path)
    return TrainingSettings.from_dict(state["settings"]), state.get("command")


def _read(path: Path) -> dict[str, Any]:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        version = state["version"]
        Position(**state["position"])
        missing = {"settings", "optimizer"} - state.keys()
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a readable training checkpoint ({first_line(error)})") from None
    if version != VERSION:
        raise CheckpointError(f"{path}: is of version {version}, and only version {VERSION} can be read")
    if missing:
        raise CheckpointError(f"{path}: not a readable training checkpoint (without {', '.join(sorted(missing))})")
    return dict(state)


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
