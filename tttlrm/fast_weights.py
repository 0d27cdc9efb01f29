"""Fast weights: a small network f_W inside each block that is trained on the scene's own tokens at test time.

    f_W(x) = (silu(x w0) * (x w2)) w1

An update ascends the inner product of f_W(k) and v, summed over a chunk of tokens, by one orthogonalised (Muon) step;
applying it evaluates f_W(q). Paper section 3; the selective update is that of Fast Spatial Memory.

Dimension letters: B scenes, T tokens, d model width, h hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tttlrm.config import ElasticUpdate

NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)

Triple = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class FastWeights:
    """The fast weights of one block and what their updates remember.

    Attributes:
        weights: w0 [B, d, h], w1 [B, h, d], w2 [B, d, h], at least float32.
        column_norms: norms of the columns of the initial weights, [B, 1, h or d] each; updates preserve them.
        importance, anchors: state of the selective update, shaped as the weights; None until its first step.
    """

    weights: Triple
    column_norms: Triple
    importance: Triple | None = None
    anchors: Triple | None = None

    @staticmethod
    def initial(w0: Tensor, w1: Tensor, w2: Tensor) -> FastWeights:
        """The state before any update, from the learned initial weights."""
        return FastWeights((w0, w1, w2), _each(_column_norm, (w0, w1, w2)))

    def cast(self, dtype: torch.dtype) -> Triple:
        """The weights as operands of products in ``dtype``."""
        w0, w1, w2 = (w.to(dtype) for w in self.weights)
        return w0, w1, w2


def evaluate(q: Tensor, weights: Triple) -> Tensor:
    """f_W(q) for q [B, T, d], with weights of q's dtype. Returns [B, T, d]."""
    w0, w1, w2 = weights
    return (F.silu(q @ w0) * (q @ w2)) @ w1


def ascent_direction(k: Tensor, v: Tensor, rates: Tensor, weights: Triple) -> Tensor:
    """Gradient of sum_t <f_W(k_t), v_t> with respect to each weight, each token scaled by its learning rate.

    Args:
        k, v: [B, T, d].
        rates: [B, T, 3], learning rates of w0, w1 and w2.
        weights: of k's dtype.

    Returns:
        [B, 3, d, h], at least float32: the directions of w0, w1 transposed, and w2.
    """
    w0, w1, w2 = weights
    rate0, rate1, rate2 = rates.to(k.dtype).split(1, dim=-1)
    gate, up, back = k @ w0, k @ w2, v @ w1.transpose(-1, -2)
    sigmoid = gate.sigmoid()
    activated = gate * sigmoid
    slope = sigmoid * (1 + gate * (1 - sigmoid))
    keys, values = k.transpose(-1, -2), v.transpose(-1, -2)
    directions = (
        keys @ (rate0 * back * up * slope),
        values @ (rate1 * activated * up),
        keys @ (rate2 * back * activated),
    )
    return torch.stack([at_least_float32(g) for g in directions], dim=1)


def step(state: FastWeights, directions: Tensor, dtype: torch.dtype, elastic: ElasticUpdate | None) -> FastWeights:
    """One update: orthogonalise, add, pull back where elastic, and restore the column norms.

    Args:
        state: the weights before.
        directions: [B, 3, d, h] as :func:`ascent_direction` returns them, summed over all tokens and ranks.
        dtype: of the Newton-Schulz iteration.
    """
    steps = orthogonalize(directions, dtype).to(directions.dtype)
    delta = (steps[:, 0], steps[:, 1].transpose(-1, -2), steps[:, 2])
    weights = _each(torch.add, state.weights, delta)
    if elastic is None:
        return replace(state, weights=_each(_restore_columns, weights, state.column_norms))

    anchors = state.anchors if state.anchors is not None else state.weights
    importance = state.importance if state.importance is not None else _each(torch.zeros_like, weights)
    decay = elastic.importance_decay
    importance = _each(lambda old, change: decay * old + (1 - decay) * change.square(), importance, delta)
    weights = _each(lambda w, f, a: _pull_back(w, f, a, elastic.strength), weights, importance, anchors)
    weights = _each(_restore_columns, weights, state.column_norms)
    anchors = _each(lambda a, w: elastic.anchor_decay * a + (1 - elastic.anchor_decay) * w, anchors, weights)
    return FastWeights(weights, state.column_norms, importance, anchors)


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearly the closest semi-orthogonal matrix to each of [..., m, n], by a Newton-Schulz iteration (Muon).

    Five steps of X <- a X + (b A + c A^2) X with A = X X^T, from X of unit Frobenius norm, taken with no more rows
    than columns. Singular values end between about 0.7 and 1.2. Returned in ``dtype``. In bfloat16 the order of the
    roundings matters: this is the one of the published model.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.transpose(-1, -2) if tall else matrices).to(dtype)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = _product(x, x.transpose(-1, -2))
        x = a * x + _product(b * gram + _product(c * gram, gram), x)
    return x.transpose(-1, -2) if tall else x


def _product(x: Tensor, y: Tensor) -> Tensor:
    """x y; in bfloat16 on a CPU correctly rounded, so that the result does not depend on the CPU's instructions.

    The iteration amplifies a single different rounding in bfloat16 to as much as a per cent of the weights.
    """
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        return (x.double() @ y.double()).to(x.dtype)
    return x @ y


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it already is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _column_norm(weight: Tensor) -> Tensor:
    return weight.norm(dim=-2, keepdim=True)


def _restore_columns(weight: Tensor, norms: Tensor) -> Tensor:
    return weight / (_column_norm(weight) + 1e-5) * norms


def _pull_back(weight: Tensor, importance: Tensor, anchor: Tensor, strength: float) -> Tensor:
    relative = importance / (importance.amax(dim=(-2, -1), keepdim=True) + 1e-8)
    return weight - strength * (1 - relative) * (weight - anchor)


def _each(function, *triples: Triple) -> Triple:  # type: ignore[no-untyped-def]
    """The function of the three weights, one after the other."""
    first, second, third = (function(*items) for items in zip(*triples, strict=True))
    return first, second, third
