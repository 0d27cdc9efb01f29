"""Properties of the model that hold for any weights."""

from __future__ import annotations

import pytest
import torch

from tests.model_cases import load_case, relative_error
from tttlrm.cameras import Views
from tttlrm.config import Compute, ModelConfig, Schedule
from tttlrm.errors import UserError
from tttlrm.gaussians import Gaussians
from tttlrm.model import TTTLRM

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


@pytest.mark.parametrize("mixer", ["fast_weights", "attention"])
def test_batch_equals_scenes_one_by_one(mixer: str) -> None:
    config = ModelConfig(width=32, blocks=2, attention_head=16, fast_weight_expansion=2, sh_degree=1, mixer=mixer)
    model = TTTLRM(config).double().eval().requires_grad_(False)
    case = load_case("full")
    first = case.scene(torch.float64)
    second = Views(first.images.flip(-1), first.camera_to_world.flip(0), first.intrinsics)
    together = model(stack(first, second))
    close(together.scene(0), model(first), 1e-10)
    close(together.scene(1), model(second), 1e-10)


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


def test_wrong_settings_are_named() -> None:
    for wrong in ({"width": 50}, {"sh_degree": 4}, {"mixer": "rnn"}, {"blocks": 0}, {"near": 2.0, "far": 1.0}):
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
