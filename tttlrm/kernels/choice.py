"""When the kernels of :mod:`tttlrm.kernels.split` make the products of the accelerated model.

Needs neither Triton nor a GPU.
"""

from __future__ import annotations

SPLIT_TRITON = ("3.6", "3.7")
"""Versions of Triton that they were tried with: their language, Gluon, is not a stable interface yet. With 3.7 they
were compiled only: to the same loads, products and waits in the same order as with 3.6."""
SPLIT_COLUMNS = 128
"""What the widths of operands and results are multiples of."""


def split_takes(capability: tuple[int, int], width: int, outputs: int) -> bool:
    """Whether they make a product of ``width`` numbers for each of so many outputs, on such a GPU.

    The matrix instructions that they use are those of compute capability 9.x and of no other.
    """
    return capability[0] == 9 and all(size > 0 and size % SPLIT_COLUMNS == 0 for size in (width, outputs))


def split_tried(triton_version: str) -> bool:
    return triton_version.startswith(tuple(f"{version}." for version in SPLIT_TRITON))
