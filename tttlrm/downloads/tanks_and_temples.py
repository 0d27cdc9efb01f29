"""Tanks and Temples' train and truck, with the COLMAP models that the authors of 3D Gaussian Splatting publish."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tttlrm.downloads.archives import unpack
from tttlrm.downloads.hub import require_space
from tttlrm.downloads.input_views import InputViews, state_views
from tttlrm.downloads.records import changed, read_records, sole_download, write_record
from tttlrm.downloads.transfer import shown
from tttlrm.downloads.urls import announce_url, fetch_url
from tttlrm.errors import DownloadError
from tttlrm.files import sha256_of
from tttlrm.progress import Progress, Silent
from tttlrm.scenes import SCENE_FILE
from tttlrm.scenes.convert import convert, read_colmap

URL = "https://repo-sam.inria.fr/fungraph/3d-gaussian-splatting/datasets/input/tandt_db.zip"
ARCHIVE = "tandt_db.zip"
SCENES = ("train", "truck")
WORK = ".download"
TERMS = (
    "Tanks and Temples comes under its own terms (https://www.tanksandtemples.org/license); images and COLMAP models "
    "are fetched from the page of 3D Gaussian Splatting."
)
_SPACE = 4
"""Bytes of disk for each of the archive's: itself, what is unpacked of it, and the scenes, with room to spare."""


@dataclass(frozen=True)
class Options:
    """How it is fetched.

    Attributes:
        source: the archive, brought along and left as it is.
        offline: fetch nothing.
        keep: the archive, once the scenes are made.
        views: input views that the scenes are to list; None: none.
        jobs: processes that convert; None: one for each core.
    """

    source: Path | None = None
    offline: bool = False
    keep: bool = False
    views: InputViews | None = None
    jobs: int | None = None
    url: str = URL


def download_tanks_and_temples(
    names: Sequence[str], output: Path, options: Options, progress: Progress | None = None
) -> int:
    """Make the scenes in a folder, fetching the archive unless they are there.

    Returns:
        How many of them list published input views.

    Raises:
        DownloadError: the archive cannot be had, or is not what was recorded.
        SceneError: it does not hold what it should.
    """
    progress = progress or Silent()
    with sole_download(output):
        missing = [name for name in names if not (output / name / SCENE_FILE).is_file()]
        if missing:
            archive = _archive(output, options, progress)
            for name in missing:
                _make(name, archive, output, options, progress)
            if not options.keep:
                shutil.rmtree(output / WORK / "unpacked", ignore_errors=True)
                (output / WORK / ARCHIVE).unlink(missing_ok=True)
        return sum(state_views(output / name, options.views) for name in names)


def _archive(output: Path, options: Options, progress: Progress) -> Path:
    """The checked archive. Its digest is recorded when it is first seen."""
    path = options.source or output / WORK / ARCHIVE
    if options.source is not None:
        if not path.is_file():
            raise DownloadError(f"{path}: no such file")
        require_space(output, (_SPACE - 1) * path.stat().st_size)
    elif not path.is_file():
        if options.offline:
            raise DownloadError(
                f"{path}: is not there, and --offline fetches nothing; run once without it, or give {ARCHIVE} with "
                "--from"
            )
        expected = announce_url(options.url)
        progress.note(
            f"{options.url}: {expected.size / 2**30:.2f} GiB to fetch; up to {_SPACE * expected.size / 2**30:.2f} GiB "
            f"of disk in {output} until the scenes are made"
        )
        require_space(output, _SPACE * expected.size)
        with shown(progress, "fetch", expected.size) as on_bytes:
            fetch_url(options.url, expected, path, on_bytes=on_bytes)
    digest = sha256_of(path)
    known = read_records(output).get(ARCHIVE, {}).get("sha256")
    if known is not None and digest != known:
        if options.source is None:
            path.unlink()
        raise changed(str(path), ARCHIVE, known, digest)
    if known is None:
        source = "a local file" if options.source else options.url
        write_record(output, ARCHIVE, {"sha256": digest, "bytes": path.stat().st_size, "source": source})
    return path


def _make(name: str, archive: Path, output: Path, options: Options, progress: Progress) -> None:
    unpacked = output / WORK / "unpacked" / name
    if not unpacked.is_dir() and not unpack(archive, lambda member: _wanted(member, name), unpacked, progress):
        raise DownloadError(f"{archive}: has no scene {name}")
    convert(read_colmap(unpacked), output / name, name=name, jobs=options.jobs, overwrite=True, progress=progress)


def _wanted(member: str, scene: str) -> str | None:
    """Images and cameras of the scene; its points are not needed."""
    found = re.fullmatch(rf"(?:[^/]+/)*{scene}/(images/.+|sparse/0/(?:cameras|images)\.(?:bin|txt))", member)
    return found[1] if found else None
