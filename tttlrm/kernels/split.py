"""Matrix products on Hopper whose warps share the work out: one loads, and two groups of four multiply and finish.

A program stays on its multiprocessor and makes one tile of the result after another. The loading warp runs ahead by
as many steps as shared memory holds, also past the end of a tile. The two groups either take turns, so that one
multiplies while the other finishes its tile (GELU and the update, where finishing is long), or multiply 128 rows each
of the same tile, which reads every weight half as often (the others). What is finished goes to memory through shared
memory, by the copy engine, which leaves out what is past the last token.

In Gluon, the language beneath Triton, for compute capability 9.x; :mod:`tttlrm.kernels.products` says what the
products are, and :mod:`tttlrm.kernels.choice` when these are taken.

Dimension letters: T tokens, d model width, h hidden width of the fast weights or the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from tttlrm.kernels.choice import SPLIT_COLUMNS
from tttlrm.kernels.split_ends import COLUMNS, HALF, ROWS, barrier, begin_reading, finish, inverse_length

DEPTH = gl.constexpr(64)
"""Of a step: 128 bytes of a row, the longest that the copy engine spreads over the banks of shared memory."""

What = Literal["silu", "gelu", "heads", "gated", "update"]


@dataclass(frozen=True)
class Plan:
    """What is known of a product when its kernel is compiled. The kernel reads attributes only.

    Attributes:
        what: what follows the product.
        width: the sum's length, d.
        outputs: columns of the result: 3 d or h.
        head: of "heads".
        eps: of the norm, or of the length.
        turns: the groups take turns; otherwise each has half the rows of every tile.
        stages: steps that are read ahead.
        pair: two products of the same tokens, each of 64 columns, w0 and w2.
        columns: of a tile of the result.
        held: tiles of 64 rows that a group holds in shared memory until they are written.
    """

    what: What
    width: int
    outputs: int
    head: int
    eps: float
    turns: bool
    stages: int
    pair: bool
    columns: int
    held: int

    @property
    def rows(self) -> int:
        """Of a tile: of one group or of both."""
        return ROWS.value if self.turns else 2 * ROWS.value

    def tiles(self, tokens: int) -> int:
        return -(-tokens // self.rows) * (self.outputs // self.columns)


_TURNS_AND_STAGES = {
    "silu": (False, 3),
    "gelu": (True, 5),
    "heads": (False, 3),
    "gated": (False, 4),
    "update": (True, 5),
}


def plan(what: What, width: int, outputs: int, head: int = 0, eps: float = 0.0) -> Plan:
    """The fastest arrangement that was found for d 768 and h 3072 on an H100 (docs/performance.md)."""
    turns, stages = _TURNS_AND_STAGES[what]
    pair = what in ("gated", "update")
    columns = SPLIT_COLUMNS // 2 if pair else SPLIT_COLUMNS
    return Plan(what, width, outputs, head, eps, turns, stages, pair, columns, 3 if what == "update" else 2)


def project(x: Tensor, weight: Tensor, out: Tensor, extra: Tensor, made: Plan) -> None:
    """What of x [T, d] weight^T [d, outputs] the plan says, into ``out``.

    Args:
        extra: of "silu", the sums of squares, written; of "heads", the norms.
    """
    _launch(made, x, weight, (COLUMNS.value, DEPTH.value), out, out, extra, extra)


def gated(qkv: Tensor, outer: Tensor, out: Tensor, squares: Tensor, made: Plan) -> None:
    """silu(q w0) * (q w2) into ``out`` [T, h]."""
    _launch(made, qkv, outer, (DEPTH.value, made.columns), out, out, squares, squares)


def update(
    qkv: Tensor, outer: Tensor, outer_terms: Tensor, inner_terms: Tensor, squares: Tensor, rates: Tensor, made: Plan
) -> None:
    """The update's terms into ``outer_terms`` [T, 2 h] and, in the place of v w1^T, into ``inner_terms`` [T, h]."""
    _launch(made, qkv, outer, (DEPTH.value, made.columns), inner_terms, outer_terms, squares, rates)


