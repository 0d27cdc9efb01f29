"""Matrix products in half precision with the pointwise work that follows them done before anything is stored.

A product of T tokens leaves results of T x 3072 numbers; reading them again only to apply an activation costs a third
as long as the product itself. Sums are float32; the operands are read through the Hopper copy engine.

On GPUs of compute capability 9.x the kernels of :mod:`tttlrm.kernels.split` run instead of those here where they can
(:func:`_split_kernels`); both compute the same.

Dimension letters: T tokens, d model width, h hidden width of the fast weights or the MLP.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from tttlrm.kernels.choice import SPLIT_COLUMNS, split_takes, split_tried

HEAD_NORM_EPS = torch.finfo(torch.float32).eps
UNIT_LENGTH_EPS = 1e-5
PARTIAL_COLUMNS = SPLIT_COLUMNS
"""Squares are summed over this many columns at a time, see :func:`project_silu`."""

_CODES = {"silu": 0, "gelu": 1, "heads": 2}
"""Of the kernel's WHAT."""


@dataclass(frozen=True)
class Tiling:
    """How a kernel here cuts a product: rows, columns and depth of a tile, warps, and tiles that are read ahead.

    Functions that are given one use the kernels here on any GPU.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    persistent: bool = False
    flat: bool = False
    """Of a persistent kernel: tiles are read ahead across the end of a product."""


# The fastest of a dozen each on an H100 and an H200, for d 768 and h 3072.
SILU = Tiling(128, 256, 64, 8, 3, persistent=True, flat=True)
GELU = Tiling(128, 256, 64, 8, 3, persistent=True, flat=True)
HEADS = Tiling(256, 128, 64, 8, 3, persistent=True)
GATED = Tiling(128, 64, 64, 4, 3)
UPDATE = Tiling(128, 64, 64, 4, 3)


def project_silu(x: Tensor, weight: Tensor, tiling: Tiling | None = None) -> tuple[Tensor, Tensor]:
    """silu(x weight^T) of tokens x [T, d] by weight [3 d, d], and what the lengths of q and k are made of.

    Returns:
        q, k and v side by side [T, 3 d], not normalised; and [T, 2 d / PARTIAL_COLUMNS] float32, the sums of squares
        of each group of columns of q, then of k.
    """
    out = x.new_empty(x.shape[0], weight.shape[0])
    squares = x.new_empty(x.shape[0], 2 * x.shape[1] // PARTIAL_COLUMNS, dtype=torch.float32)
    _project("silu", x, weight, out, squares, tiling)
    return out, squares


def project_gelu(x: Tensor, weight: Tensor, tiling: Tiling | None = None) -> Tensor:
    """gelu(x weight^T) for x [T, d] and weight [h, d]: [T, h]. The exact GELU, right to 4e-7 before it is rounded."""
    out = x.new_empty(x.shape[0], weight.shape[0])
    _project("gelu", x, weight, out, x, tiling)
    return out


def project_heads(x: Tensor, weight: Tensor, norms: Tensor, tiling: Tiling | None = None) -> Tensor:
    """x weight^T with RMSNorm on each head of q and k, for x [T, d], weight [3 d, d] and norms [2, head] (float32).

    Returns q, k and v side by side, [T, 3 d].
    """
    out = x.new_empty(x.shape[0], weight.shape[0])
    _project("heads", x, weight, out, norms, tiling)
    return out


def gated(qkv: Tensor, squares: Tensor, outer: Tensor, tiling: Tiling | None = None) -> Tensor:
    """silu(q w0) * (q w2) for q of unit length.

    Args:
        qkv, squares: as :func:`project_silu` gives them (or the same rows of both).
        outer: [d, 2 h], w0 and w2 side by side.

    Returns:
        [T, h].
    """
    tokens, width, hidden = qkv.shape[0], outer.shape[0], outer.shape[1] // 2
    out = qkv.new_empty(tokens, hidden)
    if not tokens:
        return out
    split = None if tiling else _split_kernels(qkv, width, hidden)
    if split is not None:
        split.gated(qkv, outer, out, squares, split.plan("gated", width, hidden, eps=UNIT_LENGTH_EPS))
        return out
    tiling = tiling or GATED
    _launch(
        _gated_kernel,
        tiling,
        out,
        _descriptor(qkv, tiling.rows, tiling.depth),
        _descriptor(outer, tiling.depth, tiling.columns),
        _descriptor(out, tiling.rows, tiling.columns),
        squares,
        WIDTH=width,
        HIDDEN=hidden,
        PARTS=squares.shape[1] // 2,
        EPS=UNIT_LENGTH_EPS,
    )
    return out


def update_terms(
    qkv: Tensor, squares: Tensor, rates: Tensor, outer: Tensor, inner: Tensor, tiling: Tiling | None = None
) -> tuple[Tensor, Tensor]:
    """What the directions of the fast weights' update are products of, with k and v.

    With g = k w0, u = k w2, e = v w1^T for k of unit length: k^T [lr0 e u silu'(g) | lr2 e silu(g)] are the directions
    of w0 and w2, and v^T (lr1 silu(g) u) is that of w1 transposed. The length of k is in the first factor, so that
    the k that :func:`project_silu` stored serves as it is.

    Args:
        qkv, squares: as :func:`project_silu` gives them (or the same rows of both).
        rates: [T, 3] float32, learning rates of w0, w1, w2.
        outer, inner: the weights, [d, 2 h] (w0 and w2 side by side) and [d, h] (w1 transposed).

    Returns:
        [T, 2 h] and [T, h].
    """
    tokens, (width, hidden) = qkv.shape[0], inner.shape
    outer_terms = qkv.new_empty(tokens, 2 * hidden)
    inner_terms = torch.mm(qkv[:, 2 * width :], inner)  # e; becomes the terms in place
    if not tokens:
        return outer_terms, inner_terms
    split = None if tiling else _split_kernels(qkv, width, hidden)
    if split is not None:
        plan = split.plan("update", width, hidden, eps=UNIT_LENGTH_EPS)
        split.update(qkv, outer, outer_terms, inner_terms, squares, rates, plan)
        return outer_terms, inner_terms
    tiling = tiling or UPDATE
    _launch(
        _update_kernel,
        tiling,
        inner_terms,
        _descriptor(qkv, tiling.rows, tiling.depth),
        _descriptor(outer, tiling.depth, tiling.columns),
        _descriptor(outer_terms, tiling.rows, tiling.columns),
        _descriptor(inner_terms, tiling.rows, tiling.columns),
        squares,
        rates,
        WIDTH=width,
        HIDDEN=hidden,
        PARTS=squares.shape[1] // 2,
        EPS=UNIT_LENGTH_EPS,
    )
    return outer_terms, inner_terms


def _split_kernels(x: Tensor, width: int, outputs: int) -> ModuleType | None:
    """The kernels of :mod:`tttlrm.kernels.split` if they make this product of x; otherwise None.

    This is the one place where that is decided.
    """
    if not x.is_cuda or not split_takes(torch.cuda.get_device_capability(x.device), width, outputs):
        return None
    return _imported_split()


@functools.cache
def _imported_split() -> ModuleType | None:
    if not split_tried(triton.__version__):
        return None
    try:
        from tttlrm.kernels import split
    except ImportError:
        return None
    return split


def _project(
    what: Literal["silu", "gelu", "heads"],
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    extra: Tensor,
    tiling: Tiling | None,
) -> None:
    if not len(x):
        return
    width, outputs = x.shape[1], out.shape[1]
    head = extra.shape[1] if what == "heads" else 0
    split = None if tiling else _split_kernels(x, width, outputs)
    if split is not None:
        split.project(x, weight, out, extra, split.plan(what, width, outputs, head, HEAD_NORM_EPS))
        return
    tiling = tiling or {"silu": SILU, "gelu": GELU, "heads": HEADS}[what]
    if width % tiling.columns:
        tiling = replace(tiling, columns=PARTIAL_COLUMNS)  # no tile is of q and of k
    _launch(
        _project_kernel,
        tiling,
        out,
        _descriptor(x, tiling.rows, tiling.depth),
        _descriptor(weight, tiling.columns, tiling.depth),
        _descriptor(out, tiling.rows, tiling.columns),
        extra,
        WIDTH=width,
        OUTPUTS=outputs,
        WHAT=_CODES[what],
        HEAD=head,
        EPS=HEAD_NORM_EPS,
        PART=PARTIAL_COLUMNS,
    )


def _launch(kernel: Any, tiling: Tiling, out: Tensor, *arguments: object, **constants: object) -> None:
    """One program for each tile of ``out`` [T, outputs], or, if persistent, for each multiprocessor."""
    tokens, outputs = out.shape
    tiles = triton.cdiv(tokens, tiling.rows) * triton.cdiv(outputs, tiling.columns)
    programs = tiles
    if tiling.persistent:
        programs = min(tiles, torch.cuda.get_device_properties(out.device).multi_processor_count)
    kernel[(programs,)](
        *arguments,
        tokens,
        ROWS=tiling.rows,
        COLUMNS=tiling.columns,
        DEPTH=tiling.depth,
        FLAT=tiling.flat,
        PROGRAMS=programs,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **constants,
    )


def _descriptor(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns])


@triton.jit(do_not_specialize=["tokens", "PROGRAMS"])
def _project_kernel(
    x,
    weight,
    out,
    extra,
    tokens,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WHAT: tl.constexpr,
    HEAD: tl.constexpr,
    EPS: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    FLAT: tl.constexpr,
    PROGRAMS,
):
    across: tl.constexpr = (OUTPUTS + COLUMNS - 1) // COLUMNS
    for tile in tl.range(tl.program_id(0), tl.cdiv(tokens, ROWS) * across, PROGRAMS, flatten=FLAT):
        row, column = (tile // across) * ROWS, (tile % across) * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for at in range(0, WIDTH, DEPTH):
            total = tl.dot(x.load([row, at]), weight.load([column, at]).T, total)
        if WHAT == 0:
            total = total * tl.sigmoid(total)
            if column < 2 * WIDTH:
                rows = row + tl.arange(0, ROWS)
                split = tl.reshape(total * total, (ROWS, COLUMNS // PART, PART))
                sums = tl.sum(split, 2)
                parts = column // PART + tl.arange(0, COLUMNS // PART)
                places = extra + rows.to(tl.int64)[:, None] * (2 * WIDTH // PART) + parts[None, :]
                tl.store(places, sums, mask=(rows < tokens)[:, None])
        elif WHAT == 1:
            total = _gelu(total)
        else:
            if column < 2 * WIDTH:
                heads = tl.reshape(total, (ROWS, COLUMNS // HEAD, HEAD))
                scale = tl.rsqrt(tl.sum(heads * heads, 2) / HEAD + EPS)
                norm = tl.load(extra + (column // WIDTH) * HEAD + tl.arange(0, HEAD))
                total = tl.reshape(heads * scale[:, :, None] * norm[None, None, :], (ROWS, COLUMNS))
        out.store([row, column], total.to(out.dtype))


@triton.jit
def _gelu(x):
    """x Phi(x), by a rational approximation of erfc that is right to 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    size = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * size)
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail *= 0.5 * tl.exp(-size * size) * x
    return tl.where(x > 0, x - tail, tail)


