"""The published lists of input views, which Long-LRM made for the scenes of the paper's tables, in scene files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tttlrm.downloads.transfer import Expected
from tttlrm.downloads.urls import announce_url, fetch_url
from tttlrm.errors import DownloadError, SceneError
from tttlrm.files import atomic_path, sha256_of, write_json
from tttlrm.scenes.scene import INPUT_FRAMES_FROM, SCENE_FILE, read_scene
from tttlrm.scenes.selection import select_views

COMMIT = "d92dd516699135be1e78c50305080d83aca0906c"
BASE_URL = f"https://raw.githubusercontent.com/arthurhero/Long-LRM/{COMMIT}/data"
_KEY = re.compile(r"fold_8_kmeans_([1-9][0-9]{0,3})_input")


@dataclass(frozen=True)
class Published:
    """A published file of lists."""

    name: str
    size: int
    sha256: str


DL3DV = Published(
    "dl3dv_fold_8_kmeans_input_idx.json", 139140, "843fd83e94d8cdc905b620ee3686a286e59225f4a11fd96c214d0a65a4dabef7"
)
TANKS_AND_TEMPLES = Published(
    "tnt_fold_8_kmeans_input_idx.json", 1868, "2081172471a2cacf0967918099b0cd3728376b1b89c62218de8b4961bb175786"
)


@dataclass(frozen=True)
class InputViews:
    """Lists of input views.

    Attributes:
        source: where they come from, as records name it.
        lists: scene -> number of views -> positions in the scene's frames.
    """

    source: str
    lists: Mapping[str, Mapping[int, tuple[int, ...]]]


def published_views(
    published: Published, folder: Path, *, offline: bool = False, base_url: str = BASE_URL
) -> InputViews:
    """The published lists, fetched to ``folder`` unless they are there.

    Raises DownloadError: they cannot be had, or are not what they were.
    """
    path, expected = folder / published.name, Expected(published.size, published.sha256)
    if not path.is_file() or expected.problem(path):
        if offline:
            raise DownloadError(
                f"{path}: the published lists of input views are not there, and --offline fetches nothing; run once "
                "without it, or give --input-views"
            )
        url = f"{base_url}/{published.name}"
        try:
            announce_url(url, without_network=None)  # which fails at once where there is no network
            fetch_url(url, expected, path)
        except DownloadError as error:
            raise DownloadError(
                f"the published lists of input views: {error}; --input-views FILE takes them from a file, and "
                "--input-views kmeans goes without"
            ) from error
    return read_views(path)


def read_views(path: Path) -> InputViews:
    """Lists in the layout of the published files: ``[{"scene_name": ..., "fold_8_kmeans_16_input": [...], ...}]``.

    Raises DownloadError naming the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DownloadError(f"{path}: is not a readable file of input views ({error})") from error
    if not isinstance(content, list) or not content:
        raise DownloadError(f"{path}: must hold a list of scenes, each with scene_name and fold_8_kmeans_N_input")
    lists: dict[str, dict[int, tuple[int, ...]]] = {}
    for at, entry in enumerate(content):
        name = entry.get("scene_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name in lists:
            raise DownloadError(f"{path}: entry {at}: scene_name must be a name that no other entry has, not {name!r}")
        lists[name] = dict(_lists_of(entry, f"{path}: {name}"))
    return InputViews(_source_of(path), lists)


def _source_of(path: Path) -> str:
    digest = sha256_of(path)
    if digest in (DL3DV.sha256, TANKS_AND_TEMPLES.sha256):
        return f"list published with Long-LRM (commit {COMMIT[:12]})"
    return f"list of the user's (sha256 {digest[:16]})"


def _lists_of(entry: Mapping[str, Any], where: str) -> list[tuple[int, tuple[int, ...]]]:
    found = []
    for key, value in entry.items():
        match = _KEY.fullmatch(key)
        if match is None:
            continue
        if not isinstance(value, list) or any(type(at) is not int or at < 0 for at in value):
            raise DownloadError(f"{where}: {key} must be a list of positions of frames")
        if len(value) != int(match[1]) or len(set(value)) != len(value):
            raise DownloadError(f"{where}: {key} must list {match[1]} different frames")
        found.append((int(match[1]), tuple(value)))
    if not found:
        raise DownloadError(f"{where}: has no fold_8_kmeans_N_input")
    return found


def state_views(folder: Path, views: InputViews | None) -> bool:
    """Make a scene file list the input views that ``views`` has of it, and no others.

    Args:
        views: None: the scene file lists none, and they are chosen from its cameras by K-means where it is used.

    Returns:
        Whether it lists any now.

    Raises:
        SceneError: a list is of frames that the scene does not have, or that are held out as test views.
    """
    file = folder / SCENE_FILE
    scene = read_scene(file)
    lists = dict(views.lists.get(folder.name, {})) if views else {}
    source = views.source if views and lists else None
    if dict(scene.input_frames) == lists and scene.input_frames_from == source:
        return bool(lists)
    content = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if not key.startswith("input_frames")}
    stated: dict[str, Any] = {f"input_frames_{count}": list(lists[count]) for count in sorted(lists)}
    if source is not None:
        stated[INPUT_FRAMES_FROM] = source
    with atomic_path(file) as temporary:
        write_json(temporary, {**kept, **stated})
        try:
            changed = read_scene(temporary)
            for count in lists:
                select_views(changed, count)
        except SceneError as error:
            raise SceneError(f"{folder.name}: {source} does not fit the scene ({error})") from error
    return bool(lists)
