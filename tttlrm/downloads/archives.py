"""Unpacking ZIP files of others: only plain files, only inside the folder, and no more than was announced."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from tttlrm.errors import DownloadError
from tttlrm.progress import Progress

LARGEST = 8 * 2**30
"""Bytes in all, unpacked."""
MOST_FILES = 20_000


def unpack(archive: Path, choose: Callable[[str], str | None], folder: Path, progress: Progress) -> int:
    """Unpack some of an archive's files to a new folder, which appears when all of them are there.

    Args:
        choose: of a name in the archive: the path relative to the folder, or None to leave the file out.

    Returns:
        How many files there were. Without any, there is no folder.

    Raises:
        DownloadError: it is damaged, or is not what an archive of pictures should be.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            chosen = _checked(file, choose, archive)
            if not chosen:
                return 0
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack.") as temporary:
                whole = Path(temporary) / "whole"
                with progress.task(f"unpack {folder.name}", len(chosen)) as done:
                    for at, (target, info) in enumerate(chosen.items(), 1):
                        _extract(file, info, whole / target, archive)
                        done(at)
                whole.rename(folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(f"{archive}: cannot be unpacked ({error})") from error
    return len(chosen)


def _checked(
    file: zipfile.ZipFile, choose: Callable[[str], str | None], archive: Path
) -> Mapping[str, zipfile.ZipInfo]:
    chosen: dict[str, zipfile.ZipInfo] = {}
    for info in file.infolist():
        target = None if info.is_dir() else choose(info.filename)
        if target is None:
            continue
        path = PurePosixPath(target)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or set(target) & set("\\:\0"):
            raise DownloadError(f"{archive}: the name {info.filename!r} leads out of the folder")
        if kind not in (0, stat.S_IFREG):
            raise DownloadError(f"{archive}: {info.filename!r} is a link or a device, not a file")
        if target in chosen:
            raise DownloadError(f"{archive}: {info.filename!r} comes twice")
        chosen[target] = info
    size = sum(info.file_size for info in chosen.values())
    if len(chosen) > MOST_FILES or size > LARGEST:
        raise DownloadError(
            f"{archive}: would unpack to {len(chosen)} files of {size} bytes, more than the {MOST_FILES} files or "
            f"{LARGEST} bytes that are allowed"
        )
    return chosen


def _extract(file: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, archive: Path) -> None:
    """The reader stops at the announced size, and compares the checksum."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with file.open(info) as source, target.open("xb") as sink:
        shutil.copyfileobj(source, sink, 2**20)
    if target.stat().st_size != info.file_size:
        raise DownloadError(f"{archive}: {info.filename!r} is not as large as announced")
