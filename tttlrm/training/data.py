"""Batches of procedural scenes, each a pure function of (settings, seed, step)."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tttlrm.cameras import Cameras, Views
from tttlrm.scenes.procedural import (
    ProceduralRendering,
    ProceduralSpec,
    SceneParameters,
    render_scenes,
    sample_cameras,
    scene_parameters,
)
from tttlrm.training.poses import normalize_batch, scale_poses
from tttlrm.training.settings import DataSettings, Phase


@dataclass(frozen=True)
class TrainingBatch:
    """B scenes with V input and R target views.

    Attributes:
        inputs: [B, V, ...].
        targets: [B, R, ...]; the last ``shared`` ones are inputs as well.
        depths: [B, R, 1, H, W], camera z of the targets' surfaces, in the units of the poses.
        masks: [B, R, 1, H, W], share of each pixel that shows a surface.
        input_depths, input_masks: [B, V, 1, H, W], the same of the inputs.
        shared: number of targets that are inputs.
    """

    inputs: Views
    targets: Views
    depths: Tensor
    masks: Tensor
    input_depths: Tensor
    input_masks: Tensor
    shared: int

    def scenes(self, at: slice) -> TrainingBatch:
        """Some of the scenes."""
        inputs, targets = (
            Views(v.images[at], v.camera_to_world[at], v.intrinsics[at]) for v in (self.inputs, self.targets)
        )
        images = (self.depths[at], self.masks[at], self.input_depths[at], self.input_masks[at])
        return TrainingBatch(inputs, targets, *images, self.shared)


@dataclass(frozen=True)
class _Block:
    """Rendered scenes of several batches."""

    cameras: Cameras
    rendering: ProceduralRendering


class TrainingData:
    """The batch of every step.

    Scenes are made in blocks of several batches, which is faster than one by one, and may be used more than once, with
    other views as inputs. The block in use is kept, and the next one's scenes are drawn (on the CPU) meanwhile.
    """

    def __init__(self, settings: DataSettings, seed: int, device: torch.device) -> None:
        self._settings = settings
        self._seed = seed
        self._device = device
        self._spec = ProceduralSpec(kind=settings.kind, seed=settings.seed, split="train")
        self._key: tuple[int, Phase] | None = None
        self._block: _Block | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scenes")
        self._next: tuple[tuple[int, Phase], Future[tuple[SceneParameters, Cameras]]] | None = None

    def num_inputs(self, step: int, phase: Phase) -> int:
        """The number of input views of a step."""
        return int(phase.views[self._generator(step, 0).integers(len(phase.views))])

    def batch(self, step: int, phase: Phase) -> TrainingBatch:
        """The batch of a step, all of its scenes."""
        settings = self._settings
        steps = settings.steps_per_block
        number, within = divmod(step, steps * settings.passes)
        turn, part = divmod(within, steps)
        block = self._load(number, phase)
        generator = self._generator(step, 1)
        # The same order for all steps of a turn, so that each scene comes once.
        order = self._generator(number, 2 + turn).permutation(steps * phase.scenes)
        scenes = order[part * phase.scenes : (part + 1) * phase.scenes]
        num_inputs = self.num_inputs(step, phase)
        available = block.cameras.num_views
        shuffled = np.argsort(generator.random((phase.scenes, available)), axis=1)
        chosen = shuffled[:, : num_inputs + settings.novel_targets]
        if settings.ordered:
            chosen[:, :num_inputs].sort(axis=1)
        return self._take(block, scenes, chosen, num_inputs, generator)

    def _take(
        self, block: _Block, scenes: np.ndarray, chosen: np.ndarray, num_inputs: int, generator: np.random.Generator
    ) -> TrainingBatch:
        again = np.sort(generator.permutation(num_inputs)[: self._settings.input_targets])
        row, column = self._to_device(np.stack([np.broadcast_to(scenes[:, None], chosen.shape), chosen]))
        used = self._to_device(np.concatenate([np.arange(num_inputs, chosen.shape[1]), again]))
        cameras, rendering = block.cameras, block.rendering
        poses, scale = normalize_batch(cameras.camera_to_world[row, column], self._settings.poses)
        low, high = np.log(self._settings.scale_range)
        factor = self._to_device(np.exp(generator.uniform(low, high, len(scenes))).astype(np.float32))
        poses, scale = scale_poses(poses, factor), scale / factor
        views = Views(rendering.images[row, column], poses, cameras.intrinsics[row, column])
        # Of all chosen views at once: it is the small kernels that take time.
        depths = rendering.depths[row, column] / scale[:, None, None, None, None]
        masks = rendering.masks[row, column]
        return TrainingBatch(
            inputs=views.select(range(num_inputs)),
            targets=views.select(used),
            depths=depths.index_select(1, used),
            masks=masks.index_select(1, used),
            input_depths=depths[:, :num_inputs],
            input_masks=masks[:, :num_inputs],
            shared=len(again),
        )

    def _to_device(self, index: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(index)
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor

    def _load(self, number: int, phase: Phase) -> _Block:
        if self._block is None or self._key != (number, phase):
            scenes, cameras = self._drawn(number, phase)
            cameras = cameras.to(self._device)
            self._block = None  # frees its memory first
            rendering = render_scenes(scenes.to(self._device), cameras, compile=self._settings.compile)
            self._block, self._key = _cropped(_Block(cameras, rendering), phase.size), (number, phase)
        return self._block

    def _drawn(self, number: int, phase: Phase) -> tuple[SceneParameters, Cameras]:
        """The scenes of a block, and the start of drawing those of the next one."""
        if self._next is not None and self._next[0] == (number, phase):
            drawn = self._next[1].result()
        else:
            drawn = self._draw(number, phase)
        self._next = ((number + 1, phase), self._pool.submit(self._draw, number + 1, phase))
        return drawn

    def _draw(self, number: int, phase: Phase) -> tuple[SceneParameters, Cameras]:
        settings = self._settings
        count = settings.steps_per_block * phase.scenes
        scenes = scene_parameters(self._spec, range(number * count, (number + 1) * count))
        num_views = max(phase.views) + settings.novel_targets
        return scenes, sample_cameras(scenes, num_views, phase.cropped_from or phase.size, self._seed)

    def _generator(self, *words: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *words])


def _cropped(block: _Block, size: tuple[int, int]) -> _Block:
    """The middle of the images, where they are larger than ``size``."""
    cameras, (height, width) = block.cameras, size
    top, left = (cameras.height - height) // 2, (cameras.width - width) // 2
    if not top and not left:
        return block
    moved = cameras.intrinsics - cameras.intrinsics.new_tensor([0, 0, left, top])
    images = (
        tensor[..., top : top + height, left : left + width].contiguous()
        for tensor in (block.rendering.images, block.rendering.depths, block.rendering.masks)
    )
    return _Block(Cameras(cameras.camera_to_world, moved, height, width), ProceduralRendering(*images))
