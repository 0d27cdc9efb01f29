"""What a time is held against: the arithmetic of a reconstruction, and what the device can do at best.

The peak is measured, not taken from a data sheet: the fastest of some large matrix products in the cell's precision.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache

import torch

from bench.cells import Cell, Precision
from bench.methods import Method, ReconstructionModel
from bench.timing import StageTimer
from tttlrm.cameras import Views
from tttlrm.config import Compute
from tttlrm.model import TTTLRM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
_SIDE = {"cpu": 1024, "cuda": 8192}
_REPEATS = {"cpu": 10, "cuda": 30}


def reconstruction_flops(cell: Cell, method: Method) -> float | None:
    """Floating-point operations of the cell's reconstruction, all ranks together: its matrix products and attention,
    a multiplication and an addition being two. None for methods whose operations are not known.

    They are counted while the model runs on tensors without data, so that nothing is computed.
    """
    from torch.utils.flop_counter import FlopCounterMode

    if not isinstance(method, ReconstructionModel):
        return None
    height, width = cell.resolution
    count = cell.input_views
    compute = replace(Compute(), dtype=DTYPES[cell.precision], tile_tokens=cell.tile_tokens)
    with torch.device("meta"):
        model = TTTLRM(method.model.config).eval()
        views = Views(torch.empty(count, 3, height, width), torch.empty(count, 4, 4), torch.empty(count, 4))
    shadow = replace(method, model=model, compute=compute, group=None)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        shadow.reconstruct(views, StageTimer("meta"))
    return float(counter.get_total_flops())


def measured_peak(cell: Cell) -> float:
    """Floating-point operations a second of one rank's device, in the cell's precision and with its threads."""
    return _peak(cell.device, cell.precision, torch.get_num_threads() if cell.device == "cpu" else 0)


@lru_cache(maxsize=8)
def _peak(device: str, precision: Precision, threads: int) -> float:
    """``threads`` only tells the CPU's peaks apart. Kept for the next cell of the job."""
    side = _SIDE[device]
    left, right = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(2))
    fastest = float("inf")
    for _ in range(_REPEATS[device]):
        _synchronize(device)
        started = time.perf_counter()
        torch.mm(left, right)
        _synchronize(device)
        fastest = min(fastest, time.perf_counter() - started)
    return 2.0 * side**3 / fastest


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
