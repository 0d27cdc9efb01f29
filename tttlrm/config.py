"""What a model is (:class:`ModelConfig`) and how one run of it goes (:class:`Schedule`, :class:`Compute`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tttlrm.errors import UserError

if TYPE_CHECKING:
    import torch

Mixer = Literal["fast_weights", "attention"]
PoseReference = Literal["mean", "first", "scene"]
"""The frame of a scene's poses: a camera that becomes the origin of normalised poses, or the scene's own world."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a model; the defaults are the released one (399,985,224 parameters).

    It travels with a checkpoint. Lengths are in the normalised scene's units.
    """

    width: int = 768
    blocks: int = 24
    patch: int = 8
    attention_head: int = 64
    fast_weight_expansion: int = 4
    mlp_expansion: int = 4
    sh_degree: int = 3
    mixer: Mixer = "fast_weights"
    """What mixes tokens of different views: fast weights (tttLRM), or softmax attention (the design of GS-LRM)."""
    fast_weight_head: int | None = None
    """Size of the heads that the fast-weight layer is split into, each with fast weights and learning rates of its own
    and a hidden width of ``fast_weight_expansion`` times its size; None: one head of the whole width, as released."""
    poses: Literal["normalized", "scene"] = "normalized"
    """What it was trained on: poses as :func:`tttlrm.cameras.normalize_poses` makes them, or those of the scene's own
    world (objects, centred in [-1, 1]^3)."""
    near: float = 0.0
    far: float = 500.0
    """Gaussians lie between ``near`` and ``far`` on their pixel's ray."""
    distance_spacing: Literal["linear", "log"] = "linear"
    """What a predicted position moves evenly between them: the distance, or its logarithm, which suits scenes that are
    seen from inside."""
    log_scale_bias: float = -2.3
    log_scale_max: float = -1.2
    opacity_bias: float = -2.0
    color_residual: bool = False
    """The constant part of a Gaussian's colour is predicted as a difference from its pixel's colour, so that texture
    need not pass through the tokens."""
    scale_unit: Literal["world", "pixel"] = "world"
    """Unit of predicted standard deviations: the scene's, or the width of a pixel at the Gaussian's distance, which
    makes them independent of image size and distance."""

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "patch", "attention_head", "fast_weight_expansion", "mlp_expansion"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"model configuration: {name} must be a positive integer, not {value!r}")
        if self.width % self.attention_head:
            raise UserError(
                f"model configuration: width {self.width} is not a multiple of attention_head {self.attention_head}"
            )
        head = self.fast_weight_head
        if head is not None and (not isinstance(head, int) or head < 1 or self.width % head):
            raise UserError(
                f"model configuration: fast_weight_head must divide the width {self.width}, and {head!r} does not"
            )
        if self.sh_degree not in (0, 1, 2, 3):
            raise UserError(f"model configuration: sh_degree must be 0, 1, 2 or 3, not {self.sh_degree!r}")
        if self.mixer not in ("fast_weights", "attention"):
            raise UserError(f"model configuration: mixer must be fast_weights or attention, not {self.mixer!r}")
        if self.poses not in ("normalized", "scene"):
            raise UserError(f"model configuration: poses must be normalized or scene, not {self.poses!r}")
        if self.distance_spacing not in ("linear", "log"):
            given = repr(self.distance_spacing)
            raise UserError(f"model configuration: distance_spacing must be linear or log, not {given}")
        if self.distance_spacing == "log" and not self.near > 0:
            raise UserError("model configuration: distance_spacing log needs a near of more than 0")
        if self.scale_unit not in ("world", "pixel"):
            raise UserError(f"model configuration: scale_unit must be world or pixel, not {self.scale_unit!r}")
        if not isinstance(self.color_residual, bool):
            raise UserError(f"model configuration: color_residual must be true or false, not {self.color_residual!r}")
        if not 0 <= self.near < self.far:
            raise UserError(f"model configuration: need 0 <= near < far, not near {self.near} and far {self.far}")

    @property
    def gaussian_channels(self) -> int:
        """Decoder outputs a pixel: position 3, SH 3(s+1)^2, scale 3, rotation 4, opacity 1."""
        return 3 + 3 * (self.sh_degree + 1) ** 2 + 3 + 4 + 1

    @property
    def fast_weight_heads(self) -> int:
        """Number of heads of the fast-weight layer."""
        return self.width // (self.fast_weight_head or self.width)

    @property
    def fast_weight_hidden(self) -> int:
        """Hidden width of the fast weights of one head."""
        return (self.fast_weight_head or self.width) * self.fast_weight_expansion

    def pose_reference(self, schedule: Schedule) -> PoseReference:
        """The frame that this model expects poses in: the paper's is the mean camera, or the first one for ar."""
        if self.poses == "scene":
            return "scene"
        return "mean" if schedule.kind == "full" else "first"

    def to_dict(self) -> dict[str, Any]:
        """Plain values. Heads of the fast weights only where there are several: what was measured before there could
        be keeps its name.
        """
        values = dataclasses.asdict(self)
        if self.fast_weight_head is None:
            del values["fast_weight_head"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Inverse of :meth:`to_dict`; unknown keys are an error, missing ones take the released value."""
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f"model configuration: unknown keys {', '.join(unknown)}")
        return cls(**values)


@dataclass(frozen=True)
class ElasticUpdate:
    """Selective update of Fast Spatial Memory: pulls unimportant weights back to a moving anchor (no training)."""

    strength: float = 0.05
    importance_decay: float = 0.5
    anchor_decay: float = 0.8


@dataclass(frozen=True)
class Schedule:
    """How the fast weights are updated: once with all views (``full``), or chunk by chunk (``ar``)."""

    kind: Literal["full", "ar"] = "full"
    views_per_chunk: int = 4
    """Views in a chunk of the ``ar`` schedule, whatever the number of ranks; unused by ``full``."""
    elastic: ElasticUpdate | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("full", "ar"):
            raise UserError(f"schedule must be full or ar, not {self.kind!r}")
        if self.views_per_chunk < 1:
            raise UserError(f"views_per_chunk must be at least 1, not {self.views_per_chunk}")

    def chunks(self, num_views: int) -> list[range]:
        """The view indices of each update, in order. The last chunk may be smaller."""
        step = num_views if self.kind == "full" else self.views_per_chunk
        return [range(start, min(start + step, num_views)) for start in range(0, num_views, step)]


@dataclass(frozen=True)
class Compute:
    """How a run is computed. None of these changes the result beyond rounding."""

    dtype: torch.dtype | None = None
    """Of matrix products and attention; None: the parameters' own. Norms, learning rates, sums over tokens, the
    residual stream and the Gaussians keep at least float32."""
    newton_schulz_dtype: torch.dtype | None = None
    """None: the same as that of the products; the accelerated model takes float16 where these are bfloat16. The release
    always uses bfloat16."""
    attention_backend: str = "auto"
    """See :data:`tttlrm.attention.BACKENDS`."""
    tile_tokens: int = 65536
    """Tokens that the fast-weight layer and the MLP process at a time."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass (training)."""

    def __post_init__(self) -> None:
        if self.tile_tokens < 1:
            raise UserError(f"tile_tokens must be at least 1, not {self.tile_tokens}")
