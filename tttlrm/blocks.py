"""The blocks of the network: window attention, fast-weight layer (or global attention), MLP.

Parameter names are those of the published checkpoints.

Dimension letters: B scenes, V this rank's views, n tokens a view, T = V n tokens, d model width, h hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tttlrm import fast_weights
from tttlrm.attention import attention
from tttlrm.config import Compute, ModelConfig, Schedule
from tttlrm.fast_weights import FastWeights, at_least_float32
from tttlrm.parallel import ViewShard, gather_views

INITIAL_LEARNING_RATE = 0.01
LAYER_NORM_EPS = 1e-5
INVERSE_SOFTPLUS = math.log(math.expm1(INITIAL_LEARNING_RATE))


@dataclass(frozen=True)
class Pass:
    """What every layer needs to know about one pass of a scene through the network."""

    schedule: Schedule
    compute: Compute
    shard: ViewShard
    tokens_per_view: int

    def view_tiles(self, num_tokens: int) -> Iterator[slice]:
        """Token ranges of whole views, of about ``tile_tokens`` each."""
        views = max(1, self.compute.tile_tokens // self.tokens_per_view)
        return _tiles(0, num_tokens, views * self.tokens_per_view)

    def token_tiles(self, start: int, stop: int) -> Iterator[slice]:
        """Token ranges of at most ``tile_tokens``."""
        return _tiles(start, stop, self.compute.tile_tokens)

    def chunks(self, num_tokens: int) -> list[slice]:
        """This rank's token range of each fast-weight update; may be empty."""
        if self.schedule.kind == "full":
            return [slice(0, num_tokens)]
        local = [self.shard.local(chunk) for chunk in self.schedule.chunks(self.shard.num_views)]
        return [slice(views.start * self.tokens_per_view, views.stop * self.tokens_per_view) for views in local]


def linear(x: Tensor, weight: Tensor, compute: Compute) -> Tensor:
    """x weight^T in the product dtype."""
    dtype = compute.dtype or weight.dtype
    return F.linear(x.to(dtype), weight.to(dtype))


class Sublayer(nn.Module):
    """Pre-norm residual: x + f(LayerNorm(x)). ``f`` yields its output tile by tile."""

    def __init__(self, width: int, f: nn.Module) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width, bias=False)
        self.f = f

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        """x [B, T, d]. Without gradients, x is updated in place."""
        outputs = self.f(x, lambda tile: layer_norm(x[:, tile], self.ln.weight), run)
        if torch.is_grad_enabled():
            return torch.cat([x[:, tile] + output for tile, output in outputs], dim=1)
        for tile, output in outputs:
            x[:, tile] += output
        return x


Tile = tuple[slice, Tensor]
Normed = Callable[[slice], Tensor]
"""Normalised tokens of a tile; computed when asked for, so that they are never all held."""