def _launch(
    made: Plan,
    x: Tensor,
    weight: Tensor,
    weight_block: tuple[int, int],
    out: Tensor,
    outer_terms: Tensor,
    extra: Tensor,
    rates: Tensor,
) -> None:
    """One program for each multiprocessor, or for each tile where there are fewer."""
    tiles = made.tiles(len(x))
    _kernel[(min(tiles, torch.cuda.get_device_properties(x.device).multi_processor_count),)](
        _descriptor(x, ROWS.value, DEPTH.value),
        _descriptor(weight, *weight_block),
        _descriptor(out, HALF.value, made.columns),
        _descriptor(outer_terms, HALF.value, made.columns),
        extra,
        rates,
        len(x),
        tiles,
        PLAN=made,
        num_warps=4,
    )


def _descriptor(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns], layout)


def _name(specialization: Any) -> str:
    """Of the kernel, in profiles."""
    return f"_split_{specialization.constants['PLAN'].what}_kernel"


@gluon.jit(repr=_name, do_not_specialize=["tokens", "tiles"], do_not_specialize_on_alignment=["rates"])
def _kernel(x, weight, out, outer_terms, extra, rates, tokens, tiles, PLAN: gl.constexpr):
    SLICES: gl.constexpr = 1 if PLAN.turns else 2
    STAGES: gl.constexpr = PLAN.stages
    left = gl.allocate_shared_memory(x.dtype, [STAGES * SLICES, ROWS, DEPTH], x.layout)
    if PLAN.pair:
        right = gl.allocate_shared_memory(x.dtype, [STAGES * 2, DEPTH, PLAN.columns], weight.layout)
    else:
        right = gl.allocate_shared_memory(x.dtype, [STAGES, COLUMNS, DEPTH], weight.layout)
    held = gl.allocate_shared_memory(x.dtype, [2 * PLAN.held, HALF, PLAN.columns], out.layout)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    back = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(empty.index(i), count=SLICES)
        mbarrier.init(full.index(i), count=1)
    for i in gl.static_range(2):
        mbarrier.init(turn.index(i), count=1)
        mbarrier.init(back.index(i), count=1)
    fence_async_shared()
    barrier()
    results = (out, outer_terms, extra, rates, tokens, tiles)
    memory = (left, right, held, empty, full, turn, back)
    gl.warp_specialize(
        [
            (_first_group, (results, memory, PLAN)),
            (_second_group, (results, memory, PLAN)),
            (_load, (x, weight, tiles, memory, PLAN)),
        ],
        [4, 1],  # warps of the second and the third; the first has the kernel's four
        [240, 24],  # and their registers
    )


