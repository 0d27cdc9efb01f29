"""The model as a CUDA GPU runs it fastest: one scene, half-precision products, no gradients.

It computes what :class:`tttlrm.model.TTTLRM` computes with the same :class:`Compute`, in another arrangement: what
follows a product is done before its result is stored wherever that can be, the residual stream is added to by the
products themselves, in float32, and harmonics and rotations of the Gaussians stay in half precision. Its roundings
differ (see NEWTON_SCHULZ_DTYPE). docs/performance.md says what each step brought.

Dimension letters: V this rank's views, n tokens a view, T = V n tokens, d model width, h hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from tttlrm import fast_weights
from tttlrm.attention import attention, require_backend
from tttlrm.blocks import INVERSE_SOFTPLUS, LAYER_NORM_EPS, MLP, Block, FastWeightLayer, Pass, Sublayer, WindowAttention
from tttlrm.cameras import Views
from tttlrm.config import Compute, ModelConfig, Schedule
from tttlrm.errors import UserError
from tttlrm.fast_weights import FastWeights
from tttlrm.gaussians import Gaussians
from tttlrm.model import TTTLRM, check_inputs, consecutive
from tttlrm.parallel import Rounds, ViewShard

OUTPUT_NORM_EPS = 1e-5
NEWTON_SCHULZ_DTYPE = {torch.bfloat16: torch.float16}
"""Of the iteration, by that of the products. Its matrices have singular values of about 1 at most, so that float16's
range is enough, and eight times bfloat16's precision costs nothing."""
_DECODER_GROWTH = 16
"""A decoded token takes the room of about so many others."""


Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BlockWeights:
    """One block's parameters as the products take them.

    Attributes:
        norms: of the three sublayers' LayerNorms, [d] each, float32.
        attention_qkv, attention_out, qkv, out, up, down: matrices [outputs, inputs] in the products' precision.
        head_norms: RMSNorm of q and k, [2, head], float32.
        rate_weight, rate_bias: learning rates of the fast weights, [3, d] and [3], float32; the bias holds what makes
            the initial rate.
        initial: the initial fast weights, [d, 2 h] (w0 and w2 side by side) and [d, h] (w1 transposed), float32.
        column_norms: of w0 and w2, [2 h], and of w1, [d]; float32.
        output_norm: [d], float32.
    """

    norms: tuple[Tensor, Tensor, Tensor]
    attention_qkv: Tensor
    head_norms: Tensor
    attention_out: Tensor
    qkv: Tensor
    rate_weight: Tensor
    rate_bias: Tensor
    initial: Pair
    column_norms: Pair
    output_norm: Tensor
    out: Tensor
    up: Tensor
    down: Tensor


