"""A container engine and a base image for the tests, without a daemon and without an image registry.

Podman keeps everything in one folder that is removed afterwards. The base image is made from Debian's packages, as
debian:bookworm-slim is: without documentation and translations.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
BASE_IMAGE = "localhost/ci/base:bookworm"
IMAGE = "localhost/ci/tttlrm-suite:cpu"
NEEDED = ("podman", "runc", "mmdebstrap", "ch-run")
# Root's alone: what lies here becomes part of an image.
_BASE_CACHE = Path("/var/cache/tttlrm-suite-tests")
_BASE_MAX_AGE_S = 7 * 86400
_LEFT_OUT = [
    *(f"path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc", "info", "lintian")),
    "path-include=/usr/share/doc/*/copyright",
]
_DEBOOTSTRAP = [
    "mmdebstrap",
    "--format=tar",
    "--variant=minbase",
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    "--include=usr-is-merged",
    '--aptopt=APT::Install-Recommends "false"',
    *(f"--dpkgopt={option}" for option in _LEFT_OUT),
    "bookworm",
]
_DEBIAN_SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
# runc needs no cgroup of its own here, and limits that were lowered for this process cannot be raised again.
_SETTINGS = """
[containers]
cgroupns = "host"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


@dataclass(frozen=True)
class Engine:
    """Podman with its storage in ``folder``."""

    folder: Path

    @staticmethod
    def at(folder: Path) -> Engine:
        (folder / "containers.conf").write_text(_SETTINGS)
        for driver in ("overlay", "vfs"):
            storage = (
                f'[storage]\ndriver = "{driver}"\ngraphroot = "{folder}/storage-{driver}"\nrunroot = "{folder}/run"\n'
            )
            (folder / "storage.conf").write_text(storage)
            engine = Engine(folder)
            if engine.run("info", check=False).returncode == 0:
                return engine
        raise AssertionError(engine.run("info", check=False).stderr)

    @property
    def environment(self) -> dict[str, str]:
        """With which podman, and what calls it, uses this storage."""
        return {
            **os.environ,
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "BUILDAH_ISOLATION": "chroot",
            "TMPDIR": str(self.folder),
            "ENGINE": "podman",
            "IMAGE": IMAGE,
            "VARIANT": "cpu",
            "ENV_FILE": str(self.folder / "compose.env"),
        }

    def run(
        self, *arguments: str, check: bool = True, input: bytes | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["podman", *arguments], env=self.environment, capture_output=True, timeout=timeout, input=input
        )
        made = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        assert not check or made.returncode == 0, f"podman {arguments}: {made.stderr}"
        return made

    def make(self, target: str, *variables: str, folder: Path, timeout: float = 600) -> str:
        """``make TARGET`` of the repository, run in ``folder``; its output."""
        command = ["make", "--no-print-directory", "-C", str(ROOT), target, f"FOLDER={folder}", *variables]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout)
        output = done.stdout + done.stderr
        assert done.returncode == 0, output[-5000:]
        return output

    def inspect(self, image: str = IMAGE) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.run("image", "inspect", image).stdout)
        return found[0]

    def make_base_image(self) -> None:
        self.run("import", str(base_tar()), BASE_IMAGE)

    def remove(self) -> None:
        self.run("image", "umount", "--all", check=False)
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if (place := line.split()[1]).startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", place])
        shutil.rmtree(self.folder, ignore_errors=True)


def base_tar() -> Path:
    """Debian's minimal system. Kept for a week, in a folder that only root can write to, with its digest beside it."""
    recipe = json.dumps(_DEBOOTSTRAP) + _DEBIAN_SOURCES.read_text()
    _BASE_CACHE.mkdir(mode=0o700, exist_ok=True)
    state = _BASE_CACHE.lstat()
    assert stat.S_ISDIR(state.st_mode) and state.st_uid == 0 and not state.st_mode & 0o022, f"{_BASE_CACHE}: not root's"
    tar = _BASE_CACHE / f"{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.tar"
    note = tar.with_suffix(".sha256")
    if tar.exists() and note.exists() and time.time() - tar.stat().st_mtime < _BASE_MAX_AGE_S:
        with tar.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == note.read_text().strip():
                return tar
    for old in _BASE_CACHE.iterdir():
        old.unlink()
    made = tar.with_suffix(".new.tar")
    subprocess.run([*_DEBOOTSTRAP, str(made), str(_DEBIAN_SOURCES)], check=True, capture_output=True, timeout=300)
    with made.open("rb") as file:
        note.write_text(hashlib.file_digest(file, "sha256").hexdigest())
    made.rename(tar)
    return tar