@gluon.jit
def _load(x, weight, tiles, memory, PLAN: gl.constexpr):
    """The loading warp: the operands of every step of every tile, each as soon as there is room."""
    left, right, held, empty, full, turn, back = memory
    SLICES: gl.constexpr = 1 if PLAN.turns else 2
    STEPS: gl.constexpr = PLAN.width // DEPTH
    FIRST: gl.constexpr = PLAN.width if PLAN.what == "update" else 0  # k is after q
    across: gl.constexpr = PLAN.outputs // PLAN.columns
    n = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, column = (tile // across) * (SLICES * ROWS), (tile % across) * PLAN.columns
        for k in range(STEPS):
            stage = n % PLAN.stages
            mbarrier.wait(empty.index(stage), ((n // PLAN.stages) & 1) ^ 1)
            ready = full.index(stage)
            mbarrier.expect(ready, (SLICES * ROWS + COLUMNS) * DEPTH * 2)
            for i in gl.static_range(SLICES):
                at = [row + i * ROWS, FIRST + k * DEPTH]
                tma.async_copy_global_to_shared(x, at, ready, left.index(stage * SLICES + i))
            if PLAN.pair:
                for i in gl.static_range(2):
                    at = [k * DEPTH, i * PLAN.outputs + column]
                    tma.async_copy_global_to_shared(weight, at, ready, right.index(stage * 2 + i))
            else:
                tma.async_copy_global_to_shared(weight, [column, k * DEPTH], ready, right.index(stage))
            n += 1


@gluon.jit
def _first_group(results, memory, PLAN: gl.constexpr):
    _compute(0, results, memory, PLAN)


@gluon.jit
def _second_group(results, memory, PLAN: gl.constexpr):
    _compute(1, results, memory, PLAN)


@gluon.jit
def _compute(GROUP: gl.constexpr, results, memory, PLAN: gl.constexpr):
    """One of the two groups: every other tile, or its half of the rows of every tile."""
    out, outer_terms, extra, rates, tokens, tiles = results
    left, right, held, empty, full, turn, back = memory
    layout: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16])
    STEPS: gl.constexpr = PLAN.width // DEPTH
    across: gl.constexpr = PLAN.outputs // PLAN.columns
    if PLAN.turns:
        first, stride, n = gl.program_id(0) + GROUP * gl.num_programs(0), 2 * gl.num_programs(0), GROUP * STEPS
    else:
        first, stride, n = gl.program_id(0), gl.num_programs(0), 0
    count = 0
    for tile in range(first, tiles, stride):
        row, column = (tile // across) * ROWS, (tile % across) * PLAN.columns
        if not PLAN.turns:
            row = row * 2 + GROUP * ROWS
        if PLAN.what == "update":
            begin_reading(out, row, column, GROUP, held, back, PLAN)
        rows0 = row + gl.arange(0, HALF, layout=gl.SliceLayout(1, layout))
        rows1 = rows0 + HALF
        scale0, scale1 = rows0, rows1
        if PLAN.pair:
            scale0 = inverse_length(extra, rows0, tokens, PLAN)
            scale1 = inverse_length(extra, rows1, tokens, PLAN)
        if PLAN.turns:
            mbarrier.wait(turn.index(GROUP), (count + 1 - GROUP) & 1)
        total0, total1, n = _multiply(GROUP, n, left, right, empty, full, turn, layout, PLAN)
        at = (row, column, count)
        finish(total0, rows0, scale0, 0, GROUP, at, results, held, back, PLAN)
        finish(total1, rows1, scale1, 1, GROUP, at, results, held, back, PLAN)
        count += 1  # noqa: SIM113 - Gluon has no enumerate
    tma.store_wait(0)


@gluon.jit
def _multiply(GROUP: gl.constexpr, n, left, right, empty, full, turn, layout: gl.constexpr, PLAN: gl.constexpr):
    """The sums of a group's 128 rows, in two halves, from step n on; and the number of the group's next step."""
    STEPS: gl.constexpr = PLAN.width // DEPTH
    flat: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    total0 = gl.zeros((HALF, COLUMNS), gl.float32, layout)
    total1 = gl.zeros((HALF, COLUMNS), gl.float32, layout)
    for k in range(STEPS):
        stage = n % PLAN.stages
        mbarrier.wait(full.index(stage), (n // PLAN.stages) & 1)
        rows = left.index(stage) if PLAN.turns else left.index(stage * 2 + GROUP)
        if PLAN.pair:  # w0 and w2 lie one after the other, and are one operand
            columns = right.index(stage * 2)._reinterpret(right.dtype, [DEPTH, COLUMNS], flat)
        else:
            columns = right.index(stage).permute((1, 0))
        total0 = warpgroup_mma(rows.slice(0, HALF), columns, total0, use_acc=k > 0, is_async=True)
        total1 = warpgroup_mma(rows.slice(HALF, HALF), columns, total1, use_acc=k > 0, is_async=True)
        total0, total1 = warpgroup_mma_wait(num_outstanding=2, deps=(total0, total1))
        barrier()
        mbarrier.arrive(empty.index((n + PLAN.stages - 1) % PLAN.stages), count=1, pred=k > 0)  # of the step before
        n += 1
    if PLAN.turns:
        mbarrier.arrive(turn.index(1 - GROUP), count=1)
    total0, total1 = warpgroup_mma_wait(num_outstanding=0, deps=(total0, total1))
    barrier()
    mbarrier.arrive(empty.index((n + PLAN.stages - 1) % PLAN.stages), count=1)
    if PLAN.turns:
        n += STEPS  # those of the other group's tile
    return total0, total1, n
