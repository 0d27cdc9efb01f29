"""Small models, batches and runs for the tests of training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from tttlrm.cameras import Views
from tttlrm.config import ModelConfig
from tttlrm.model import TTTLRM
from tttlrm.training.data import TrainingBatch
from tttlrm.training.settings import TrainingSettings

CONFIG: dict[str, Any] = {
    "width": 32, "blocks": 2, "attention_head": 16, "fast_weight_expansion": 1, "mlp_expansion": 1,
    "sh_degree": 1, "poses": "scene", "near": 0.5, "far": 4.5, "log_scale_bias": -2.5,
}  # fmt: skip


def make_model(dtype: torch.dtype, mixer: str = "fast_weights") -> TTTLRM:
    """The same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TTTLRM(ModelConfig(mixer=mixer, **CONFIG)).to(dtype)  # type: ignore[arg-type]


def make_batch(dtype: torch.dtype, num_inputs: int = 4, num_targets: int = 3, scenes: int = 2) -> TrainingBatch:
    """Random images seen by cameras on a circle: enough for gradients."""
    generator = torch.Generator().manual_seed(num_inputs)
    count = num_inputs + num_targets
    angles = torch.arange(count) * 2 * math.pi / count + torch.rand(scenes, 1, generator=generator)
    forward = torch.stack([-angles.cos(), -angles.sin(), torch.zeros_like(angles)], dim=-1)
    down = torch.tensor([0.0, 0.0, -1.0]).expand_as(forward)
    poses = torch.eye(4).repeat(scenes, count, 1, 1)
    poses[..., :3, :3] = torch.stack([torch.linalg.cross(down, forward), down, forward], dim=-1)
    poses[..., :3, 3] = -2 * forward
    images = torch.rand(scenes, count, 3, 16, 16, generator=generator)
    intrinsics = torch.tensor([17.0, 17, 8, 8]).expand(scenes, count, 4).clone()
    views = Views(images, poses, intrinsics).to(dtype)
    depths = 1.5 + torch.rand(scenes, num_targets, 1, 16, 16, generator=generator).to(dtype)
    masks = (torch.rand(scenes, num_targets, 1, 16, 16, generator=generator) > 0.3).to(dtype)
    inputs, targets = views.select(range(num_inputs)), views.select(range(num_inputs, count))
    input_depths = 1.5 + torch.rand(scenes, num_inputs, 1, 16, 16, generator=generator).to(dtype)
    input_masks = (torch.rand(scenes, num_inputs, 1, 16, 16, generator=generator) > 0.3).to(dtype)
    return TrainingBatch(inputs, targets, depths, masks, input_depths, input_masks, 0)


def make_settings(output: Path, **changes: Any) -> TrainingSettings:
    """A run of seconds on a CPU."""
    values: dict[str, Any] = {
        "stage": "test",
        "output": str(output),
        "model": CONFIG,
        "data": {"novel_targets": 2, "input_targets": 1, "steps_per_block": 2},
        "loss": {"perceptual": 0.0},
        "optimizer": {"ema_decay": 0.9},
        "compute": {"device": "cpu", "dtype": "float32", "compile": False},
        "report": {
            "log_every": 2, "checkpoint_every": 2, "validate_every": 100,
            "validation_scenes": 2, "validation_targets": 2, "validation_views": [2],
        },
        "phases": [
            {"size": [16, 16], "scenes": 2, "views": [2, 4], "learning_rate": 3e-3, "warmup_steps": 2, "steps": 6},
        ],
    }  # fmt: skip
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
    return TrainingSettings.from_dict(values)
