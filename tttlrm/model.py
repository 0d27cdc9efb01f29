"""tttLRM: posed views to tokens to Gaussians.

Dimension letters: B scenes, V this rank's views, p patch size, n = (H/p)(W/p) tokens a view, d model width,
Q query views, C Gaussian channels a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tttlrm.blocks import Block, Pass, layer_norm, linear
from tttlrm.cameras import Views, pixel_rays, ray_images
from tttlrm.config import Compute, ModelConfig, Schedule
from tttlrm.errors import UserError
from tttlrm.fast_weights import at_least_float32
from tttlrm.gaussians import Gaussians
from tttlrm.parallel import ViewShard, gather_views
from tttlrm.rendering.spherical_harmonics import BAND0

_MIN_DISTANCE = 1e-4  # a Gaussian in the camera's centre would have no size
DECODER_GROWTH = 8
"""A decoded token takes the room of about so many others."""


class TTTLRM(nn.Module):
    """Large reconstruction model with test-time training (arXiv:2602.20160).

    Built with random weights; :func:`tttlrm.checkpoints.load_model` reads trained ones. Parameter names are those of
    the published checkpoints.
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        pixels = config.patch**2
        self.tokenizer = nn.Sequential(nn.Identity(), nn.Linear(12 * pixels, config.width, bias=False))
        self.input_layernorm = nn.LayerNorm(config.width, bias=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.decoder = nn.Sequential(
            nn.LayerNorm(config.width, bias=False),
            nn.Linear(config.width, pixels * config.gaussian_channels, bias=False),
        )
        self.apply(_initialize)

    def forward(
        self,
        views: Views,
        schedule: Schedule | None = None,
        compute: Compute | None = None,
        queries: Sequence[int] | None = None,
        shard: ViewShard | None = None,
    ) -> Gaussians:
        """Reconstruct a scene, or each scene of a batch.

        Args:
            views: this rank's input views [V, ...] or [B, V, ...], in the order of the scene; H and W multiples of p.
                Poses are expected as :func:`tttlrm.cameras.normalize_poses` makes them.
            schedule: of the fast-weight updates; full by default.
            compute: dtype, tile size, attention kernel.
            queries: positions, in the scene's input views, of the views whose pixels become Gaussians; default all.
                All input views train the fast weights either way.
            shard: which of the scene's views ``views`` are, under sequence parallelism; default: all.

        Returns:
            Q H W Gaussians (of each scene), in the order view, patch row, patch column, pixel row, pixel column;
            on every rank the same. At least float32.
        """
        batched = views.images.ndim == 5
        if not batched:
            views = Views(views.images[None], views.camera_to_world[None], views.intrinsics[None])
        shard = shard or ViewShard(views.num_views)
        compute = compute or Compute()
        queries = list(range(shard.num_views)) if queries is None else list(queries)
        check_inputs(self.config, views, shard, queries)

        tokens = self.encode(views, compute)
        tokens = self.mix(tokens, shard, schedule or Schedule(), compute)
        gaussians = self.decode(tokens, views, shard, queries, compute)
        return gaussians if batched else gaussians.scene(0)

    def encode(self, views: Views, compute: Compute) -> Tensor:
        """Views [B, V, ...] to tokens [B, V n, d], in at least float32."""
        stream_dtype = at_least_float32(self.input_layernorm.weight).dtype
        tiles = []
        for part in self._view_tiles(views, compute):
            rays = ray_images(part.to(stream_dtype))
            embedded = linear(patchify(rays, self.config.patch), self.get_parameter("tokenizer.1.weight"), compute)
            tiles.append(layer_norm(embedded.to(stream_dtype), self.input_layernorm.weight).flatten(1, 2))
        return torch.cat(tiles, dim=1)

    def mix(
        self,
        tokens: Tensor,
        shard: ViewShard,
        schedule: Schedule,
        compute: Compute,
        done: Callable[[int], None] = lambda count: None,
    ) -> Tensor:
        """All blocks. Without gradients, the tokens are updated in place. ``done`` is told the blocks finished."""
        run = Pass(schedule, compute, shard, tokens.shape[1] // len(shard.views))
        for count, block in enumerate(self.blocks, start=1):
            if compute.checkpoint_activations and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, run, use_reentrant=False)
            else:
                tokens = block(tokens, run)
            done(count)
        return tokens

    def decode(
        self, tokens: Tensor, views: Views, shard: ViewShard, queries: Sequence[int], compute: Compute
    ) -> Gaussians:
        """Tokens [B, V n, d] of the input views to the Gaussians of the query views, gathered from all ranks."""
        owned = [shard.locate(view)[1] for view in queries if shard.locate(view)[0] == shard.rank]
        per_view = tokens.unflatten(1, (views.num_views, -1))
        parts = []
        for at in consecutive(owned, max(1, compute.tile_tokens // DECODER_GROWTH // per_view.shape[2])):
            parts.append(self._decode_views(per_view[:, at.start : at.stop], views.select(at), compute))
        pixels = views.height * views.width
        empty = tokens.new_zeros(tokens.shape[0], 0, pixels, self.config.gaussian_channels)
        packed = gather_views(torch.cat(parts, dim=1) if parts else empty, shard, list(queries)).flatten(1, 2)
        return _unpack(packed)

    def _decode_views(self, tokens: Tensor, views: Views, compute: Compute) -> Tensor:
        """Tokens [B, q, n, d] of some views to their Gaussians as one tensor [B, q, H W, C], for the gather."""
        config = self.config
        normed = layer_norm(tokens, self.get_parameter("decoder.0.weight"))
        raw = linear(normed, self.get_parameter("decoder.1.weight"), compute).to(tokens.dtype)
        raw = raw.unflatten(-1, (config.patch**2, config.gaussian_channels)).flatten(2, 3)
        origins, directions = (
            patchify(r, config.patch).unflatten(-1, (-1, 3)).flatten(2, 3)
            for r in pixel_rays(views.cameras.to(tokens.dtype))
        )
        position, sh, scale, rotation, opacity = raw.split([3, config.gaussian_channels - 11, 3, 4, 1], dim=-1)
        depth = self._distances(position.mean(-1, keepdim=True).sigmoid())
        log_scale = scale + config.log_scale_bias
        if config.scale_unit == "pixel":
            focal = views.intrinsics[..., :2].to(depth.dtype).mean(-1)
            log_scale = log_scale + depth.clamp(min=_MIN_DISTANCE).log() - focal[..., None, None].log()
        log_scale = log_scale.clamp(max=config.log_scale_max)
        if config.color_residual:
            colors = patchify(views.images.movedim(-3, -1), config.patch).unflatten(-1, (-1, 3)).flatten(2, 3)
            sh = torch.cat([sh[..., :3] + (colors.to(sh.dtype) - 0.5) / BAND0, sh[..., 3:]], dim=-1)
        parts = (origins + depth * directions, sh, log_scale, rotation, opacity + config.opacity_bias)
        return torch.cat(parts, dim=-1)

    def _distances(self, places: Tensor) -> Tensor:
        """Distances from the camera at places between near (0) and far (1)."""
        near, far = self.config.near, self.config.far
        if self.config.distance_spacing == "log":
            return near * (places * math.log(far / near)).exp()
        return near + (far - near) * places

    def _view_tiles(self, views: Views, compute: Compute) -> list[Views]:
        tokens_per_view = (views.height // self.config.patch) * (views.width // self.config.patch)
        step = max(1, compute.tile_tokens // tokens_per_view)
        return [views.select(range(at, min(at + step, views.num_views))) for at in range(0, views.num_views, step)]


def check_inputs(config: ModelConfig, views: Views, shard: ViewShard, queries: Sequence[int]) -> None:
    """Raise UserError unless a model can take these views of this rank and decode these queries."""
    patch = config.patch
    if views.height % patch or views.width % patch:
        raise UserError(
            f"image size {views.height}x{views.width} (height x width) is not a multiple of the patch size {patch}"
        )
    if views.num_views != len(shard.views):
        raise UserError(f"this rank was given {views.num_views} views, and its shard has {len(shard.views)}")
    outside = [view for view in queries if not 0 <= view < shard.num_views]
    if outside or len(set(queries)) != len(queries) or not queries:
        raise UserError(
            f"queries must be different positions among the {shard.num_views} input views, not {list(queries)}"
        )


def consecutive(views: Sequence[int], longest: int) -> list[range]:
    """The views, in their order, as runs of at most ``longest`` consecutive ones."""
    runs: list[range] = []
    for view in views:
        if runs and runs[-1].stop == view and len(runs[-1]) < longest:
            runs[-1] = range(runs[-1].start, view + 1)
        else:
            runs.append(range(view, view + 1))
    return runs


def _unpack(packed: Tensor) -> Gaussians:
    position, sh, log_scale, rotation, opacity = packed.split([3, packed.shape[-1] - 11, 3, 4, 1], dim=-1)
    return Gaussians(position, sh.unflatten(-1, (-1, 3)), log_scale, rotation, opacity.squeeze(-1))


def patchify(image: Tensor, patch: int) -> Tensor:
    """[B, V, H, W, c] to [B, V, n, p p c]: patches row by row, pixels row by row within, channels fastest."""
    split = image.unflatten(-3, (-1, patch)).unflatten(-2, (-1, patch))
    return split.transpose(-4, -3).flatten(-3).flatten(-3, -2)


def _initialize(module: nn.Module) -> None:
    """Random weights as a training run starts from: linear maps of standard deviation 0.02."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
