"""Properties of the model that hold for any weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.model_cases import load_case, relative_error
from tttlrm import fast_weights
from tttlrm.blocks import INVERSE_SOFTPLUS, FastWeightLayer, Pass, unit_length
from tttlrm.cameras import Views, pixel_rays
from tttlrm.checkpoints import load_model, save_model
from tttlrm.config import Compute, ModelConfig, Schedule
from tttlrm.errors import UserError
from tttlrm.fast_weights import FastWeights
from tttlrm.gaussians import Gaussians
from tttlrm.model import TTTLRM
from tttlrm.parallel import ViewShard

SMALL = ModelConfig(width=32, blocks=2, attention_head=16, fast_weight_expansion=2, sh_degree=1)


def stack(*scenes: Views) -> Views:
    return Views(*(torch.stack([getattr(s, f) for s in scenes]) for f in ("images", "camera_to_world", "intrinsics")))


def close(a: Gaussians, b: Gaussians, bound: float) -> None:
    for ours, theirs in zip(a.tensors, b.tensors, strict=True):
        assert relative_error(ours, theirs) < bound


def test_full_size_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = TTTLRM()
    assert sum(parameter.numel() for parameter in model.parameters()) == 399_985_224
    golden = load_case("full")
    state = model.state_dict()
    for block in range(24):
        for name in (key for key in golden.state if key.startswith("blocks.0.")):
            assert name.replace("blocks.0.", f"blocks.{block}.") in state
    assert {name for name in state if not name.startswith("blocks.")} == {
        name for name in golden.state if not name.startswith("blocks.")
    }
    assert len(state) == 24 * 17 + 4
    # As the reference's shapes, with its width 48, hidden 96, SH degree 1 replaced by 768, 3072, 3.
    sizes = {48: 768, 96: 3072, 144: 2304, 192: 3072, 16: 64, 1472: 64 * 59, 768: 768, 3: 3, 1: 1}
    for name, value in golden.state.items():
        if not name.startswith("blocks.1."):
            assert list(state[name].shape) == [sizes[size] for size in value.shape], name


@pytest.mark.parametrize("changes", [{}, {"mixer": "attention"}, {"fast_weight_head": 8}])
def test_batch_equals_scenes_one_by_one(changes: dict[str, Any]) -> None:
    model = TTTLRM(replace(SMALL, **changes)).double().eval().requires_grad_(False)
    case = load_case("full")
    first = case.scene(torch.float64)
    second = Views(first.images.flip(-1), first.camera_to_world.flip(0), first.intrinsics)
    together = model(stack(first, second))
    close(together.scene(0), model(first), 1e-10)
    close(together.scene(1), model(second), 1e-10)


@pytest.mark.parametrize("schedule", [Schedule(), Schedule("ar", 2)])
def test_heads_of_fast_weights_are_layers_of_their_own_channels(schedule: Schedule) -> None:
    torch.manual_seed(0)
    config = replace(SMALL, fast_weight_head=8, fast_weight_expansion=3)
    layer = FastWeightLayer(config).double().requires_grad_(False)
    layer.lr_fc.weight.normal_(std=0.3)
    layer.o_norm.weight.uniform_(0.5, 1.5)
    assert [tuple(w.shape) for w in (layer.w0, layer.w1, layer.w2)] == [(4, 8, 24), (4, 24, 8), (4, 8, 24)]
    x = torch.randn(2, 20, 32, dtype=torch.float64)  # 4 views of 5 tokens
    run = Pass(schedule, Compute(tile_tokens=7), ViewShard(4), 5)

    q, k, v = (F.silu(F.linear(x, weight)) for weight in layer.to_qkv.weight.chunk(3))
    rates = F.softplus(F.linear(x, layer.lr_fc.weight, layer.lr_fc.bias) + INVERSE_SOFTPLUS)
    outputs = []
    for head in range(4):
        own, three = slice(8 * head, 8 * head + 8), slice(3 * head, 3 * head + 3)
        state = FastWeights.initial(*(w[head].expand(2, -1, -1) for w in (layer.w0, layer.w1, layer.w2)))
        for chunk in run.chunks(20):
            parts = unit_length(k[:, chunk, own]), v[:, chunk, own], rates[:, chunk, three]
            state = fast_weights.step(state, fast_weights.ascent_direction(*parts, state.weights), x.dtype, None)
        outputs.append(fast_weights.evaluate(unit_length(q[..., own]), state.weights))
    expected = F.linear(F.rms_norm(torch.cat(outputs, -1), (32,), layer.o_norm.weight, 1e-5), layer.c_proj.weight)

    found = torch.cat([output for _, output in layer(x, lambda tile: x[:, tile], run)], dim=1)
    assert relative_error(found, expected) < 1e-9


def test_one_head_is_the_released_layer() -> None:
    torch.manual_seed(0)
    plain = TTTLRM(SMALL)
    torch.manual_seed(0)
    split = TTTLRM(replace(SMALL, fast_weight_head=32))
    assert plain.state_dict().keys() == split.state_dict().keys()
    views = load_case("full").scene()
    assert all(torch.equal(a, b) for a, b in zip(plain(views).tensors, split(views).tensors, strict=True))


def test_order_of_views_does_not_matter_in_the_full_schedule() -> None:
    case = load_case("full")
    model, views, order = case.model(torch.float64), case.scene(torch.float64), [3, 1, 5, 0, 2, 4]
    close(model(views.select(order)), model(views, queries=order), 1e-9)


def test_order_of_chunks_matters_in_the_ar_schedule() -> None:
    case = load_case("ar")
    model, views = case.model(torch.float64), case.scene(torch.float64)
    order = [2, 3, 0, 1, 4, 5, 6, 7]
    swapped = model(views.select(order), case.schedule)
    assert relative_error(swapped.sh, model(views, case.schedule, queries=order).sh) > 1e-3


def test_one_chunk_is_the_full_schedule() -> None:
    case = load_case("full")
    model, views = case.model(torch.float64), case.scene(torch.float64)
    close(model(views, Schedule("ar", views_per_chunk=6)), model(views, Schedule("full")), 1e-12)


def test_gradients_flow_and_agree_with_inference() -> None:
    case = load_case("ar")
    model, views = case.model(torch.float64), case.scene(torch.float64)
    inference = model(views, case.schedule)
    model.requires_grad_(True)
    training = model(views, case.schedule, Compute(tile_tokens=30))
    close(training, inference, 1e-9)
    sum(t.square().mean() for t in training.tensors).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() and g.abs().max() > 0 for g in gradients.values())


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    case = load_case("full")
    grads = []
    for checkpointing in (False, True):
        model = case.model(torch.float64).requires_grad_(True)
        gaussians = model(case.scene(torch.float64), compute=Compute(checkpoint_activations=checkpointing))
        sum(t.square().mean() for t in gaussians.tensors).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert relative_error(grads[1], grads[0]) < 1e-12


def test_input_is_not_changed() -> None:
    case = load_case("full")
    views, before = case.scene(), case.scene()
    case.model()(views)
    assert torch.equal(views.images, before.images) and torch.equal(views.camera_to_world, before.camera_to_world)


def test_bfloat16_products_stay_close_to_float32() -> None:
    case = load_case("full")
    exact = case.model()(case.scene())
    rounded = case.model()(case.scene(), compute=Compute(dtype=torch.bfloat16))
    assert rounded.positions.dtype == torch.float32
    assert 1e-5 < relative_error(rounded.sh, exact.sh) < 0.1


@pytest.mark.parametrize(
    ("views", "queries", "message"),
    [
        (range(6), [0, 6], "queries must be different positions among the 6 input views"),
        (range(6), [1, 1], "queries must be different"),
        (range(6), [], "queries must be different"),
    ],
)
def test_wrong_queries(views: range, queries: list[int], message: str) -> None:
    case = load_case("full")
    with pytest.raises(UserError, match=message):
        case.model()(case.scene(), queries=queries)


def test_image_size_must_be_a_multiple_of_the_patch() -> None:
    scene = load_case("full").scene()
    cut = Views(scene.images[..., :30, :], scene.camera_to_world, scene.intrinsics)
    with pytest.raises(UserError, match="30x48 .* patch size 8"):
        TTTLRM(SMALL)(cut)


def silent(model: TTTLRM) -> TTTLRM:
    """Without anything predicted: all of the decoder's outputs are 0."""
    model.get_parameter("decoder.1.weight").data.zero_()
    return model.double().requires_grad_(False)


