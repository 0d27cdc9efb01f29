"""Orthogonalised steps for the matrices of the blocks (Muon, Jordan et al. 2024), as an option beside AdamW.

The iteration is the one that the model's own fast weights are updated with.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tttlrm.fast_weights import orthogonalize

if TYPE_CHECKING:
    from tttlrm.training.optimizer import FlatParameters

_RMS = 0.2
"""Root mean square of a step's numbers, about that of AdamW's, so that one learning rate serves both (Liu et al. 2025,
arXiv:2502.16982)."""
_FEWEST = 16  # rows or columns: norms and biases are no matrices in this sense
_RATES = "lr_fc.weight"  # nor are learning rates, however many heads have some


class OrthogonalSteps:
    """Which parts of a flat vector are matrices of the blocks, and their steps.

    Attributes:
        names: of the parameters whose steps these are.
    """

    def __init__(self, parameters: FlatParameters) -> None:
        self._parameters = parameters
        self.names = [
            name
            for name, value in parameters.named(parameters.values).items()
            if name.startswith("blocks.")
            and not name.endswith(_RATES)
            and value.ndim > 1
            and min(value.shape[-2:]) >= _FEWEST
        ]

    def write(self, momentum: Tensor, update: Tensor) -> None:
        """Put the steps of these parameters, made of ``momentum`` [N], into ``update`` [N]."""
        groups: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for name in self.names:
            pairs = zip(self._matrices(momentum, name), self._matrices(update, name), strict=True)
            for source, target in pairs:
                groups[tuple(source.shape)].append((source, target))
        dtype = torch.bfloat16 if update.is_cuda else update.dtype
        for (rows, columns), group in groups.items():
            steps = orthogonalize(torch.stack([source for source, _ in group]), dtype).to(update.dtype)
            steps *= _RMS * max(rows, columns) ** 0.5
            torch._foreach_copy_([target for _, target in group], list(steps.unbind(0)))

    def _matrices(self, flat: Tensor, name: str) -> list[Tensor]:
        """The [m, n] matrices of a parameter: queries, keys and values are three."""
        value = self._parameters.view(flat, name)
        if name.endswith("to_qkv.weight"):
            return list(value.chunk(3))
        return list(value.flatten(0, -3).unbind(0)) if value.ndim > 2 else [value]
