"""The DL3DV benchmark: 140 captures on the hub, fetched file by file, and converted scene by scene if that is wanted.

In the output folder: a folder for each scene; ``downloads.json``, which remembers the commit of which they are; and
``.download``, with listings, and with what is fetched but not converted yet.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tttlrm.downloads.dl3dv_listing import (
    Choice,
    SceneFiles,
    is_scene_name,
    list_benchmark,
    list_scene,
    read_listing,
)
from tttlrm.downloads.hub import HubFile, Listed, Repository, commit_of, require_space
from tttlrm.downloads.input_views import InputViews, state_views
from tttlrm.downloads.parallel import Wanted, fetch_many
from tttlrm.downloads.records import RECORD, read_records, sole_download, write_record
from tttlrm.errors import DownloadError, SceneError
from tttlrm.progress import Progress, Silent
from tttlrm.scenes import SCENE_FILE
from tttlrm.scenes.convert import convert, read_dl3dv

REPOSITORY = "DL3DV/DL3DV-Benchmark"
WORK = ".download"
TERMS = (
    f"DL3DV comes under its own terms (non-commercial; https://huggingface.co/datasets/{REPOSITORY}): its owners grant "
    "access to those who accept them there."
)
CONVERTED_PER_BYTE = 1.3
"""Cautious: what undistorted images take for each byte of theirs (1.08 and 1.14 where it was measured)."""
_LISTINGS_AT_ONCE = 8


@dataclass(frozen=True)
class Options:
    """How it is fetched.

    Attributes:
        revision: of the repository; None: the commit of what is there already, or else its main branch.
        offline: fetch nothing, and say what is missing.
        convert: write scenes, and remove what they are made of unless ``keep``.
        views: input views that the scenes are to list; None: none.
        connections: at once.
        jobs: processes that convert; None: one for each core.
        verify: read every fetched file again and compare its digest.
        endpoint: of the hub; None: its own.
    """

    revision: str | None = None
    offline: bool = False
    convert: bool = False
    keep: bool = False
    views: InputViews | None = None
    connections: int = 8
    jobs: int | None = None
    verify: bool = False
    endpoint: str | None = None


@dataclass(frozen=True)
class Done:
    """``scenes``: that are there. ``fetched``: files that this run fetched. ``listed``: scenes with published views."""

    scenes: tuple[str, ...]
    fetched: int
    listed: int


def download_dl3dv(choice: Choice, output: Path, options: Options, progress: Progress | None = None) -> Done:
    """Fetch scenes of the benchmark to a folder; what is there already is not fetched again.

    Raises:
        DownloadError: something cannot be had, or is not what was announced.
        SceneError: scenes that could not be converted, after all others were.
        UserError: there are no such scenes.
    """
    with sole_download(output):
        run = _Run(output, options, progress or Silent())
        return run.offline(choice) if options.offline else run.online(choice)


def convert_brought(
    choice: Choice, source: Path, output: Path, options: Options, progress: Progress | None = None
) -> Done:
    """Convert scenes of a copy of the repository that was brought along, and is left as it is.

    Raises as :func:`download_dl3dv` does.
    """
    names = [path.name for path in source.iterdir() if is_scene_name(path.name)] if source.is_dir() else []
    if not names:
        raise DownloadError(f"{source}: has no folders of scenes of DL3DV (named by 64 hexadecimal digits)")
    with sole_download(output):
        run = _Run(output, replace(options, convert=True), progress or Silent())
        return run.brought(choice.of(names), source)


@dataclass(frozen=True)
class _Part:
    """A scene that is to be fetched: all its files, and those that are not there."""

    scene: SceneFiles
    missing: tuple[Listed, ...]


class _Run:
    """One download. Scenes are fetched and converted one after the other, so that the unconverted takes little room."""

    def __init__(self, output: Path, options: Options, progress: Progress) -> None:
        self._output, self._options, self._progress = output, options, progress
        self._problems: list[str] = []
        self._listed = 0
        self._work = output / WORK
        self._listings = self._work / "listings"

    def online(self, choice: Choice) -> Done:
        repository = self._repository()
        scenes = choice.names or choice.of(self._benchmark(repository))
        parts = self._parts(repository, [name for name in scenes if not self._is_converted(name)])
        self._announce(repository, len(scenes), list(parts.values()))
        for at, name in enumerate(scenes, 1):
            if name in parts:
                self._fetch(repository, parts[name], f"{at} of {len(scenes)}")
            self._convert(name)
        return self._done(scenes, sum(len(part.missing) for part in parts.values()))

    def offline(self, choice: Choice) -> Done:
        scenes = choice.of(self._known())
        for name in scenes:
            if not self._is_converted(name):
                self._require_whole(name)
            self._convert(name)
        return self._done(scenes, 0)

    def brought(self, scenes: Sequence[str], source: Path) -> Done:
        for name in scenes:
            self._convert_from(name, source / name)
        return self._done(scenes, 0)

    def _repository(self) -> Repository:
        """At a commit: that of the scenes that are there, if there are any."""
        known = self._entry().get("commit")
        revision = self._options.revision or known or "main"
        if revision == known:
            return Repository(REPOSITORY, "dataset", revision)
        commit = commit_of(Repository(REPOSITORY, "dataset", revision), self._options.endpoint)
        if known not in (None, commit):
            raise DownloadError(
                f"{self._output}: holds scenes of commit {known} of {REPOSITORY}, and {revision} is {commit}; give "
                f"another folder, or leave out --revision to go on with those"
            )
        self._record({"commit": commit})
        return Repository(REPOSITORY, "dataset", commit)

    def _benchmark(self, repository: Repository) -> tuple[str, ...]:
        known = self._entry().get("benchmark")
        if known is None:
            known = list_benchmark(repository, self._work, self._options.endpoint)
            self._record({"benchmark": list(known)})
        return tuple(str(name) for name in known)

    def _parts(self, repository: Repository, names: Sequence[str]) -> dict[str, _Part]:
        """What is to be fetched of each scene. The hub takes a few tenths of a second for each listing."""

        def part_of(name: str) -> _Part:
            scene = list_scene(repository, name, self._listings, self._options.endpoint)
            return _Part(scene, tuple(file for file in scene.files if not self._is_there(file)))

        parts: dict[str, _Part] = {}
        with self._progress.task("list scenes", len(names)) as done, ThreadPoolExecutor(_LISTINGS_AT_ONCE) as pool:
            try:
                for part in pool.map(part_of, names):
                    parts[part.scene.name] = part
                    done(len(parts))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return parts

    def _announce(self, repository: Repository, scenes: int, parts: Sequence[_Part]) -> None:
        """Say what is to come, and make sure that there is room for it."""
        missing = [file for part in parts for file in part.missing]
        need = size = sum(file.size for file in missing)
        if self._options.convert:
            kept = size if self._options.keep else max((part.scene.size for part in parts), default=0)
            need = int(CONVERTED_PER_BYTE * sum(part.scene.size for part in parts)) + kept
        self._progress.note(
            f"{repository.name} at {repository.revision[:12]}: {scenes} scenes; {len(missing)} files to fetch, "
            f"{size / 2**30:.2f} GiB; {need / 2**30:.2f} GiB of disk in {self._output}"
        )
        require_space(self._output, need)

    def _fetch(self, repository: Repository, part: _Part, position: str) -> None:
        wanted = [
            Wanted(
                HubFile(repository.name, file.name, repository.revision, repository.kind),
                file.expected,
                self._raw(file.name),
            )
            for file in part.missing
        ]
        if wanted:
            name = f"scene {position}"
            fetch_many(wanted, self._options.connections, self._progress, name, self._options.endpoint)
        scene = {part.scene.name: {"files": len(part.scene.files), "bytes": part.scene.size}}
        self._record({"scenes": {**self._entry().get("scenes", {}), **scene}})

    def _is_there(self, listed: Listed) -> bool:
        """A file has its name only when it was checked: its size alone is looked at again, unless more is asked for."""
        path = self._raw(listed.name)
        if not path.is_file() or path.stat().st_size != listed.size:
            return False
        return not self._options.verify or listed.expected.problem(path) is None

    def _known(self) -> Sequence[str]:
        """Scenes that can be asked for offline: those that an earlier run knew of."""
        known = {*self._entry().get("benchmark", ()), *self._entry().get("scenes", {})}
        if not known:
            raise DownloadError(
                f"{self._output / RECORD}: knows of no scenes, and --offline fetches nothing; run once without it, or "
                "give a copy of the repository with --from"
            )
        return sorted(known)

    def _require_whole(self, name: str) -> None:
        files = read_listing(self._listings, name, str(self._entry().get("commit")))
        if files is None or not all(self._is_there(file) for file in files):
            raise DownloadError(
                f"{self._output}: the scene {name} is not there, or not all of it, and --offline fetches nothing"
            )

    def _convert(self, name: str) -> None:
        """What a scene is made of stays where that fails, and does not have to be fetched again."""
        if self._options.convert and self._convert_from(name, self._raw(name)) and not self._options.keep:
            shutil.rmtree(self._raw(name), ignore_errors=True)

    def _convert_from(self, name: str, source: Path) -> bool:
        """Whether it went well; the other scenes are not to wait for a bad one, which :meth:`_done` names."""
        try:
            if not self._is_converted(name):
                convert(
                    read_dl3dv(source),
                    self._output / name,
                    name=name,
                    jobs=self._options.jobs,
                    overwrite=True,  # what an earlier run began of another copy of the capture
                    progress=self._progress,
                )
            self._listed += state_views(self._output / name, self._options.views)
        except SceneError as error:
            self._problems.append(str(error))
            self._progress.note(f"{name}: not converted: {error}")
            return False
        return True

    def _done(self, scenes: Sequence[str], fetched: int) -> Done:
        if self._problems:
            more = f" (and {len(self._problems) - 1} more scenes)" if len(self._problems) > 1 else ""
            raise SceneError(f"{self._problems[0]}{more}; all other scenes are there")
        return Done(tuple(scenes), fetched, self._listed)

    def _record(self, values: Mapping[str, Any]) -> None:
        write_record(self._output, REPOSITORY, {**self._entry(), **values})

    def _entry(self) -> dict[str, Any]:
        return read_records(self._output).get(REPOSITORY, {})

    def _raw(self, name: str) -> Path:
        """Where a scene, or one of its files, goes as it is fetched."""
        return (self._work if self._options.convert else self._output) / name

    def _is_converted(self, name: str) -> bool:
        return self._options.convert and (self._output / name / SCENE_FILE).is_file()
