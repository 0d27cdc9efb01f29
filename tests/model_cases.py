"""Reference runs of the model: what the golden files hold, as arguments of our own model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tttlrm.blocks import FastWeightLayer
from tttlrm.cameras import Views
from tttlrm.config import Compute, ElasticUpdate, ModelConfig, Schedule
from tttlrm.fast_weights import FastWeights
from tttlrm.gaussians import Gaussians
from tttlrm.model import TTTLRM

DATA = Path(__file__).resolve().parent / "data"
FLOAT32_CASES = ("full", "full_virtual_subset", "ar", "ar_elastic")
BFLOAT16_CASE = "full_newton_schulz_bf16"


@dataclass(frozen=True)
class Case:
    """One golden file. Tensors have a leading batch dimension of 1."""

    config: ModelConfig
    schedule: Schedule
    newton_schulz_dtype: torch.dtype
    queries: list[int]
    views: Views
    state: dict[str, Tensor]
    expected: dict[str, Tensor]

    def model(self, dtype: torch.dtype = torch.float32) -> TTTLRM:
        model = TTTLRM(self.config)
        model.load_state_dict(self.state)
        return model.to(dtype).eval().requires_grad_(False)

    def scene(self, dtype: torch.dtype = torch.float32) -> Views:
        """The input views without the batch dimension."""
        return Views(self.views.images[0], self.views.camera_to_world[0], self.views.intrinsics[0]).to(dtype)


def load_case(name: str) -> Case:
    with safe_open(DATA / f"{name}.safetensors", framework="pt") as file:
        stated = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    elastic = ElasticUpdate(stated["elastic"], stated["fa"], stated["ab"]) if "elastic" in stated else None
    return Case(
        config=ModelConfig(
            width=stated["d"],
            blocks=stated["L"],
            attention_head=stated["attn_hd"],
            fast_weight_expansion=stated["inter"],
            sh_degree=stated["sh"],
            patch=stated["patch"],
        ),
        schedule=Schedule(stated["scan"], stated["mini"], elastic),
        newton_schulz_dtype=getattr(torch, stated["newton_schulz_dtype"]),
        queries=stated["virtual_views"],
        views=Views(tensors["in/image"], tensors["in/c2w"], tensors["in/fxfycxcy"]),
        state={key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")},
        expected={key.removeprefix("out/"): value for key, value in tensors.items() if key.startswith("out/")},
    )


def run_with_intermediates(case: Case, dtype: torch.dtype, compute: Compute) -> dict[str, Tensor]:
    """Everything that a golden file holds, from our own model, under the same names."""
    model, found = case.model(dtype), {}
    for i, block in enumerate(model.blocks):
        sublayer = block.module_list[1]
        _record_fast_weights(sublayer.f, i, found)
        block.register_forward_hook(lambda _m, _a, output, i=i: found.__setitem__(f"block{i}", output.clone()))
    found["tokens_in"] = model.encode(case.views.to(dtype), compute)
    gaussians = model(case.views.to(dtype), case.schedule, compute, case.queries)
    return found | as_golden(gaussians)


def as_golden(gaussians: Gaussians) -> dict[str, Tensor]:
    return {
        "gaussians_xyz": gaussians.positions,
        "gaussians_feature": gaussians.sh,
        "gaussians_scale": gaussians.log_scales,
        "gaussians_rotation": gaussians.quaternions,
        "gaussians_opacity": gaussians.opacity_logits[..., None],
    }


def relative_error(measured: Tensor, expected: Tensor) -> float:
    """||a - b|| / ||b||, in float64. NaN is returned as such, and is below no bound."""
    measured, expected = measured.detach().double(), expected.detach().double()
    return float((measured - expected).norm() / expected.norm())


def _record_fast_weights(layer: FastWeightLayer, block: int, found: dict[str, Tensor]) -> None:
    adapt = layer.adapt

    def recording(*arguments: Any) -> FastWeights:
        state = adapt(*arguments)
        for i, weight in enumerate(state.weights):
            found[f"fast_w{i}_block{block}"] = weight
        return state

    layer.adapt = recording  # type: ignore[method-assign]