class AcceleratedModel:
    """A model's weights, arranged for :mod:`tttlrm.kernels`. Called as TTTLRM is; see :func:`accelerate`."""

    def __init__(self, model: TTTLRM, dtype: torch.dtype) -> None:
        """The model's parameters are copied, so that it need not be kept."""
        self.config: ModelConfig = model.config
        self.dtype = dtype
        self._embed = _half(model.get_parameter("tokenizer.1.weight"), dtype)
        self._embed_norm = _single(model.input_layernorm.weight)
        self.blocks = [_block_weights(block, dtype) for block in model.blocks if isinstance(block, Block)]
        self._decoder_norm = _single(model.get_parameter("decoder.0.weight"))
        self._decoder = _half(model.get_parameter("decoder.1.weight"), dtype)

    @torch.no_grad()
    def __call__(
        self,
        views: Views,
        schedule: Schedule | None = None,
        compute: Compute | None = None,
        queries: Sequence[int] | None = None,
        shard: ViewShard | None = None,
    ) -> Gaussians:
        """As :meth:`tttlrm.model.TTTLRM.forward`, of one scene [V, ...]."""
        shard = shard or ViewShard(views.num_views)
        compute = compute or Compute(dtype=self.dtype)
        queries = list(range(shard.num_views)) if queries is None else list(queries)
        check_inputs(self.config, views, shard, queries)
        batch = Views(views.images[None], views.camera_to_world[None], views.intrinsics[None])
        tokens = self.encode(batch, compute)
        tokens = self.mix(tokens, shard, schedule or Schedule(), compute)
        return self.decode(tokens, batch, shard, queries, compute).scene(0)

    @torch.no_grad()
    def encode(self, views: Views, compute: Compute) -> Tensor:
        """Views [1, V, ...] to tokens [1, T, d], float32."""
        if compute.dtype != self.dtype:
            raise UserError(f"this accelerated model computes in {self.dtype}, not {compute.dtype}")
        from tttlrm.kernels.pixels import patches
        from tttlrm.kernels.rows import layer_norm

        per_view = (views.height // self.config.patch) * (views.width // self.config.patch)
        tokens = torch.empty(1, views.num_views * per_view, self.config.width, device=views.images.device)
        with torch.cuda.device_of(tokens):  # where Triton launches
            for at in consecutive(range(views.num_views), max(1, compute.tile_tokens // per_view)):
                tile = patches(_one_scene(views.select(at)), self.config.patch, self.dtype)
                embedded = torch.mm(tile, self._embed.T, out_dtype=torch.float32)
                tokens[0, at.start * per_view : at.stop * per_view] = layer_norm(
                    embedded, self._embed_norm, LAYER_NORM_EPS, torch.float32
                )
        return tokens

    @torch.no_grad()
    def mix(
        self,
        tokens: Tensor,
        shard: ViewShard,
        schedule: Schedule,
        compute: Compute,
        done: Callable[[int], None] = lambda count: None,
    ) -> Tensor:
        """All blocks; the tokens [1, T, d] are updated in place."""
        run = Pass(schedule, compute, shard, tokens.shape[1] // len(shard.views))
        x = tokens[0]
        with torch.cuda.device_of(tokens):
            for count, weights in enumerate(self.blocks, start=1):
                _window_attention(x, weights, run)
                _fast_weight_layer(x, weights, run)
                _mlp(x, weights, run)
                done(count)
        return tokens

    @torch.no_grad()
    def decode(
        self, tokens: Tensor, views: Views, shard: ViewShard, queries: Sequence[int], compute: Compute
    ) -> Gaussians:
        """Tokens [1, T, d] to the Gaussians of the query views, gathered from all ranks.

        Spherical harmonics and rotations have the products' precision, the rest is float32; tensors share memory.
        """
        rounds = Rounds(shard, tuple(queries))
        channels, shape = self.config.gaussian_channels, (rounds.slots, views.height * views.width)
        positions, scales = (tokens.new_empty(*shape, numbers) for numbers in (3, 4))
        look = tokens.new_empty(*shape, channels - 7, dtype=self.dtype)
        with torch.cuda.device_of(tokens):
            self._decode_in_rounds(tokens[0], _one_scene(views), rounds, compute, positions, scales, look)
        positions, scales, look = (rounds.ordered(part).flatten(0, 1)[None] for part in (positions, scales, look))
        log_scales, opacities = scales.split([3, 1], dim=-1)
        sh, quaternions = look.split([channels - 11, 4], dim=-1)
        return Gaussians(positions, sh.unflatten(-1, (-1, 3)), log_scales, quaternions, opacities.squeeze(-1))

    def _decode_in_rounds(
        self, tokens: Tensor, views: Views, rounds: Rounds, compute: Compute, *gathered: Tensor
    ) -> None:
        """Decode this rank's views into their slots, each of which goes to the other ranks while the next is made."""
        per_view = tokens.unflatten(0, (views.num_views, -1))
        longest = max(1, compute.tile_tokens // _DECODER_GROWTH // per_view.shape[1]) if rounds.shard.size == 1 else 1
        done, works = 0, []
        for at in consecutive(rounds.own, longest):
            slots = slice(rounds.slot(done), rounds.slot(done) + len(at))
            parts = [part[slots].flatten(0, 1) for part in gathered]
            self._decode_views(per_view[at.start : at.stop].flatten(0, 1), views.select(at), *parts)
            works += rounds.begin(done, *gathered)
            done += len(at)
        for number in range(done, rounds.count):  # this rank has fewer views than others
            works += rounds.begin(number, *gathered)
        for work in works:
            work.wait()

    def _decode_views(self, tokens: Tensor, views: Views, positions: Tensor, scales: Tensor, look: Tensor) -> None:
        """Tokens [t, d] of some views to their Gaussians, written as :func:`finish_gaussians` does."""
        from tttlrm.kernels.pixels import finish_gaussians
        from tttlrm.kernels.rows import layer_norm

        normed = layer_norm(tokens, self._decoder_norm, LAYER_NORM_EPS, self.dtype)
        raw = torch.mm(normed, self._decoder.T, out_dtype=torch.float32).view(-1, self.config.gaussian_channels)
        finish_gaussians(raw, views, self.config, positions, scales, look)


def accelerate(model: TTTLRM, compute: Compute) -> TTTLRM | AcceleratedModel:
    """The accelerated form of a model where there is one for it and its device; otherwise the model itself.

    Raises:
        BackendUnavailableError: the attention backend is not installed.
    """
    require_backend(compute.attention_backend)  # now, for its libraries may take seconds to load
    if compute.dtype is None or why_not(model, compute) is not None:
        return model
    return AcceleratedModel(model, compute.dtype)


def why_not(model: TTTLRM, compute: Compute) -> str | None:
    """Why this model cannot be accelerated here; None if it can."""
    config, device = model.config, model.input_layernorm.weight.device
    if device.type != "cuda":
        return "it runs on CUDA GPUs only"
    if torch.cuda.get_device_capability(device) < (9, 0):
        return "its kernels are for compute capability 9.0 (Hopper) and newer"
    if compute.dtype not in (torch.bfloat16, torch.float16):
        return "it computes in bfloat16 or float16"
    if config.mixer != "fast_weights":
        return "it is for fast weights, not for attention among views"
    if config.fast_weight_heads > 1:
        return "it is for one head of fast weights"
    if config.width % 128 or config.attention_head not in (16, 32, 64, 128):
        return "it needs a width of a multiple of 128, and attention heads of 16, 32, 64 or 128"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton is not installed"
    return None


def _window_attention(x: Tensor, weights: BlockWeights, run: Pass) -> None:
    from tttlrm.kernels.products import project_heads
    from tttlrm.kernels.rows import layer_norm

    dtype, head = weights.attention_qkv.dtype, weights.head_norms.shape[1]
    for tile in run.view_tiles(len(x)):
        normed = layer_norm(x[tile], weights.norms[0], LAYER_NORM_EPS, dtype)
        qkv = project_heads(normed, weights.attention_qkv, weights.head_norms)
        q, k, v = qkv.view(-1, run.tokens_per_view, 3, x.shape[1] // head, head).unbind(2)
        mixed = attention(q, k, v, run.compute.attention_backend)
        _add_product(x[tile], mixed.reshape(-1, x.shape[1]), weights.attention_out)


def _fast_weight_layer(x: Tensor, weights: BlockWeights, run: Pass) -> None:
    from tttlrm.kernels.products import gated, project_silu
    from tttlrm.kernels.rows import layer_norm_and_rates, rms_norm_

    normed, rates = layer_norm_and_rates(
        x, weights.norms[1], weights.rate_weight, weights.rate_bias, LAYER_NORM_EPS, weights.qkv.dtype
    )
    qkv, squares = project_silu(normed, weights.qkv)
    del normed
    outer, inner = _adapt(qkv, squares, rates, weights, run)
    for tile in run.token_tiles(0, len(x)):
        output = torch.mm(gated(qkv[tile], squares[tile], outer), inner.T)
        _add_product(x[tile], rms_norm_(output, weights.output_norm, OUTPUT_NORM_EPS), weights.out)


def _mlp(x: Tensor, weights: BlockWeights, run: Pass) -> None:
    from tttlrm.kernels.products import project_gelu
    from tttlrm.kernels.rows import layer_norm

    for tile in run.token_tiles(0, len(x)):
        normed = layer_norm(x[tile], weights.norms[2], LAYER_NORM_EPS, weights.up.dtype)
        _add_product(x[tile], project_gelu(normed, weights.up), weights.down)


def _adapt(qkv: Tensor, squares: Tensor, rates: Tensor, weights: BlockWeights, run: Pass) -> Pair:
    """The fast weights after all updates, as operands of products: [d, 2 h] and [d, h]."""
    update = _Update(weights, run)
    for chunk in run.chunks(len(qkv)):
        update.step(qkv[chunk], squares[chunk], rates[chunk])
    return update.rounded


class _Update:
    """The fast weights of one block while they are updated.

    Attributes:
        rounded: [d, 2 h] (w0 and w2 side by side) and [d, h] (w1 transposed), as operands of products.
    """

    def __init__(self, weights: BlockWeights, run: Pass) -> None:
        self._weights, self._run = weights, run
        self._current = weights.initial
        self.rounded: Pair = (self._round(weights.initial[0]), self._round(weights.initial[1]))
        self._elastic_state: FastWeights | None = None
        self._width, self._hidden = weights.initial[1].shape
        self._directions = weights.initial[1].new_empty(3 * self._width * self._hidden)

    def step(self, qkv: Tensor, squares: Tensor, rates: Tensor) -> None:
        """One update with this rank's tokens of a chunk and those of the other ranks."""
        self._sum_directions(qkv, squares, rates)
        dtype = self._run.compute.newton_schulz_dtype or NEWTON_SCHULZ_DTYPE.get(
            self.rounded[0].dtype, self.rounded[0].dtype
        )
        if self._run.schedule.elastic is not None:
            self._step_elastically(dtype)
        else:
            self._step(dtype)

    def _round(self, weight: Tensor) -> Tensor:
        return weight.to(self._weights.qkv.dtype, copy=True)

    def _views(self) -> Pair:
        """Of the flat sum: [d, 2 h], directions of w0 and w2 side by side, and [d, h], of w1 transposed."""
        outer, inner = self._directions.split([2 * self._width * self._hidden, self._width * self._hidden])
        return outer.view(self._width, 2 * self._hidden), inner.view(self._width, self._hidden)

    def _sum_directions(self, qkv: Tensor, squares: Tensor, rates: Tensor) -> None:
        from tttlrm.kernels.products import update_terms

        outer, inner = self._views()
        if not len(qkv):
            self._directions.zero_()
        tiles = list(self._run.token_tiles(0, len(qkv)))
        sums = []
        for tile in tiles:
            keys, values = qkv[tile, self._width :].chunk(2, dim=1)
            outer_terms, inner_terms = update_terms(qkv[tile], squares[tile], rates[tile], *self.rounded)
            kept = 0.0 if tile.start == 0 else 1.0
            torch.addmm(inner, values.T, inner_terms, out_dtype=torch.float32, beta=kept, out=inner)
            if tile is tiles[-1]:
                sums.append(self._begin_sum(inner))  # while the larger product runs
            torch.addmm(outer, keys.T, outer_terms, out_dtype=torch.float32, beta=kept, out=outer)
        sums += [self._begin_sum(part) for part in ((outer,) if tiles else (inner, outer))]
        for begun in sums:
            if begun is not None:
                begun.wait()

    def _begin_sum(self, part: Tensor) -> dist.Work | None:
        """Begin the sum over the ranks, in place."""
        group = self._run.shard.group
        return None if group is None else dist.all_reduce(part, group=group.process_group, async_op=True)

    def _step(self, dtype: torch.dtype) -> None:
        from tttlrm.kernels.rows import add_and_restore, normalized

        outer, inner = self._views()
        steps = _orthogonalize(normalized(outer, inner, dtype))
        first = self._current is self._weights.initial
        out = (torch.empty_like(outer), torch.empty_like(inner)) if first else self._current
        add_and_restore(*self._current, steps, self._weights.column_norms, out, self.rounded)
        self._current = out

    def _step_elastically(self, dtype: torch.dtype) -> None:
        if self._elastic_state is None:
            self._elastic_state = FastWeights.initial(*_as_triple(*self._weights.initial))
        w0, w1, w2 = _as_triple(*self._views())
        directions = torch.stack([w0, w1.transpose(-1, -2), w2], dim=1)
        self._elastic_state = fast_weights.step(self._elastic_state, directions, dtype, self._run.schedule.elastic)
        w0, w1, w2 = (weight[0] for weight in self._elastic_state.weights)
        self.rounded[0].copy_(torch.cat([w0, w2], dim=1))
        self.rounded[1].copy_(w1.T)


def _as_triple(outer: Tensor, inner: Tensor) -> fast_weights.Triple:
    """w0 [1, d, h], w1 [1, h, d], w2 [1, d, h] of w0 and w2 side by side, and w1 transposed."""
    w0, w2 = outer.chunk(2, dim=1)
    return w0[None], inner.T[None], w2[None]


def _orthogonalize(x: Tensor) -> Tensor:
    """The Newton-Schulz iteration of :func:`tttlrm.fast_weights.orthogonalize` from x [3, d, h] of unit norm, d <= h.

    Three batched products a step and next to nothing between them: x <- (a + b A + c A^2) x with A = x x^T.
    """
    a, b, c = fast_weights.NEWTON_SCHULZ_COEFFICIENTS
    other = torch.empty_like(x)
    gram = x.new_empty(x.shape[0], x.shape[1], x.shape[1])
    polynomial = torch.empty_like(gram)
    for _ in range(fast_weights.NEWTON_SCHULZ_STEPS):
        torch.bmm(x, x.transpose(1, 2), out=gram)
        torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=polynomial)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        torch.bmm(polynomial, x, out=other)
        x, other = other, x
    return x


def _add_product(x: Tensor, left: Tensor, weight: Tensor) -> None:
    """x += left weight^T, for x in float32 and the others in half precision."""
    torch.addmm(x, left, weight.T, out_dtype=torch.float32, out=x)


def _block_weights(block: Block, dtype: torch.dtype) -> BlockWeights:
    sublayers = [sublayer for sublayer in block.module_list if isinstance(sublayer, Sublayer)]
    window, mixer, mlp = (sublayer.f for sublayer in sublayers)
    assert isinstance(window, WindowAttention) and isinstance(mixer, FastWeightLayer) and isinstance(mlp, MLP)
    outer = torch.cat([_single(mixer.w0[0]), _single(mixer.w2[0])], dim=1)
    inner = _single(mixer.w1[0]).T.contiguous()
    first, second, third = (_single(sublayer.ln.weight) for sublayer in sublayers)
    return BlockWeights(
        norms=(first, second, third),
        attention_qkv=_half(window.to_qkv.weight, dtype),
        head_norms=torch.stack([_single(window.q_norm.weight), _single(window.k_norm.weight)]),
        attention_out=_half(window.c_proj.weight, dtype),
        qkv=_half(mixer.to_qkv.weight, dtype),
        rate_weight=_single(mixer.lr_fc.weight).contiguous(),
        rate_bias=_single(mixer.lr_fc.bias) + INVERSE_SOFTPLUS,
        initial=(outer, inner),
        column_norms=(outer.norm(dim=0), inner.norm(dim=1)),
        output_norm=_single(mixer.o_norm.weight),
        out=_half(mixer.c_proj.weight, dtype),
        up=_half(mlp.c_fc.weight, dtype),
        down=_half(mlp.c_proj.weight, dtype),
    )


def _half(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return parameter.detach().to(dtype).contiguous()


def _single(parameter: Tensor) -> Tensor:
    return parameter.detach().float()


def _one_scene(views: Views) -> Views:
    """Views [1, V, ...] as [V, ...]."""
    if views.images.shape[0] != 1:
        raise UserError(f"an accelerated model takes one scene at a time, not {views.images.shape[0]}")
    return Views(views.images[0], views.camera_to_world[0], views.intrinsics[0])
