"""The cost that is told before a reconstruction, and the names of devices."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tttlrm.errors import UserError
from tttlrm.plan import CONFIGS, check_size, choose_device, operations


@pytest.mark.parametrize(("num_views", "seconds"), [(16, 0.33), (32, 0.67), (64, 1.33)])
def test_operations_of_the_released_model(num_views: int, seconds: float) -> None:
    """Known lower bounds of its time on a device of 797 TFLOP/s."""
    assert operations(CONFIGS["released"], num_views, (536, 960)) / 797e12 == pytest.approx(seconds, abs=0.005)


def test_attention_over_all_views_grows_with_the_square() -> None:
    fast = CONFIGS["released"]
    attention = dataclasses.replace(fast, mixer="attention")
    size = (536, 960)
    assert operations(fast, 64, size) == 4 * operations(fast, 16, size)
    assert operations(attention, 64, size) > 10 * operations(attention, 16, size)
    split = dataclasses.replace(fast, fast_weight_head=fast.width // 4)
    mixing = 18 * fast.width * fast.fast_weight_hidden * fast.blocks * 16 * (size[0] // 8) * (size[1] // 8)
    assert operations(split, 16, size) == operations(fast, 16, size) - 0.75 * mixing


def test_sizes() -> None:
    assert check_size((536, 960), 8) == (536, 960)
    for size in ((540, 960), (536, 961), (0, 8), (8, -8)):
        with pytest.raises(UserError, match="not a multiple of the patch size 8"):
            check_size(size, 8)
    for size, near in (
        ((100, 100), "96x96 and 104x104"),
        ((540, 960), "536x960 and 544x960"),
        ((3, 8), "8x8"),
        ((0, 20), "8x16 and 8x24"),
    ):
        with pytest.raises(UserError, match=f"; the nearest that are: {near}$"):
            check_size(size, 8)
    with pytest.raises(UserError, match="larger than the limit"):
        check_size((80_000, 80_000), 8)


def test_devices() -> None:
    assert choose_device("cpu", sp_size=3) == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("tpu", "mps", "meta", "cuda:x", ""):
        with pytest.raises(UserError, match="device must be"):
            choose_device(name)
