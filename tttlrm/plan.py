"""What a reconstruction will do and cost, worked out and checked before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from tttlrm.attention import require_backend
from tttlrm.bundled import BUNDLED, IMAGE_SIZE, BundledModel, bundled_model, default_model
from tttlrm.cameras import Cameras, PoseNormalization
from tttlrm.checkpoints import digest, read_checkpoint
from tttlrm.config import Compute, ModelConfig, Schedule
from tttlrm.errors import BackendUnavailableError, CheckpointError, SceneError, UserError
from tttlrm.gaussians import default_pruning
from tttlrm.model import TTTLRM
from tttlrm.outputs import Origin
from tttlrm.scenes import Scene, ViewSplit, evaluation_size, read_scene, select_views
from tttlrm.scenes.images import MAX_PIXELS
from tttlrm.scenes.views import normalize_split, scene_cameras

ConfigName = Literal["released", "tiny"]

CONFIGS: dict[ConfigName, ModelConfig] = {
    "released": ModelConfig(),
    "tiny": ModelConfig(
        width=64, blocks=4, attention_head=16, fast_weight_expansion=2, sh_degree=1, far=4.0, log_scale_bias=-4.0
    ),
}
"""Configurations by name. ``tiny`` is for trying the commands on any machine."""

_PLY_FLOATS_BESIDES_SH = 14


@dataclass(frozen=True)
class Settings:
    """What a user asks for; see ``tttlrm reconstruct --help``.

    Attributes:
        weights: checkpoint, or the name of a bundled model; None without ``random_weights``: the bundled model that
            suits the scene.
        config: of random weights, or of a checkpoint that holds none; None: released.
        size: (height, width) that images are resized to; None: their own, cut down to multiples of the patch size, or
            about what a bundled model was trained on.
        seed: of random weights and of the random part of pruning.
        dtype: None: bfloat16 on CUDA, float32 on the CPU.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        prune: None: as the paper does, but for bundled models, which were trained without its opacity loss and lose
            much by it.
        video_frames: 0 for no video; None: 96 on CUDA, 48 on the CPU, where each takes long.
    """

    scene: Path
    output: Path
    weights: Path | None = None
    random_weights: bool = False
    config: ConfigName | None = None
    num_views: int = 16
    schedule: Schedule = field(default_factory=Schedule)
    sp_size: int = 1
    size: tuple[int, int] | None = None
    seed: int = 0
    dtype: torch.dtype | None = None
    device: str = "auto"
    attention_backend: str = "auto"
    prune: bool | None = None
    lpips: bool = True
    video_frames: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Weights:
    """A checkpoint, and the bundled model that it is, if any."""

    path: Path
    sha256: str
    bundled: BundledModel | None = None

    @property
    def label(self) -> str:
        kind = f"weights {self.path.name}" if self.bundled is None else f"bundled model {self.bundled.name}"
        return f"{kind} (sha256 {self.sha256})"


@dataclass(frozen=True)
class Plan:
    """A checked reconstruction: every choice made, nothing computed yet."""

    settings: Settings
    scene: Scene
    split: ViewSplit
    normalization: PoseNormalization
    size: tuple[int, int]
    config: ModelConfig
    compute: Compute
    device: torch.device
    weights: Weights | None

    @property
    def origin(self) -> Origin:
        label = f"random weights (seed {self.settings.seed})" if self.weights is None else self.weights.label
        return Origin(label, self.weights is None, self.scene.name, self.size, self.normalization)

    @property
    def num_gaussians(self) -> int:
        """Decoded, one for each pixel of the input views."""
        return len(self.split.inputs) * self.size[0] * self.size[1]

    @property
    def num_video_frames(self) -> int:
        wanted = self.settings.video_frames
        return (96 if self.device.type == "cuda" else 48) if wanted is None else wanted

    @property
    def pruning(self) -> tuple[float, float] | None:
        prune = self.settings.prune
        if prune is None:
            prune = self.weights is None or self.weights.bundled is None
        return default_pruning(len(self.split.inputs)) if prune else None

    @property
    def num_kept(self) -> int:
        """Gaussians left after pruning."""
        if self.pruning is None:
            return self.num_gaussians
        keep, random = self.pruning
        return math.floor(keep * self.num_gaussians) + math.floor((1 - keep) * random * self.num_gaussians)

    @property
    def num_parameters(self) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in TTTLRM(self.config).parameters())

    def cameras(self, indices: Sequence[int]) -> Cameras:
        """Cameras of frames of the scene, in the normalised world and for images of :attr:`size`, in float64."""
        return self.normalization.move(scene_cameras(self.scene, indices, self.size))

    def summary(self) -> str:
        """What will be done and what it takes, in a few lines."""
        inputs, targets = len(self.split.inputs), len(self.split.targets)
        height, width = self.size
        schedule = self.settings.schedule
        chunks = f", {schedule.views_per_chunk} views a chunk" if schedule.kind == "ar" else ""
        ply_bytes = 4 * (_PLY_FLOATS_BESIDES_SH + 3 * (self.config.sh_degree + 1) ** 2) * self.num_kept
        dtype = str(self.compute.dtype).removeprefix("torch.")
        processes = f", {self.settings.sp_size} processes" if self.settings.sp_size > 1 else ""
        pruned = f"{self.num_kept:,} after pruning" if self.pruning else "not pruned"
        lines = [
            f"scene      {self.scene.name}: {inputs} input views ({self.split.source}), {targets} test views, "
            f"{width}x{height} pixels",
            f"model      {self.num_parameters:,} parameters, {self.origin.weights}",
            f"run        {schedule.kind} schedule{chunks}, {dtype} on {self.device}{processes}; about "
            f"{_rounded(operations(self.config, inputs, self.size))}FLOP for the network",
            f"result     {self.num_gaussians:,} Gaussians, {pruned} (a PLY file of {ply_bytes / 1e6:,.0f} MB)",
        ]
        if self.weights is not None and self.weights.bundled is not None:
            lines.insert(2, f"           {_about(self.weights.bundled, self.settings.weights is None)}")
        return "\n".join(lines)


def _about(model: BundledModel, chosen: bool) -> str:
    why = f"the scene was taken for {_CONTENTS[model.content]} (name another with --weights); " if chosen else ""
    return f"{why}a small model for trying things out, trained on procedural scenes of {IMAGE_SIZE} pixels"


_CONTENTS = {"object": "an object, with cameras around the origin", "room": "a room, not an object at the origin"}


def make_plan(settings: Settings) -> Plan:
    """Check everything that can be checked without reading pixels or computing.

    Raises:
        UserError: the first thing that is wrong.
    """
    _check_settings(settings)
    scene = read_scene(settings.scene)
    split = select_views(scene, settings.num_views)
    if settings.sp_size > len(split.inputs):
        raise UserError(f"sp_size {settings.sp_size} is larger than the number of input views, {len(split.inputs)}")
    device = choose_device(settings.device, settings.sp_size)
    config, weights = _choose_model(settings, scene)
    dtype = settings.dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    return Plan(
        settings=settings,
        scene=scene,
        split=split,
        normalization=normalize_split(scene, split, config.pose_reference(settings.schedule)),
        size=_image_size(
            scene, split, settings.size, config.patch, IMAGE_SIZE if weights and weights.bundled else None
        ),
        config=config,
        compute=Compute(dtype=dtype, attention_backend=settings.attention_backend),
        device=device,
        weights=weights,
    )


def operations(config: ModelConfig, num_views: int, size: tuple[int, int]) -> float:
    """Floating-point operations of the blocks' matrix products, for all tokens (a multiply-add counts as two)."""
    d, h = config.width, config.fast_weight_hidden
    tokens_per_view = (size[0] // config.patch) * (size[1] // config.patch)
    tokens = num_views * tokens_per_view
    projections = 2 * 8 * d * d
    window = 4 * tokens_per_view * d
    # Fast weights: three products forward, three gradients and the value's product for the update; three to apply.
    mixing = 18 * d * h if config.mixer == "fast_weights" else 4 * tokens * d
    mlp = 4 * d * d * config.mlp_expansion
    return float(config.blocks * tokens * (projections + window + mixing + mlp))


def _rounded(count: float) -> str:
    """To three digits, with the prefix giga or tera."""
    value, prefix = (count / 1e12, "T") if count >= 1e12 else (count / 1e9, "G")
    return f"{value:,.0f} {prefix}" if value >= 100 else f"{value:.3g} {prefix}"


def _check_settings(settings: Settings) -> None:
    if settings.weights is not None and settings.random_weights:
        raise UserError("--weights and --random-weights exclude each other")
    require_backend(settings.attention_backend)
    for name, value, least in (
        ("sp_size", settings.sp_size, 1),
        ("video_frames", settings.video_frames or 0, 0),
        ("seed", settings.seed, 0),
    ):
        if value < least:
            raise UserError(f"{name} must be at least {least}, not {value}")


def choose_device(name: str, sp_size: int = 1) -> torch.device:
    """The device of rank 0: ``auto`` takes CUDA where there is a GPU. Rank r of several uses GPU r.

    Raises:
        UserError: no such device, or fewer GPUs than ranks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BackendUnavailableError(f"device {name}: this PyTorch ({torch.__version__}) finds no CUDA GPU")
    if sp_size > 1 and device.index is not None:
        raise UserError(f"device {name} is a single GPU; with an sp_size of {sp_size}, say cuda")
    count = torch.cuda.device_count()
    if max(sp_size - 1, device.index or 0) >= count:
        raise BackendUnavailableError(f"device {name} with an sp_size of {sp_size}: this machine has {count} GPUs")
    return torch.device("cuda", device.index or 0)


def _choose_model(settings: Settings, scene: Scene) -> tuple[ModelConfig, Weights | None]:
    """The configuration, and the weights unless they are random."""
    named = CONFIGS[settings.config] if settings.config else None
    if settings.random_weights:
        return named or CONFIGS["released"], None
    weights = _find_weights(settings, scene)
    _, stored = read_checkpoint(weights.path)
    if stored is not None and named is not None and stored != named:
        name = weights.path if weights.bundled is None else f"the bundled model {weights.bundled.name}"
        raise UserError(f"{name}: has a configuration of its own, other than {settings.config}")
    return stored or named or CONFIGS["released"], weights


def _find_weights(settings: Settings, scene: Scene) -> Weights:
    given = settings.weights
    if given is None:
        cameras = scene_cameras(scene, range(len(scene.frames)), (IMAGE_SIZE, IMAGE_SIZE))
        model = default_model(cameras, settings.schedule.kind)
    elif str(given) in BUNDLED and not given.exists():
        model = bundled_model(str(given))
    else:
        if not given.is_file():
            raise CheckpointError(
                f"{given}: no such checkpoint file, and no bundled model of that name{_published(given)}"
            )
        return Weights(given, digest(given))
    return Weights(model.path, model.sha256, model)


def _published(file: Path) -> str:
    """What to do for a file that has the name of one of the authors' checkpoints."""
    from tttlrm.downloads.weights import RELEASED

    names = {name for released in RELEASED.values() for name in (released.file.name, released.converted)}
    return "; `tttlrm download weights` fetches the authors', and says where it puts them" if file.name in names else ""


def _image_size(
    scene: Scene, split: ViewSplit, size: tuple[int, int] | None, patch: int, longest: int | None
) -> tuple[int, int]:
    """``longest``: what the longer side is scaled to where no size is asked for; None: not scaled."""
    if size is None:
        sizes = {(scene.frames[i].height, scene.frames[i].width) for i in (*split.inputs, *split.targets)}
        if len(sizes) > 1:
            listed = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
            raise SceneError(f"{scene.file}: its images have different sizes ({listed}); give one with --size")
        height, width = sizes.pop()
        if longest is None:
            return evaluation_size(height, width, patch)
        scale = longest / max(height, width)
        return max(1, round(height * scale / patch)) * patch, max(1, round(width * scale / patch)) * patch
    return check_size(size, patch)


def check_size(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """(height, width), if both are multiples of the patch size and the images are not larger than what can be read."""
    height, width = size
    if min(size) < 1 or height % patch or width % patch:
        raise UserError(
            f"size {height}x{width} (height x width) is not a multiple of the patch size {patch}; "
            f"the nearest that are: {' and '.join(_nearest_sizes(size, patch))}"
        )
    if height * width > MAX_PIXELS:
        raise UserError(f"size {height}x{width} is larger than the limit of {MAX_PIXELS} pixels")
    return size


def _nearest_sizes(size: tuple[int, int], patch: int) -> list[str]:
    """Each side rounded down to a multiple of the patch size, and each rounded up; one size if these are the same."""
    lower = [max(side // patch, 1) * patch for side in size]
    upper = [max(-(-side // patch), 1) * patch for side in size]
    return list(dict.fromkeys(f"{height}x{width}" for height, width in (lower, upper)))