class WindowAttention(nn.Module):
    """Softmax attention among the tokens of each view."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_norm = nn.RMSNorm(config.attention_head)
        self.k_norm = nn.RMSNorm(config.attention_head)
        self.c_proj = nn.Linear(config.width, config.width, bias=False)

    def qkv(self, x: Tensor, run: Pass) -> tuple[Tensor, Tensor, Tensor]:
        """Of tokens [B, t, d]: q and k, normalised, and v; each [B, t, heads, head size]."""
        head = self.q_norm.weight.shape[0]
        q, k, v = linear(x, self.to_qkv.weight, run.compute).unflatten(-1, (3, -1, head)).unbind(-3)
        return rms_norm(q, self.q_norm), rms_norm(k, self.k_norm), v

    def forward(self, x: Tensor, normed: Normed, run: Pass) -> Iterator[Tile]:
        for tile in run.view_tiles(x.shape[1]):
            windows = normed(tile).unflatten(1, (-1, run.tokens_per_view)).flatten(0, 1)
            mixed = attention(*self.qkv(windows, run), run.compute.attention_backend)
            output = linear(mixed.flatten(-2), self.c_proj.weight, run.compute)
            yield tile, output.reshape(x.shape[0], -1, x.shape[2])


class GlobalAttention(WindowAttention):
    """Softmax attention among the tokens of all views: cost quadratic in the views (the design of GS-LRM)."""

    def forward(self, x: Tensor, normed: Normed, run: Pass) -> Iterator[Tile]:
        everything = slice(0, x.shape[1])
        q, k, v = self.qkv(normed(everything), run)
        if run.shard.group is not None:
            k, v = self._of_all_ranks(k, v, run)
        mixed = attention(q, k, v, run.compute.attention_backend)
        yield everything, linear(mixed.flatten(-2), self.c_proj.weight, run.compute)

    @staticmethod
    def _of_all_ranks(k: Tensor, v: Tensor, run: Pass) -> tuple[Tensor, Tensor]:
        views = list(range(run.shard.num_views))
        pair = torch.stack([k, v], dim=2).unflatten(1, (-1, run.tokens_per_view))
        k, v = gather_views(pair, run.shard, views).flatten(1, 2).unbind(2)
        return k, v


class FastWeightLayer(nn.Module):
    """Updates the fast weights with the tokens of all views, chunk by chunk, then applies them to every token.

    With several heads, each has a part of the channels and fast weights of its own: a batch of B scenes is computed as
    one of B heads, head by head within each scene. The published model has one head.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = heads = config.fast_weight_heads
        width, head, hidden = config.width, config.width // heads, config.fast_weight_hidden
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.lr_fc = nn.Linear(width, 3 * heads)
        self.w0 = nn.Parameter(torch.randn(heads, head, hidden) * head**-0.5)
        self.w1 = nn.Parameter(torch.randn(heads, hidden, head) * hidden**-0.5)
        self.w2 = nn.Parameter(torch.randn(heads, head, hidden) * head**-0.5)
        self.o_norm = nn.RMSNorm(width, eps=1e-5)
        self.c_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, normed: Normed, run: Pass) -> Iterator[Tile]:
        weights = self.adapt(x.shape[0], x.shape[1], normed, run).cast(run.compute.dtype or self.w0.dtype)
        for tile in run.token_tiles(0, x.shape[1]):
            yield tile, self.apply_weights(normed(tile), weights, run)

    def initial_weights(self, batch: int) -> FastWeights:
        w0, w1, w2 = (at_least_float32(w).expand(batch, -1, -1, -1).flatten(0, 1) for w in (self.w0, self.w1, self.w2))
        return FastWeights.initial(w0, w1, w2)

    def adapt(self, batch: int, num_tokens: int, normed: Normed, run: Pass) -> FastWeights:
        """The fast weights after one update for each chunk of the schedule, the same on every rank."""
        state = self.initial_weights(batch)
        for chunk in run.chunks(num_tokens):
            state = self.update(state, chunk, normed, run)
        return state

    def update(self, state: FastWeights, chunk: slice, normed: Normed, run: Pass) -> FastWeights:
        """One update with this rank's tokens of a chunk and those of the other ranks."""
        product_dtype = run.compute.dtype or self.w0.dtype
        weights = state.cast(product_dtype)
        batch, width, hidden = weights[0].shape
        total = torch.zeros(batch, 3, width, hidden, dtype=state.weights[0].dtype, device=weights[0].device)
        for tile in run.token_tiles(chunk.start, chunk.stop):
            x = normed(tile)
            k, v = self._keys_values(x, run)
            total = total + fast_weights.ascent_direction(k, v, self.learning_rates(x), weights)
        if run.shard.group is not None and not total.requires_grad and state.weights[0].requires_grad:
            total.requires_grad_()  # a rank without tokens of this chunk takes part in the backward sum as well
        total = run.shard.sum(total)
        newton_schulz_dtype = run.compute.newton_schulz_dtype or product_dtype
        return fast_weights.step(state, total, newton_schulz_dtype, run.schedule.elastic)

    def learning_rates(self, x: Tensor) -> Tensor:
        """Learning rates of w0, w1 and w2 for each token: [B heads, t, 3], in at least float32."""
        x = at_least_float32(x)
        raw = F.linear(x, self.lr_fc.weight.to(x.dtype), self.lr_fc.bias.to(x.dtype))
        return F.softplus(self._of_heads(raw) + INVERSE_SOFTPLUS)

    def apply_weights(self, x: Tensor, weights: fast_weights.Triple, run: Pass) -> Tensor:
        """The layer's output for normalised tokens [B, t, d] under adapted weights."""
        width = x.shape[-1]
        q = unit_length(self._of_heads(F.silu(linear(x, self.to_qkv.weight[:width], run.compute))))
        output = fast_weights.evaluate(q, weights)
        if self.heads > 1:
            output = output.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)
        return linear(rms_norm(output, self.o_norm), self.c_proj.weight, run.compute)

    def _keys_values(self, x: Tensor, run: Pass) -> tuple[Tensor, Tensor]:
        k, v = F.silu(linear(x, self.to_qkv.weight[x.shape[-1] :], run.compute)).chunk(2, dim=-1)
        return unit_length(self._of_heads(k)), self._of_heads(v)

    def _of_heads(self, x: Tensor) -> Tensor:
        """[B, t, c] to [B heads, t, c / heads]."""
        return x if self.heads == 1 else x.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)


class MLP(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.width, config.width * config.mlp_expansion, bias=False)
        self.c_proj = nn.Linear(config.width * config.mlp_expansion, config.width, bias=False)

    def forward(self, x: Tensor, normed: Normed, run: Pass) -> Iterator[Tile]:
        for tile in run.token_tiles(0, x.shape[1]):
            hidden = F.gelu(linear(normed(tile), self.c_fc.weight, run.compute))
            yield tile, linear(hidden, self.c_proj.weight, run.compute)


class Block(nn.Module):
    """Window attention, the layer that mixes views, and an MLP; each a pre-norm residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        mixer = FastWeightLayer(config) if config.mixer == "fast_weights" else GlobalAttention(config)
        layers = (WindowAttention(config), mixer, MLP(config))
        self.module_list = nn.ModuleList(Sublayer(config.width, layer) for layer in layers)

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        """Tokens [B, T, d] to tokens; in place where gradients are off."""
        for sublayer in self.module_list:
            x = sublayer(x, run)
        return x


def layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight.to(x.dtype), None, LAYER_NORM_EPS)


def rms_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """Without an eps of its own, the norm takes the machine epsilon of x's dtype."""
    return F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


def unit_length(x: Tensor) -> Tensor:
    """x / (|x| + 1e-5) over the last dimension."""
    return x / (x.norm(dim=-1, keepdim=True) + 1e-5)


def _tiles(start: int, stop: int, step: int) -> Iterator[slice]:
    if start < stop <= start + step:
        return iter((slice(start, stop),))  # without a loop, compiled code is the same for any number of tokens
    return (slice(at, min(at + step, stop)) for at in range(start, stop, step))
