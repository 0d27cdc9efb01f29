"""``tttlrm demo``: a procedural scene to try everything on, in the format of the suite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from tttlrm.errors import UserError
from tttlrm.outputs import staging_folder
from tttlrm.progress import Progress
from tttlrm.scenes.images import MAX_PIXELS
from tttlrm.scenes.procedural import ProceduralSpec, write_scene
from tttlrm.scenes.scene import SCENE_FILE

Kind = Literal["object", "room"]

MAX_VIEWS = 1000
_CORE_SECONDS_PER_MEGAPIXEL = {"object": 11.0, "room": 30.0}
"""To render, as measured with images of 128x128 and 256x256 pixels on one core of a server."""


@dataclass(frozen=True)
class Demo:
    """What is asked for.

    Attributes:
        views: of the scene; every eighth is a test view.
        size: (height, width) in pixels.
        seed: other seeds give other scenes.
    """

    kind: Kind = "object"
    views: int = 24
    size: tuple[int, int] = (128, 128)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.views <= MAX_VIEWS:
            raise UserError(f"views must be from 2 to {MAX_VIEWS}, not {self.views}")
        height, width = self.size
        if min(self.size) < 1 or height * width > MAX_PIXELS:
            raise UserError(f"size {height}x{width}: images must have from 1 to {MAX_PIXELS} pixels")
        ProceduralSpec(self.kind, self.seed)  # which says what is wrong with a kind or a seed

    @property
    def core_seconds(self) -> float:
        """About what rendering it takes of one core."""
        height, width = self.size
        return self.views * height * width / 1e6 * _CORE_SECONDS_PER_MEGAPIXEL[self.kind]


def write_demo(demo: Demo, folder: Path, progress: Progress) -> Path:
    """Render a procedural scene of the test split, which the bundled models were not trained on, into a new folder.

    The folder appears when all is there, and not at all if something fails.

    Returns:
        The path of the scene file.

    Raises:
        UserError: the folder exists already, or cannot be made.
    """
    if os.path.lexists(folder):
        raise UserError(f"{folder}: exists already; choose another folder for the scene")
    height, width = demo.size
    progress.note(
        f"{demo.views} views of {height}x{width} pixels (height x width): about {demo.core_seconds:,.0f} s on one core"
    )
    spec = ProceduralSpec(demo.kind, demo.seed, "test")
    with staging_folder(folder, overwrite=False) as staging, progress.task("render", demo.views) as done, _one_thread():
        write_scene(spec, 0, staging, demo.views, demo.size, on_view=done)
    return folder / SCENE_FILE


@contextmanager
def _one_thread() -> Iterator[None]:
    """The operations are many and small: where other work holds a core, threads that wait for each other made it take
    twenty times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
