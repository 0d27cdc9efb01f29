"""Writing a capture as a scene: images in parallel, the scene file last, and on from where a killed run stopped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path

from tttlrm.errors import SceneError, UserError
from tttlrm.files import atomic_path, write_json, write_text
from tttlrm.progress import Progress, Silent
from tttlrm.scenes.convert.capture import Capture, SourceFrame
from tttlrm.scenes.convert.undistortion import Undistortion, scaled, undistortion
from tttlrm.scenes.images import image_size, read_pixels
from tttlrm.scenes.scene import SCENE_FILE, is_plain_name, read_scene

UNDISTORTED, COPIED = "images_undistort", "images"
_STATE = ".conversion.json"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.\w+")
_FRAMES_AT_ONCE = 4


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        scene_file: that was written.
        frames, undistorted: images in all, and those that were undistorted rather than copied.
        kept: images that an earlier, interrupted run had made.
    """

    scene_file: Path
    frames: int
    undistorted: int
    kept: int


@dataclass(frozen=True)
class _Item:
    """A frame, its image's size, and where its image goes (relative to the scene's folder)."""

    frame: SourceFrame
    width: int
    height: int
    target: str
    where: str


def convert(
    capture: Capture,
    destination: Path,
    *,
    name: str | None = None,
    jobs: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write the scene of a capture to a new folder, or go on with one that was begun.

    Images of distorted cameras are undistorted (to PNG, without loss), the others are copied as they are. Intrinsics
    are scaled to the images' own sizes. The scene file appears when everything else is there.

    Args:
        name: of the scene; default: of the destination.
        jobs: processes; default: one for each core.
        overwrite: replace what an earlier conversion left in the destination.

    Raises:
        UserError: the destination holds something else, or a finished scene.
        SceneError: an image cannot be read, or is not what its camera is of.
    """
    if name is not None and not is_plain_name(name):
        raise UserError(f"the scene's name must be a plain one without path separators, not {name!r}")
    items = _items(capture)
    _prepare(destination, items, overwrite)
    todo = [item for item in items if not (destination / item.target).is_file()]
    _run(todo, destination, jobs or len(os.sched_getaffinity(0)), len(items), progress or Silent())
    frames = [_entry(item) for item in items]
    _sweep(destination)
    with atomic_path(destination / SCENE_FILE) as temporary:
        write_json(temporary, {"scene_name": name or destination.resolve().name, "frames": frames})
        read_scene(temporary)  # all images are there, as the file says
    (destination / _STATE).unlink(missing_ok=True)
    undistorted = sum(item.frame.camera.is_distorted for item in items)
    return Conversion(destination / SCENE_FILE, len(items), undistorted, len(items) - len(todo))


def _items(capture: Capture) -> list[_Item]:
    items: list[_Item] = []
    seen: dict[str, str] = {}
    for at, frame in enumerate(capture.frames):
        where = f"{capture.file}: frame {at} ({frame.name!r})"
        width, height = image_size(frame.path, where)
        scaled(frame.camera, width, height, where)
        target = f"{COPIED}/{frame.name}"
        if frame.camera.is_distorted:
            target = f"{UNDISTORTED}/{Path(frame.name).with_suffix('.png').as_posix()}"
            if target in seen:
                target = f"{UNDISTORTED}/{frame.name}.png"
        if target in seen:
            raise SceneError(f"{where}: the image comes twice, first as {seen[target]!r}")
        seen[target] = frame.name
        items.append(_Item(frame, width, height, target, where))
    return items


def _prepare(destination: Path, items: list[_Item], overwrite: bool) -> None:
    """Make the folder, or check that it holds the beginning of this very conversion."""
    digest = _digest(items)
    if destination.exists() and not destination.is_dir():
        raise UserError(f"{destination}: is not a folder")
    if destination.is_dir() and any(destination.iterdir()):
        _check(destination, digest, overwrite)
    destination.mkdir(parents=True, exist_ok=True)
    write_text(destination / _STATE, json.dumps({"digest": digest}) + "\n")


def _check(destination: Path, digest: str, overwrite: bool) -> None:
    state, finished = destination / _STATE, (destination / SCENE_FILE).is_file()
    try:
        begun = json.loads(state.read_text(encoding="utf-8"))["digest"] if state.is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        begun = ""
    if begun == digest and not finished:
        return
    if begun is None and not finished:
        raise UserError(f"{destination}: is not empty, and what it holds was not made by a conversion")
    if not overwrite:
        what = "a finished scene" if finished else "the beginning of another conversion"
        raise UserError(f"{destination}: holds {what}; give another folder, or --overwrite to replace it")
    (destination / SCENE_FILE).unlink(missing_ok=True)
    for folder in (UNDISTORTED, COPIED):
        shutil.rmtree(destination / folder, ignore_errors=True)


def _digest(items: Iterable[_Item]) -> str:
    """Of all that the images depend on; of the images themselves, their sizes and times."""
    lines = []
    for item in items:
        stat = item.frame.path.stat()
        values = {**asdict(item.frame.camera), "image": str(item.frame.path), "bytes": stat.st_size}
        lines.append(json.dumps([item.target, item.width, item.height, stat.st_mtime_ns, values]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _run(todo: list[_Item], destination: Path, jobs: int, total: int, progress: Progress) -> None:
    """Make the images; the first error ends it."""
    with progress.task("convert images", total) as done:
        count = total - len(todo)
        done(count)
        if not todo:
            return
        parts = [todo[at : at + _FRAMES_AT_ONCE] for at in range(0, len(todo), _FRAMES_AT_ONCE)]
        # A fresh interpreter for each: a fork of a process with threads may hang.
        with ProcessPoolExecutor(min(jobs, len(parts)), mp_context=get_context("spawn"), initializer=_start) as pool:
            pending: set[Future[int]] = {pool.submit(_make, part, destination) for part in parts}
            try:
                while pending:
                    finished, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                    count += sum(future.result() for future in finished)
                    done(count)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _sweep(destination: Path) -> None:
    """Remove what runs that were killed left unfinished under temporary names."""
    for folder in (UNDISTORTED, COPIED):
        for path in (destination / folder).rglob(".*"):
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _start() -> None:
    """Of a worker: its parallelism is that of the processes, and it ends with the process that it works for."""
    import cv2

    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process that is killed outright cannot tell its workers, which would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make(items: list[_Item], destination: Path) -> int:
    from PIL import Image

    for item in items:
        target = destination / item.target
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = read_pixels(item.frame.path, item.where)
        with atomic_path(target) as temporary:
            if item.frame.camera.is_distorted:
                Image.fromarray(_undistortion(item).apply(pixels)).save(temporary, compress_level=1)
            else:
                shutil.copyfile(item.frame.path, temporary)
    return len(items)


def _undistortion(item: _Item) -> Undistortion:
    camera = scaled(item.frame.camera, item.width, item.height, item.where)
    return undistortion(camera, item.where)


def _entry(item: _Item) -> dict[str, object]:
    camera = _undistortion(item).camera
    return {
        "w": item.width,
        "h": item.height,
        "fx": camera.fx,
        "fy": camera.fy,
        "cx": camera.cx,
        "cy": camera.cy,
        "w2c": [list(row) for row in item.frame.world_to_camera],
        "file_path": item.target,
    }
