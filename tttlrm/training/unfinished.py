"""The model that a run has so far: the running mean at its last checkpoint, whether or not the run goes on."""

from __future__ import annotations

from pathlib import Path

import torch

from tttlrm.checkpoints import save_model
from tttlrm.errors import UserError
from tttlrm.training.checkpoint import CHECKPOINT, read_checkpoint
from tttlrm.training.network import build_model
from tttlrm.training.optimizer import FlatAdamW, FlatParameters
from tttlrm.training.summary import WEIGHTS, RunSummary, write_summary
from tttlrm.training.trained import TrainedModel, find_trained


def model_so_far(run: Path, folder: Path) -> TrainedModel:
    """Write weights and summary of a run's last checkpoint into another folder, as if the run had ended there.

    To be called where the run runs: the summary describes this machine as the run's.

    Raises:
        UserError: the run has no checkpoint or one with unknown settings, or was made on a GPU and here is none.
        CheckpointError: its checkpoint cannot be read.
    """
    saved = read_checkpoint(run)
    if saved is None:
        raise UserError(f"{run}: has no {CHECKPOINT} of a training run")
    settings = saved.complete_settings()
    device = torch.device(settings.compute.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{run}: was made on a GPU, and here is none; export it where it runs")
    model = build_model(settings, torch.device("cpu"), trained=False)
    flat = FlatParameters(model)
    optimizer = FlatAdamW(flat, settings.optimizer)
    optimizer.load_state(saved.optimizer)
    model.load_state_dict(flat.named(optimizer.mean))
    save_model(model, folder / WEIGHTS)
    summary = RunSummary(
        settings=settings,
        position=saved.position,
        origin=saved.origin,
        steps_taken=int(optimizer.taken),
        steps_not_finite=int(optimizer.not_finite),
        steps_too_long=int(optimizer.too_long),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        compiled=None,
        graphed=None,
        device=device,
        validation=[],
    )
    write_summary(summary, folder)
    return find_trained(folder)
