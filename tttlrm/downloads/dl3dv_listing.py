"""Which scenes the DL3DV benchmark has, and which files each of them: the hub's own listing, kept on disk."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tttlrm.downloads.hub import HubFile, Listed, Repository, fetch_to, list_folder
from tttlrm.errors import DownloadError, UserError
from tttlrm.files import write_json

LEVEL = "images_4"
"""The size at which the benchmark is used: a quarter of the captures' own."""
BENCHMARK = "benchmark-meta.csv"
_SCENE = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SceneFiles:
    """The files of a scene: its images at one size, and its cameras."""

    name: str
    files: tuple[Listed, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Choice:
    """Of scenes: all of the benchmark, the first ``count`` in the order of their names, or those that are named."""

    count: int | None = None
    names: tuple[str, ...] = ()

    def of(self, available: Sequence[str]) -> tuple[str, ...]:
        """The chosen ones of the scenes that there are.

        Raises UserError if there is none of a chosen name, or there are fewer than asked for.
        """
        for name in self.names:
            if name not in available:
                raise UserError(f"--scenes: there is no scene {name} among the {len(available)} that there are")
        if self.names:
            return self.names
        if self.count is not None and self.count > len(available):
            raise UserError(f"--scenes: {self.count} scenes asked for, and there are {len(available)}")
        return tuple(sorted(available)[: self.count])


def parse_choice(words: Sequence[str]) -> Choice:
    """``all``, a number, or names.

    Raises UserError.
    """
    if list(words) == ["all"]:
        return Choice()
    if len(words) == 1 and re.fullmatch(r"[1-9][0-9]{0,5}", words[0], re.ASCII):
        return Choice(count=int(words[0]))
    wrong = [word for word in words if not _SCENE.fullmatch(word)]
    if wrong or not words:
        raise UserError(
            f"--scenes must be all, a number of scenes, or names of 64 hexadecimal digits, not {(wrong or [''])[0]!r}"
        )
    return Choice(names=tuple(dict.fromkeys(words)))


def is_scene_name(name: str) -> bool:
    return _SCENE.fullmatch(name) is not None


def list_benchmark(repository: Repository, folder: Path, endpoint: str | None = None) -> tuple[str, ...]:
    """Names of the benchmark's scenes, sorted. The repository has folders of other scenes too: its own table decides.

    Args:
        folder: where the table is kept.

    Raises DownloadError.
    """
    files, _ = list_folder(repository, "", endpoint)
    tables = [file for file in files if file.name == BENCHMARK]
    if not tables:
        raise DownloadError(f"{repository}: has no {BENCHMARK}, the table of its scenes; name scenes with --scenes")
    path = folder / BENCHMARK
    if not path.is_file() or tables[0].expected.problem(path):
        file = HubFile(repository.name, BENCHMARK, repository.revision, repository.kind)
        fetch_to(file, tables[0].expected, path, endpoint)
    return _read_table(path)


def _read_table(path: Path) -> tuple[str, ...]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = [str(row.get("hash") or "").strip() for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error) as error:
        raise DownloadError(f"{path}: is not a readable table of scenes ({error})") from error
    wrong = [name for name in names if not is_scene_name(name)]
    if wrong or not names:
        raise DownloadError(f"{path}: its column hash must have names of scenes, not {(wrong or ['nothing'])[0]!r}")
    return tuple(sorted(set(names)))


def list_scene(repository: Repository, name: str, folder: Path, endpoint: str | None = None) -> SceneFiles:
    """The files of a scene at a commit, from ``folder`` if they were listed before.

    Raises DownloadError: there is no such scene, or it is not laid out as expected.
    """
    kept = read_listing(folder, name, repository.revision)
    if kept is not None:
        return SceneFiles(name, kept)
    inner = f"{name}/nerfstudio"
    cameras = [file for file in list_folder(repository, inner, endpoint)[0] if file.name == f"{inner}/transforms.json"]
    images, _ = list_folder(repository, f"{inner}/{LEVEL}", endpoint)
    if not cameras or not images:
        raise DownloadError(f"{inner} of {repository}: has no {LEVEL if cameras else 'transforms.json'}")
    for file in images:
        if not re.fullmatch(rf"{inner}/{LEVEL}/[\w-][\w.-]*", file.name, re.ASCII):
            raise DownloadError(f"{inner} of {repository}: the listing has an unexpected file {file.name!r}")
    files = (*cameras, *images)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", {"commit": repository.revision, "files": [asdict(file) for file in files]})
    return SceneFiles(name, files)


def read_listing(folder: Path, name: str, commit: str) -> tuple[Listed, ...] | None:
    """A scene's listing as it was kept. None: there is none of this commit; what cannot be read is listed anew."""
    try:
        content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return tuple(Listed(**file) for file in content["files"]) if content["commit"] == commit else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