@triton.jit
def _inverse_length(squares, rows, tokens, FIRST: tl.constexpr, PARTS: tl.constexpr, EPS: tl.constexpr):
    """1 / (|q| + eps), or of k, for some rows; 0 past the last one."""
    total = tl.zeros(rows.shape, dtype=tl.float32)
    for part in tl.static_range(PARTS):
        places = squares + rows.to(tl.int64) * (2 * PARTS) + FIRST + part
        total += tl.load(places, mask=rows < tokens, other=0.0)
    return 1.0 / (tl.sqrt(total) + EPS)


@triton.jit(do_not_specialize=["tokens", "PROGRAMS"])
def _gated_kernel(
    qkv,
    outer,
    out,
    squares,
    tokens,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    PARTS: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    FLAT: tl.constexpr,
    PROGRAMS,
):
    across: tl.constexpr = (HIDDEN + COLUMNS - 1) // COLUMNS
    for tile in tl.range(tl.program_id(0), tl.cdiv(tokens, ROWS) * across, PROGRAMS, flatten=FLAT):
        row, column = (tile // across) * ROWS, (tile % across) * COLUMNS
        gate = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        up = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for at in range(0, WIDTH, DEPTH):
            q = qkv.load([row, at])
            gate = tl.dot(q, outer.load([at, column]), gate)
            up = tl.dot(q, outer.load([at, HIDDEN + column]), up)
        scale = _inverse_length(squares, row + tl.arange(0, ROWS), tokens, 0, PARTS, EPS)[:, None]
        gate *= scale
        out.store([row, column], (gate * tl.sigmoid(gate) * up * scale).to(out.dtype))


@triton.jit(do_not_specialize=["tokens", "PROGRAMS"])
def _update_kernel(
    qkv,
    outer,
    outer_terms,
    inner_terms,
    squares,
    rates,
    tokens,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    PARTS: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    FLAT: tl.constexpr,
    PROGRAMS,
):
    across: tl.constexpr = (HIDDEN + COLUMNS - 1) // COLUMNS
    for tile in tl.range(tl.program_id(0), tl.cdiv(tokens, ROWS) * across, PROGRAMS, flatten=FLAT):
        row, column = (tile // across) * ROWS, (tile % across) * COLUMNS
        back = inner_terms.load([row, column])
        gate = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        up = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for at in range(0, WIDTH, DEPTH):
            k = qkv.load([row, WIDTH + at])
            gate = tl.dot(k, outer.load([at, column]), gate)
            up = tl.dot(k, outer.load([at, HIDDEN + column]), up)
        rows = row + tl.arange(0, ROWS)
        scale = _inverse_length(squares, rows, tokens, PARTS, PARTS, EPS)
        rate0 = scale * scale * tl.load(rates + rows * 3, mask=rows < tokens, other=0.0)
        rate1 = scale * tl.load(rates + rows * 3 + 1, mask=rows < tokens, other=0.0)
        rate2 = scale * tl.load(rates + rows * 3 + 2, mask=rows < tokens, other=0.0)
        gate *= scale[:, None]
        sigmoid = tl.sigmoid(gate)
        active = gate * sigmoid
        inner_terms.store([row, column], (rate1[:, None] * active * up).to(inner_terms.dtype))
        outer_terms.store([row, HIDDEN + column], (rate2[:, None] * back.to(tl.float32) * active).to(outer_terms.dtype))
        slope = sigmoid * (1 + gate - active)
        outer_terms.store([row, column], (rate0[:, None] * back.to(tl.float32) * up * slope).to(outer_terms.dtype))
