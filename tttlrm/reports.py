"""The JSON report of a command: what was run, on what, how long it took, and how good it came out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from tttlrm.environment import describe_environment
from tttlrm.evaluation import Quality, ViewQuality
from tttlrm.outputs import Origin, normalization_to_dict
from tttlrm.plan import Plan

RECONSTRUCTION_FORMAT = "tttlrm reconstruction 1"
RENDERING_FORMAT = "tttlrm rendering 1"


def reconstruction_report(
    plan: Plan, gaussians: Mapping[str, Any], quality: Quality, stages: list[list[dict[str, Any]]]
) -> dict[str, Any]:
    """JSON-able. Paths are left out, but for the weights' file name: they may hold names of people.

    Args:
        gaussians: counts and usage.
        stages: of each rank; see :class:`tttlrm.stages.StageTime`.
    """
    settings = plan.settings
    return {
        "format": RECONSTRUCTION_FORMAT,
        **_origin(plan.origin),
        "weights_sha256": plan.weights and plan.weights.sha256,
        "scene": {
            "name": plan.scene.name,
            "frames": len(plan.scene.frames),
            "input_frames": list(plan.split.inputs),
            "input_frames_from": plan.split.source,
            "test_frames": list(plan.split.targets),
        },
        "configuration": {
            "model": plan.config.to_dict(),
            "parameters": plan.num_parameters,
            "schedule": dataclasses.asdict(settings.schedule),
            "size": list(plan.size),
            "sp_size": settings.sp_size,
            "device": plan.device.type,
            "dtype": str(plan.compute.dtype).removeprefix("torch."),
            "attention_backend": plan.compute.attention_backend,
            "tile_tokens": plan.compute.tile_tokens,
            "pruning": list(plan.pruning) if plan.pruning else None,
            "seed": settings.seed,
        },
        "gaussians": dict(gaussians),
        "quality": _quality(quality),
        "stages_note": "One run without warm-up: the first use of a kernel is in these times.",
        "stages_by_rank": stages,
        "environment": describe_environment(plan.device),
    }


def rendering_report(
    origin: Origin, count: int, frames: list[int], quality: Quality, stages: list[dict[str, Any]], device: torch.device
) -> dict[str, Any]:
    """JSON-able, of renderings of saved Gaussians."""
    return {
        "format": RENDERING_FORMAT,
        **_origin(origin),
        "scene": {"name": origin.scene, "test_frames": frames},
        "configuration": {"size": list(origin.size), "device": device.type},
        "gaussians": {"kept": count},
        "quality": _quality(quality),
        "stages_by_rank": [stages],
        "environment": describe_environment(device),
    }


def _origin(origin: Origin) -> dict[str, Any]:
    values: dict[str, Any] = {"weights": origin.weights, "random_weights": origin.random_weights}
    if origin.random_weights:
        values["warning"] = "The weights are random: the quality says nothing about the model."
    return {**values, "normalization": normalization_to_dict(origin.normalization)}


def _quality(quality: Quality) -> dict[str, Any]:
    mean = quality.mean()
    return {
        "mean": _view(mean) if mean else None,
        "views": [_view(view) for view in quality.views],
        "lpips_absent": quality.lpips_absent,
    }


def _view(view: ViewQuality) -> dict[str, float | str | None]:
    """JSON has no infinity, which PSNR is for equal images: it becomes a string."""
    values = dataclasses.asdict(view)
    return {name: str(value) if value is not None and math.isinf(value) else value for name, value in values.items()}
