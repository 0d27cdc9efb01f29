"""What follows the products of :mod:`tttlrm.kernels.split`, for 64 rows of a tile: from registers to memory.

PLAN is a :class:`tttlrm.kernels.split.Plan`.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from tttlrm.kernels.choice import SPLIT_COLUMNS

ROWS = gl.constexpr(128)
"""Rows of a group: two products of 64, the most that one instruction takes."""
HALF = gl.constexpr(64)
COLUMNS = gl.constexpr(SPLIT_COLUMNS)

barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # its name in Triton 3.6, and since 3.7


@gluon.jit
def finish(total, rows, scale, WHICH: gl.constexpr, GROUP: gl.constexpr, at, results, held, back, PLAN: gl.constexpr):
    """What follows the product, for 64 rows."""
    out, outer_terms, extra, rates, tokens, tiles = results
    row, column, count = at
    row += WHICH * HALF
    buffer = held.index(GROUP * PLAN.held + WHICH)
    if PLAN.what == "update":
        if WHICH == 0:
            mbarrier.wait(back.index(GROUP), count & 1)
        spare = held.index(GROUP * PLAN.held + 2)
        _finish_update(total, rows, scale, row, column, out, outer_terms, rates, tokens, buffer, spare, PLAN)
    else:
        if PLAN.what == "gated":
            value = _gated(total, scale)
        elif PLAN.what == "silu":
            value = total * _sigmoid(total)
            if column < 2 * PLAN.width:
                places = extra + rows.to(gl.int64) * (2 * PLAN.width // COLUMNS) + column // COLUMNS
                gl.store(places, gl.sum(value * value, 1), mask=rows < tokens)
        elif PLAN.what == "gelu":
            value = _gelu(total)
        else:
            value = _head_norm(total, extra, column, PLAN)
        tma.store_wait(1)  # all but the other half's
        barrier()
        _store(out, row, column, buffer, value.to(out.dtype))


@gluon.jit
def _gated(total, scale):
    gate, up = _pair(total)
    layout: gl.constexpr = gate.type.layout
    scale = _down_rows(scale, layout)
    gate *= scale
    return gate * _sigmoid(gate) * up * scale


@gluon.jit
def _finish_update(total, rows, scale, row, column, out, outer_terms, rates, tokens, buffer, spare, PLAN: gl.constexpr):
    """The three terms. ``buffer`` has v w1^T, and is written from as soon as that is read."""
    gate, up = _pair(total)
    layout: gl.constexpr = gate.type.layout
    inside = rows < tokens
    rate0 = _down_rows(scale * scale * gl.load(rates + rows * 3, mask=inside, other=0.0), layout)
    rate1 = _down_rows(scale * gl.load(rates + rows * 3 + 1, mask=inside, other=0.0), layout)
    rate2 = _down_rows(scale * gl.load(rates + rows * 3 + 2, mask=inside, other=0.0), layout)
    gate *= _down_rows(scale, layout)
    sigmoid = _sigmoid(gate)
    active = gate * sigmoid
    e = buffer.load(layout).to(gl.float32)
    of_w2 = (rate2 * e * active).to(out.dtype)
    of_w0 = (rate0 * e * up * (sigmoid * (1 + gate - active))).to(out.dtype)
    of_w1 = (rate1 * active * up).to(out.dtype)
    barrier()
    _store(outer_terms, row, PLAN.outputs + column, buffer, of_w2)
    tma.store_wait(1)
    barrier()
    _store(out, row, column, spare, of_w1)
    tma.store_wait(1)
    barrier()
    _store(outer_terms, row, column, buffer, of_w0)


@gluon.jit
def begin_reading(inner_terms, row, column, GROUP: gl.constexpr, held, back, PLAN: gl.constexpr):
    """Read v w1^T of a tile, whose place its terms take, into the buffers that the last tile's were written from."""
    tma.store_wait(0)
    fence_async_shared()
    barrier()
    ready = back.index(GROUP)
    mbarrier.expect(ready, ROWS * PLAN.columns * 2)
    for i in gl.static_range(2):
        buffer = held.index(GROUP * PLAN.held + i)
        tma.async_copy_global_to_shared(inner_terms, [row + i * HALF, column], ready, buffer)


@gluon.jit
def _store(out, row, column, buffer, value):
    """Write a tile by the copy engine, by way of a buffer that is free."""
    buffer.store(value)
    fence_async_shared()
    barrier()
    tma.async_copy_shared_to_global(out, [row, column], buffer)


@gluon.jit
def _pair(total):
    """The products with w0 and with w2."""
    return gl.split(gl.permute(gl.reshape(total, (HALF, 2, COLUMNS // 2)), (0, 2, 1)))


@gluon.jit
def _down_rows(numbers, layout: gl.constexpr):
    """A number of each row as a column beside a matrix of that layout."""
    return gl.expand_dims(gl.convert_layout(numbers, gl.SliceLayout(1, layout)), 1)


@gluon.jit
def inverse_length(squares, rows, tokens, PLAN: gl.constexpr):
    """1 / (|q| + eps), or of k for the update, for some rows; 1 / eps past the last one."""
    PARTS: gl.constexpr = PLAN.width // COLUMNS
    FIRST: gl.constexpr = PARTS if PLAN.what == "update" else 0
    places = squares + rows.to(gl.int64) * (2 * PARTS) + FIRST
    total = gl.load(places, mask=rows < tokens, other=0.0)
    for part in gl.static_range(1, PARTS):
        total += gl.load(places + part, mask=rows < tokens, other=0.0)
    return 1.0 / (gl.sqrt(total) + PLAN.eps)


@gluon.jit
def _head_norm(total, norms, column, PLAN: gl.constexpr):
    """RMSNorm of each head of q and k; v stays as it is."""
    if column < 2 * PLAN.width:
        heads = gl.reshape(total, (HALF, COLUMNS // PLAN.head, PLAN.head))
        scale = gl.rsqrt(gl.sum(heads * heads, 2) / PLAN.head + PLAN.eps)
        places: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(0, heads.type.layout))
        norm = gl.load(norms + (column // PLAN.width) * PLAN.head + gl.arange(0, PLAN.head, layout=places))
        normed = heads * gl.expand_dims(scale, 2) * gl.expand_dims(gl.expand_dims(norm, 0), 0)
        layout: gl.constexpr = total.type.layout
        total = gl.convert_layout(gl.reshape(normed, (HALF, COLUMNS)), layout)
    return total


@gluon.jit
def _gelu(x):
    """x Phi(x), as in ``products``: constants of erfc's approximation, with x for x / sqrt(2) and half the result."""
    t = _reciprocal(1.0 + 0.23164189 * gl.abs(x))
    tail = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
    tail *= _power_of_two(x * x * -0.7213475204444817) * x
    return gl.where(x > 0, x - tail, tail)


@gluon.jit
def _sigmoid(x):
    return _reciprocal(1.0 + _power_of_two(x * -1.4426950408889634))


@gluon.jit
def _reciprocal(x):
    """1 / x in one instruction, right to 1 ulp."""
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def _power_of_two(x):
    """2^x in one instruction, right to 2 ulp."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)
