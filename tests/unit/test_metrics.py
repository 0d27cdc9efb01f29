"""PSNR and SSIM: equal to the golden values and to scikit-image, and their failures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tttlrm.errors import UserError
from tttlrm.metrics import psnr, ssim

GOLDEN = Path(__file__).parents[1] / "data" / "metrics.safetensors"


def random_pair(seed: int, views: int = 2, height: int = 21, width: int = 17) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(views, 3, height, width, generator=generator)
    return target + 0.1 * torch.randn(target.shape, generator=generator), target


def test_equals_golden_values() -> None:
    golden = load_file(GOLDEN)
    assert torch.allclose(psnr(golden["predicted"], golden["target"]), golden["psnr"].double(), atol=1e-5, rtol=0)
    assert torch.allclose(ssim(golden["predicted"], golden["target"]), golden["ssim"].double(), atol=1e-7, rtol=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(7, 40), width=st.integers(7, 40))
def test_ssim_equals_scikit_image(seed: int, height: int, width: int) -> None:
    from skimage.metrics import structural_similarity

    predicted, target = random_pair(seed, 1, height, width)
    images = [np.moveaxis(image[0].double().numpy(), 0, -1) for image in (target, predicted)]
    expected = structural_similarity(*images, channel_axis=-1, data_range=1)
    assert abs(float(ssim(predicted, target)) - expected) < 1e-11


def test_psnr_clips_and_knows_its_closed_form() -> None:
    target = torch.full((1, 3, 8, 8), 0.5)
    assert float(psnr(target + 0.1, target)) == pytest.approx(20.0, abs=1e-5)
    assert float(psnr(torch.full_like(target, 7.0), torch.ones_like(target))) == float("inf")
    assert float(psnr(torch.full_like(target, -3.0), torch.full_like(target, 0.1))) == pytest.approx(20.0, abs=1e-5)


def test_equal_images_and_views_one_by_one() -> None:
    predicted, target = random_pair(1, views=3)
    assert torch.allclose(ssim(target, target), torch.ones(3, dtype=torch.float64), atol=1e-12, rtol=0)
    for metric in (psnr, ssim):
        together = metric(predicted, target)
        assert together.shape == (3,)
        assert torch.equal(together, torch.cat([metric(predicted[i : i + 1], target[i : i + 1]) for i in range(3)]))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_refuses_what_is_not_a_pair_of_images(metric: object) -> None:
    predicted, target = random_pair(2)
    assert callable(metric)
    with pytest.raises(UserError, match="differ in shape"):
        metric(predicted, target[:1])
    with pytest.raises(UserError, match="shape"):
        metric(predicted[0], target[0])
    with pytest.raises(UserError, match="shape"):
        metric(predicted[:0], target[:0])
    for bad in (float("nan"), float("inf")):
        broken = predicted.clone()
        broken[1, 0, 3, 4] = bad
        with pytest.raises(UserError, match="predicted images .* not finite"):
            metric(broken, target)


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(UserError, match="7x7 pixels, not 6x9"):
        ssim(torch.zeros(1, 3, 6, 9), torch.zeros(1, 3, 6, 9))
