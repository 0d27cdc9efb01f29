"""Renew the locks: exact versions of every package, with the sha256 of each of its files.

Run by ``make lock``, with uv in the same environment. The versions that are locked already are kept as far as
``pyproject.toml`` allows; ``make lock ARGS=--upgrade`` asks for the newest. Each lock holds for Python 3.11 and 3.12 on
every platform, says nothing of an index, and has only what the locks before it do not have:

- ``uv.txt``: uv itself;
- ``build.txt``: what builds this package, and the one dependency that comes as source only;
- ``run.txt``: what this package needs, but for torch;
- ``cuda.txt``, ``dev.txt``: what rendering on CUDA, and what testing, needs in addition;
- ``torch-cuda.txt``: the CUDA build of torch, with the CUDA packages that it brings;
- ``xformers.txt``, ``flash-attn.txt``: the optional attention backends.

``torch-cpu.txt`` is written by hand, since the index of the CPU builds is not to be reached from everywhere.
``constraints.txt`` beside the folder has the same versions without hashes, as ``pip install -c`` needs them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from setup import LOCKS, ROOT, TORCH

PROJECT = ROOT / "pyproject.toml"
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
CONFIGURATION = ROOT / "requirements" / "uv.toml"
# What its build and its import need in addition; no extra of pyproject.toml, since its metadata needs a build, too.
FLASH_ATTN = ("flash-attn==2.8.3.post2", "einops", "psutil")
OLDEST_PYTHON = "3.11"


@dataclass(frozen=True)
class Pin:
    """A package in a lock: ``name==version ; marker``, and the lines of hashes and comments under it."""

    name: str
    version: str
    marker: str
    rest: tuple[str, ...]

    @property
    def text(self) -> str:
        marker = f" ; {self.marker}" if self.marker else ""
        return "\n".join([f"{self.name}=={self.version}{marker} \\", *self.rest])


def parse(text: str) -> list[Pin]:
    """The pins of a lock."""
    pins: list[Pin] = []
    for line in text.splitlines():
        found = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;\\]+)(?:\s*;\s*(.+?))?\s*\\?", line)
        if found:
            pins.append(Pin(found[1], found[2], found[3] or "", ()))
        elif line.startswith("    ") and pins:
            last = pins.pop()
            pins.append(Pin(last.name, last.version, last.marker, (*last.rest, line)))
        elif line and not line.startswith("#"):
            raise SystemExit(f"error: cannot read this line of a lock: {line}")
    return pins


def without(pins: Iterable[Pin], others: Sequence[Pin]) -> list[Pin]:
    """The pins that none of the others makes superfluous, on any platform."""
    there = {(other.name, other.marker) for other in others}
    return [pin for pin in pins if (pin.name, "") not in there and (pin.name, pin.marker) not in there]


@dataclass(frozen=True)
class Resolver:
    """uv, with the pins that it should keep to."""

    preferred: Sequence[Pin]

    def resolve(self, source: Path | Sequence[str], *options: str) -> list[Pin]:
        """The pins of a project file or of a list of requirements, with all that they need."""
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "lock.txt"
            output.write_text("".join(f"{pin.text}\n" for pin in self.preferred))
            if isinstance(source, Path):
                file = str(source)
            else:
                file = str(Path(folder) / "requirements.in")
                Path(file).write_text("".join(f"{line}\n" for line in source))
            command = [sys.executable, "-m", "uv", "pip", "compile", file, "--output-file", str(output), *options]
            command += ["--universal", "--python-version", OLDEST_PYTHON, "--fork-strategy", "fewest"]
            command += ["--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
            if subprocess.run(command, cwd=ROOT).returncode != 0:
                raise SystemExit("error: uv could not resolve the requirements: see its message above")
            return parse(output.read_text())


def make_locks(*, upgrade: bool) -> dict[str, list[Pin]]:
    """All locks by name."""
    project = tomllib.loads(PROJECT.read_text())
    shared = ["--config-file", str(CONFIGURATION), "--no-emit-package", "torch"]
    torch = f"torch=={TORCH}"
    # uv takes over the hashes of the versions that it keeps, so the file with a few of torch's must not be among them.
    files = [] if upgrade else sorted(set(LOCKS.glob("*.txt")) - {LOCKS / "torch-cpu.txt"})
    old = {pin.name: pin for path in files for pin in parse(path.read_text())}

    say("resolving what this package and its extras need")
    extras = ["--extra", "plots", "--extra", "cuda", "--extra", "dev"]
    full = Resolver(list(old.values())).resolve(PROJECT, *shared, *extras)
    resolver = Resolver(list((old | {pin.name: pin for pin in full}).values()))
    build_needs = [*project["build-system"]["requires"], "setuptools", "wheel", "editables"]
    build = resolver.resolve(build_needs, *shared)
    run = without(resolver.resolve(PROJECT, *shared, *extras[:2]), build)
    base = [*build, *run]

    say("resolving the CUDA build of torch, and what is optional")
    xformers_needs = [torch, *project["project"]["optional-dependencies"]["xformers"]]
    locks = {
        "build": build,
        "run": run,
        "cuda": without(resolver.resolve(PROJECT, *shared, *extras[:4]), base),
        "dev": without(resolver.resolve(PROJECT, *shared, *extras[:2], *extras[4:]), base),
        "torch-cuda": without(resolver.resolve([torch, "setuptools<82"], "--no-config"), base),
        "xformers": without(resolver.resolve(xformers_needs, *shared), base),
        "flash-attn": resolver.resolve(FLASH_ATTN, *shared, "--no-deps"),
        "uv": resolver.resolve(["uv"], *shared),
    }
    check_versions(locks)
    return locks


def check_versions(locks: dict[str, list[Pin]]) -> None:
    """The locks are installed together: a package must have one version in all of them."""
    versions: dict[str, tuple[str, str]] = {}
    for lock, pins in locks.items():
        for pin in pins:
            other, version = versions.setdefault(pin.name, (lock, pin.version))
            if version != pin.version:
                raise SystemExit(f"error: {pin.name} is {version} in {other}.txt and {pin.version} in {lock}.txt")


def constraints(locks: dict[str, list[Pin]]) -> str:
    """The versions of all locks but torch and what CUDA needs, for ``pip install -c``."""
    names = ("build", "run", "cuda", "dev", "uv")
    pins = {(pin.name, pin.marker): pin for name in names for pin in locks[name]}
    lines = [f"{pin.name}=={pin.version}{f' ; {pin.marker}' if pin.marker else ''}" for _, pin in sorted(pins.items())]
    head = (
        "# Written by `make lock`: the versions of the files in locks/, without their hashes, for `pip install -c`.\n"
        '# torch is left out, since its builds differ (README, "On a machine with a CUDA GPU").\n'
    )
    return head + "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """Write under another name and rename."""
    other = path.with_name(f".{path.name}.{os.getpid()}")
    other.write_text(text)
    other.replace(path)


def say(text: str) -> None:
    print(f"[lock] {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="the newest versions instead of those locked already")
    options = parser.parse_args()
    locks = make_locks(upgrade=options.upgrade)
    for name, pins in locks.items():
        write(LOCKS / f"{name}.txt", "# Written by `make lock`.\n" + "".join(f"{pin.text}\n" for pin in pins))
        say(f"{name}.txt: {len(pins)} packages")
    write(CONSTRAINTS, constraints(locks))
    say("done: read the differences, then run `make setup` and the tests")


if __name__ == "__main__":
    main()
