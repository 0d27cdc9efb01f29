"""Norms of tokens and of fast weights, each in one pass over memory.

Dimension letters: T tokens, d model width, h hidden width of the fast weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

Pair = tuple[Tensor, Tensor]

_ROWS = 4
_COLUMN_BLOCK = 32


def layer_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm without bias of x [T, d], float32, as ``dtype``."""
    return _layer_norm(x, weight, None, None, eps, dtype)[0]


def layer_norm_and_rates(
    x: Tensor, weight: Tensor, rate_weight: Tensor, rate_bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """LayerNorm of x [T, d], and softplus(norm rate_weight^T + rate_bias) of the norm before it is rounded.

    Args:
        rate_weight: [3, d] float32.
        rate_bias: [3] float32, with what makes the initial rate.

    Returns:
        [T, d] as ``dtype``, and [T, 3] float32.
    """
    normed, rates = _layer_norm(x, weight, rate_weight, rate_bias, eps, dtype)
    assert rates is not None
    return normed, rates


def rms_norm_(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of x [T, d] with weight [d] (float32), in place."""
    tokens, width = x.shape
    _rms_norm_kernel[(triton.cdiv(tokens, _ROWS),)](
        x, weight, tokens, eps, WIDTH=width, BLOCK=triton.next_power_of_2(width), ROWS=_ROWS, num_warps=4
    )
    return x


def normalized(outer: Tensor, inner: Tensor, dtype: torch.dtype) -> Tensor:
    """The directions of w0, w1 transposed and w2, each divided by its Frobenius norm + 1e-7, as [3, d, h].

    Args:
        outer, inner: directions, [d, 2 h] (of w0 and w2 side by side) and [d, h] (of w1 transposed), float32.
    """
    width, hidden = inner.shape
    squares = inner.new_empty(3, width)
    steps = inner.new_empty(3, width, hidden, dtype=dtype)
    block = triton.next_power_of_2(hidden)
    _row_squares_kernel[(width, 3)](outer, inner, squares, WIDTH=width, HIDDEN=hidden, BLOCK=block, num_warps=8)
    _scale_rows_kernel[(width, 3)](
        outer,
        inner,
        squares,
        steps,
        EPS=1e-7,
        WIDTH=width,
        HIDDEN=hidden,
        BLOCK=block,
        ROWS=triton.next_power_of_2(width),
        num_warps=8,
    )
    return steps


def add_and_restore(
    outer: Tensor, inner: Tensor, steps: Tensor, norms: tuple[Tensor, Tensor], out: Pair, rounded: Pair
) -> None:
    """Add an update to the fast weights and give every column its initial norm again.

    A column is one of w0, w1 or w2 as the model multiplies by them: of w1 transposed, it is a row.

    Args:
        outer, inner: the weights, [d, 2 h] (w0 and w2 side by side) and [d, h] (w1 transposed), float32.
        steps: [3, d, h] of w0, w1 transposed and w2, in any floating dtype.
        norms: of the columns of ``outer``, [2 h], and of the rows of ``inner``, [d]; float32.
        out: the new weights, shaped as the old ones; may be these.
        rounded: the new weights as operands of products.
    """
    width, hidden = inner.shape
    _restore_columns_kernel[(triton.cdiv(2 * hidden, _COLUMN_BLOCK),)](
        outer,
        steps,
        norms[0],
        out[0],
        rounded[0],
        EPS=1e-5,
        WIDTH=width,
        HIDDEN=hidden,
        ROWS=triton.next_power_of_2(width),
        COLUMNS=_COLUMN_BLOCK,
        num_warps=8,
    )
    _restore_rows_kernel[(width,)](
        inner,
        steps[1],
        norms[1],
        out[1],
        rounded[1],
        EPS=1e-5,
        HIDDEN=hidden,
        COLUMNS=triton.next_power_of_2(hidden),
        num_warps=8,
    )


def _layer_norm(
    x: Tensor, weight: Tensor, rate_weight: Tensor | None, rate_bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    tokens, width = x.shape
    normed = torch.empty(tokens, width, dtype=dtype, device=x.device)
    rates = None if rate_weight is None else x.new_empty(tokens, 3)
    _layer_norm_kernel[(triton.cdiv(tokens, _ROWS),)](
        x,
        weight,
        normed,
        x if rate_weight is None else rate_weight,
        x if rate_bias is None else rate_bias,
        x if rates is None else rates,
        tokens,
        eps,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ROWS=_ROWS,
        RATES=rates is not None,
        num_warps=4,
    )
    return normed, rates


@triton.jit(do_not_specialize=["tokens"])
def _layer_norm_kernel(
    x,
    weight,
    normed,
    rate_weight,
    rate_bias,
    rates,
    tokens,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    RATES: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows < tokens)[:, None] & (columns < WIDTH)[None, :]
    places = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    values = tl.load(x + places, mask=inside, other=0.0)
    centred = tl.where(inside, values - (tl.sum(values, 1) / WIDTH)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / WIDTH + eps)
    result = centred * scale[:, None] * tl.load(weight + columns, mask=columns < WIDTH, other=0.0)[None, :]
    tl.store(normed + places, result.to(normed.dtype.element_ty), mask=inside)
    if RATES:
        for which in tl.static_range(3):
            factor = tl.load(rate_weight + which * WIDTH + columns, mask=columns < WIDTH, other=0.0)
            raw = tl.sum(result * factor[None, :], 1) + tl.load(rate_bias + which)
            rate = tl.where(raw > 20.0, raw, tl.log(1 + tl.exp(tl.minimum(raw, 20.0))))
            tl.store(rates + rows * 3 + which, rate, mask=rows < tokens)


@triton.jit(do_not_specialize=["tokens"])
def _rms_norm_kernel(x, weight, tokens, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows < tokens)[:, None] & (columns < WIDTH)[None, :]
    places = x + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    values = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 1) / WIDTH + eps)
    result = values * scale[:, None] * tl.load(weight + columns, mask=columns < WIDTH, other=0.0)[None, :]
    tl.store(places, result.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _restore_columns_kernel(
    outer,
    steps,
    norms,
    out,
    rounded,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.arange(0, ROWS)
    inside = (rows < WIDTH)[:, None] & (columns < 2 * HIDDEN)[None, :]
    places = rows[:, None] * (2 * HIDDEN) + columns[None, :]
    second = columns >= HIDDEN  # of w2, which is the third of the steps
    step = rows[:, None] * HIDDEN + tl.where(second, columns - HIDDEN + 2 * WIDTH * HIDDEN, columns)[None, :]
    moved = tl.load(outer + places, mask=inside, other=0.0)
    moved += tl.load(steps + step, mask=inside, other=0.0).to(tl.float32)
    norm = tl.load(norms + columns, mask=columns < 2 * HIDDEN, other=0.0)
    moved *= (norm / (tl.sqrt(tl.sum(moved * moved, 0)) + EPS))[None, :]
    tl.store(out + places, moved, mask=inside)
    tl.store(rounded + places, moved.to(rounded.dtype.element_ty), mask=inside)


@triton.jit
def _restore_rows_kernel(
    inner,
    steps,
    norms,
    out,
    rounded,
    EPS: tl.constexpr,
    HIDDEN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0)
    columns = tl.arange(0, COLUMNS)
    inside = columns < HIDDEN
    places = row * HIDDEN + columns
    moved = tl.load(inner + places, mask=inside, other=0.0)
    moved += tl.load(steps + places, mask=inside, other=0.0).to(tl.float32)
    moved *= tl.load(norms + row) / (tl.sqrt(tl.sum(moved * moved, 0)) + EPS)
    tl.store(out + places, moved, mask=inside)
    tl.store(rounded + places, moved.to(rounded.dtype.element_ty), mask=inside)


@triton.jit
def _direction_row(outer, inner, row, which, columns, HIDDEN: tl.constexpr):
    """Where a row of the directions of w0 (0), w1 transposed (1) or w2 (2) is."""
    first = outer + row * (2 * HIDDEN) + (which // 2) * HIDDEN
    return tl.where(which == 1, inner + row * HIDDEN, first) + columns


@triton.jit
def _row_squares_kernel(outer, inner, squares, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    row, which = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    values = tl.load(_direction_row(outer, inner, row, which, columns, HIDDEN), mask=columns < HIDDEN, other=0.0)
    tl.store(squares + which * WIDTH + row, tl.sum(values * values, 0))


@triton.jit
def _scale_rows_kernel(
    outer,
    inner,
    squares,
    steps,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, which = tl.program_id(0), tl.program_id(1)
    rows = tl.arange(0, ROWS)
    total = tl.sum(tl.load(squares + which * WIDTH + rows, mask=rows < WIDTH, other=0.0), 0)
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    values = tl.load(_direction_row(outer, inner, row, which, columns, HIDDEN), mask=inside, other=0.0)
    target = steps + (which * WIDTH + row) * HIDDEN + columns
    tl.store(target, (values / (tl.sqrt(total) + EPS)).to(steps.dtype.element_ty), mask=inside)
