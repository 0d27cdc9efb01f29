"""Reading and writing model weights, with the configuration they belong to.

Two formats: safetensors with the configuration in its metadata (ours), and the published pickle
``{"model": state_dict}``, which is read without executing anything it holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tttlrm.config import ModelConfig
from tttlrm.errors import CheckpointError, UserError
from tttlrm.model import TTTLRM

TRAINING_ONLY_PREFIXES = ("perceptual_loss_module.", "depth_anything.")
"""Parameters of losses that published checkpoints may hold; they are not part of the model."""

_LISTED = 8


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    config: ModelConfig | None = None,
) -> TTTLRM:
    """The model of a checkpoint, in evaluation mode.

    Args:
        path: a .safetensors file, or a pickle ``{"model": state_dict}``.
        device, dtype: of the parameters.
        config: for a file without a configuration of its own; default: the released configuration.

    Raises:
        CheckpointError: the file is missing, unreadable, or its keys or shapes are not the model's.
    """
    path = Path(path)
    state, stored = read_checkpoint(path)
    if stored is not None and config is not None and stored != config:
        raise CheckpointError(f"{path}: the checkpoint has a configuration of its own, other than the one given")
    with torch.device("meta"):
        model = TTTLRM(stored or config or ModelConfig())
    check_state(state, model, path)
    state = {key: value.to(device=device, dtype=dtype) for key, value in state.items()}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def save_model(model: TTTLRM, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a model as safetensors with its configuration: the same bytes each time. Atomic: whole or absent."""
    state = {
        key: value.detach().to(device="cpu", dtype=dtype or value.dtype).contiguous()
        for key, value in model.state_dict().items()
    }
    # A single entry: safetensors writes several in an order of chance, and the same model would get many digests.
    metadata = {"config": json.dumps(model.config.to_dict(), sort_keys=True)}
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        safetensors.torch.save_file(state, temporary, metadata)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    """Parameters without the training-only ones, and the configuration where the file has one."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    state, config = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state = {key: value for key, value in state.items() if not key.startswith(TRAINING_ONLY_PREFIXES)}
    return state, config


def check_state(state: Mapping[str, Tensor], model: TTTLRM, path: Path) -> None:
    """Every parameter there, none besides, each of the right shape and of a floating type; else one error with all."""
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    shared = sorted(expected.keys() & state.keys())
    misshapen = [
        f"{key} {list(state[key].shape)} instead of {list(expected[key].shape)}"
        for key in shared
        if state[key].shape != expected[key].shape
    ]
    mistyped = [f"{key} ({state[key].dtype})" for key in shared if not state[key].is_floating_point()]
    not_finite = [key for key in shared if state[key].is_floating_point() and not state[key].isfinite().all()]
    kinds = {
        "missing": missing,
        "extra": extra,
        "of another shape": misshapen,
        "not floating-point": mistyped,
        "not finite": not_finite,
    }
    problems = [f"{len(keys)} {kind}: {_shorten(keys)}" for kind, keys in kinds.items() if keys]
    if problems:
        raise CheckpointError(f"{path}: the parameters do not fit the model; " + "; ".join(problems))


def digest(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpickle(path: Path) -> Any:
    """What a pickle of tensors holds, on the CPU and possibly still in the file. Nothing in it is executed.

    Raises:
        CheckpointError: unreadable, or it holds something other than tensors.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: refused, because it holds something other than tensors") from None
    except Exception as error:  # a file that is no pickle at all makes the unpickler fail in any way
        raise CheckpointError(f"{path}: not a readable checkpoint ({_first_line(error)})") from None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({_first_line(error)})") from None
    return state, _parse_config(metadata.get("config"), path)


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    content = unpickle(path)
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f'{path}: not a checkpoint of the form {{"model": parameters}}')
    return state, _parse_config(content.get("config"), path)


def _parse_config(value: Any, path: Path) -> ModelConfig | None:
    if value is None:
        return None
    try:
        return ModelConfig.from_dict(json.loads(value) if isinstance(value, str) else value)
    except (UserError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its model configuration is not valid ({_first_line(error)})") from None


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _shorten(keys: list[str]) -> str:
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(keys[:_LISTED]) + more


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.split(". ")[0][:300]