@pytest.mark.parametrize("sh_degree", [0, 1])
def test_colour_residual_starts_from_the_pixels_colours(sh_degree: int) -> None:
    views = load_case("full").scene(torch.float64)
    config = replace(SMALL, color_residual=True, sh_degree=sh_degree, near=1.0, far=3.0)
    gaussians = silent(TTTLRM(config))(views, queries=[4, 1])
    assert float(gaussians.sh[:, 1:].abs().sum()) == 0
    colors = gaussians.sh[:, 0] * 0.28209479177387814 + 0.5
    # By where they are, not by their order: the nearest ray of a view is that of the pixel.
    selected = views.select([4, 1])
    origins, directions = pixel_rays(selected.cameras)
    places = (origins + 2 * directions).flatten(0, 2)
    nearest = torch.cdist(gaussians.positions, places, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    assert float(nearest.values.max()) < 1e-9
    pixels = selected.images.movedim(-3, -1).flatten(0, 2)
    assert torch.allclose(colors, pixels[nearest.indices], atol=1e-9)


def test_colour_residual_is_added_to_what_the_plain_model_predicts() -> None:
    views = load_case("full").scene(torch.float64)
    torch.manual_seed(0)
    model = TTTLRM(SMALL).double().requires_grad_(False)
    plain = model(views)
    model.config = replace(SMALL, color_residual=True)
    colored = model(views)
    zero = silent(TTTLRM(model.config))(views)
    assert torch.allclose(colored.sh, plain.sh + zero.sh, atol=1e-12)
    for name in ("positions", "log_scales", "quaternions", "opacity_logits"):
        assert torch.equal(getattr(colored, name), getattr(plain, name))


def test_scales_in_pixels_grow_with_distance_and_shrink_with_focal_length() -> None:
    views = load_case("full").scene(torch.float64)
    intrinsics = views.intrinsics.clone()
    intrinsics[:, :2] = 40.0
    intrinsics[3, 0], intrinsics[3, 1] = 60.0, 100.0  # mean 80
    views = Views(views.images, views.camera_to_world, intrinsics)
    for far in (3.0, 7.0):
        config = replace(SMALL, scale_unit="pixel", log_scale_bias=-0.5, log_scale_max=10.0, near=1.0, far=far)
        scales = silent(TTTLRM(config))(views).log_scales.exp().unflatten(0, (6, -1))
        pixel = (1 + far) / 2 / 40
        assert torch.allclose(scales[:3], torch.full_like(scales[:3], pixel * math.exp(-0.5)))
        assert torch.allclose(scales[3], torch.full_like(scales[3], pixel / 2 * math.exp(-0.5)))
    limited = replace(config, log_scale_max=-3.0)
    assert float(silent(TTTLRM(limited))(views).log_scales.max()) == -3


@pytest.mark.parametrize(("spacing", "middle"), [("linear", 2.5), ("log", 2.0)])
def test_distances_are_spaced_evenly_between_near_and_far(spacing: str, middle: float) -> None:
    views = load_case("full").scene(torch.float64)
    config = replace(SMALL, near=1.0, far=4.0, distance_spacing=spacing)
    model = silent(TTTLRM(config))
    distances = (model(views).positions.unflatten(0, (6, -1)) - views.camera_to_world[:, None, :3, 3]).norm(dim=-1)
    assert torch.allclose(distances, torch.full_like(distances, middle))
    torch.manual_seed(0)
    model = TTTLRM(config).double().requires_grad_(False)
    distances = model(views).positions.unflatten(0, (6, -1)) - views.camera_to_world[:, None, :3, 3]
    assert 1 < float(distances.norm(dim=-1).min()) < float(distances.norm(dim=-1).max()) < 4


def test_options_of_the_decoder_are_off_as_released_and_travel_with_the_weights(tmp_path: Path) -> None:
    released = ModelConfig()
    options = (released.color_residual, released.scale_unit, released.distance_spacing)
    assert options == (False, "world", "linear")
    config = replace(SMALL, color_residual=True, scale_unit="pixel", distance_spacing="log", near=0.1)
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert "fast_weight_head" not in released.to_dict()  # the names of older records depend on it
    config = replace(config, fast_weight_head=16)
    assert ModelConfig.from_dict(config.to_dict()) == config
    save_model(TTTLRM(config), tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors").config == config


def test_wrong_settings_are_named() -> None:
    wrongs: tuple[dict[str, Any], ...] = (
        {"width": 50}, {"sh_degree": 4}, {"mixer": "rnn"}, {"blocks": 0}, {"near": 2.0, "far": 1.0},
        {"distance_spacing": "cubic"}, {"distance_spacing": "log", "near": 0.0},
        {"scale_unit": "metre"}, {"color_residual": "yes"}, {"fast_weight_head": 500}, {"fast_weight_head": 0},
    )  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(UserError, match="model configuration"):
            ModelConfig(**wrong)
    with pytest.raises(UserError, match="unknown keys depth"):
        ModelConfig.from_dict({"depth": 3})
    with pytest.raises(UserError, match="full or ar"):
        Schedule("both")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="views_per_chunk"):
        Schedule("ar", 0)
    with pytest.raises(UserError, match="tile_tokens"):
        Compute(tile_tokens=0)
