"""The locks: they cover what is declared, agree with each other, and have a hash for every file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "requirements"
LOCKS = FOLDER / "locks"
SETUP = {  # what is installed together, without and with a GPU
    "cpu": ("build", "run", "dev", "torch-cpu"),
    "cuda": ("build", "run", "dev", "cuda", "torch-cuda"),
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PLATFORM = {"sys_platform": "linux", "platform_machine": "x86_64", "platform_python_implementation": "CPython"}
PYTHONS = ("3.11", "3.12")


@pytest.fixture(scope="module")
def lock() -> Iterator[ModuleType]:
    """requirements/lock.py, which is a script and imports the one beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for name in ("setup", "lock"):
            spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, name, module)
            spec.loader.exec_module(module)
        yield module


def pins(lock: ModuleType, *names: str, python: str = "3.11") -> dict[str, str]:
    """Versions by name that some locks give this Python on Linux."""
    environment = {**PLATFORM, "python_version": python, "python_full_version": f"{python}.0"}
    return {
        canonicalize_name(pin.name): pin.version
        for name in names
        for pin in lock.parse((LOCKS / f"{name}.txt").read_text())
        if not pin.marker or Marker(pin.marker).evaluate(environment)
    }


@pytest.mark.parametrize("path", sorted(LOCKS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_package_has_hashes_and_no_line_anything_else(path: Path, lock: ModuleType) -> None:
    found = lock.parse(path.read_text())
    assert found
    for pin in found:
        assert pin.rest, f"{path.name}: {pin.name} has no hash"
        for line in pin.rest:
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line), f"{path.name}: {line}"
    assert "://" not in path.read_text()  # no address of an index


@pytest.mark.parametrize("variant", SETUP)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_declared_dependency_is_locked_within_its_range(lock: ModuleType, variant: str, python: str) -> None:
    extras = PROJECT["optional-dependencies"]
    declared = [*PROJECT["dependencies"], *extras["plots"], *extras["dev"], *(extras["cuda"] * (variant == "cuda"))]
    locked = pins(lock, *SETUP[variant], python=python)
    for text in declared:
        requirement = Requirement(text)
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is locked to {version}"


def test_xformers_is_locked_within_its_range(lock: ModuleType) -> None:
    locked = pins(lock, "xformers")
    for requirement in map(Requirement, PROJECT["optional-dependencies"]["xformers"]):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("variant", SETUP)
def test_what_is_installed_together_names_each_package_once(lock: ModuleType, variant: str) -> None:
    everything = [pin for name in SETUP[variant] for pin in lock.parse((LOCKS / f"{name}.txt").read_text())]
    names = [(canonicalize_name(pin.name), pin.marker) for pin in everything]
    assert sorted(names) == sorted(set(names))
    lock.check_versions({name: lock.parse((LOCKS / f"{name}.txt").read_text()) for name in SETUP[variant][:-1]})


def test_the_locks_are_complete(lock: ModuleType) -> None:
    """They are installed without asking packages what they need: so everything that they need must be there."""
    locked = pins(lock, *SETUP["cpu"], python=f"{sys.version_info[0]}.{sys.version_info[1]}")
    looked_at = 0
    for name, version in locked.items():
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an environment that was not made by `make setup`
        if distribution.version != version:
            continue
        looked_at += 1
        for requirement in map(Requirement, distribution.requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed = canonicalize_name(requirement.name)
                assert needed in locked, f"{name} needs {needed}, which is in no lock"
                assert requirement.specifier.contains(locked[needed]), f"{name} needs {requirement}"
    assert looked_at > len(locked) / 2


def test_torch_has_one_version_in_set_up_locks_and_metadata(lock: ModuleType) -> None:
    torch = lock.TORCH
    assert pins(lock, "torch-cpu") == {"torch": f"{torch}+cpu"}
    assert pins(lock, "torch-cuda")["torch"] == torch
    (metadata,) = tomllib.loads((FOLDER / "uv.toml").read_text())["dependency-metadata"]
    assert (metadata["name"], metadata["version"]) == ("torch", torch)


def test_the_cuda_build_has_hashes_of_its_own(lock: ModuleType) -> None:
    def hashes_of_torch(name: str) -> set[str]:
        found = lock.parse((LOCKS / f"{name}.txt").read_text())
        return {line.rstrip(" \\") for pin in found if pin.name == "torch" for line in pin.rest}

    of_cpu = hashes_of_torch("torch-cpu")
    assert len(of_cpu) == 6 and len(hashes_of_torch("torch-cuda") - of_cpu) >= 8


def test_the_assumed_requirements_of_torch_are_those_of_the_installed_one() -> None:
    (metadata,) = tomllib.loads((FOLDER / "uv.toml").read_text())["dependency-metadata"]
    installed = importlib.metadata.distribution("torch")
    if installed.version.split("+")[0] != metadata["version"]:
        return  # a GPU machine may bring an older one
    needs = [Requirement(text) for text in installed.requires or []]
    plain = {str(need) for need in needs if need.marker is None}
    assert plain == {str(Requirement(text)) for text in metadata["requires-dist"]}


def test_nothing_of_cuda_where_there_is_no_gpu(lock: ModuleType) -> None:
    for name in pins(lock, *SETUP["cpu"]):
        assert not re.match(r"(nvidia-(?!ml-py)|cuda|triton|gsplat|torchvision)", name)


def test_constraints_are_the_versions_of_the_locks(lock: ModuleType) -> None:
    names = ("build", "run", "cuda", "dev", "uv")
    locks = {name: lock.parse((LOCKS / f"{name}.txt").read_text()) for name in names}
    assert (FOLDER / "constraints.txt").read_text() == lock.constraints(locks)


def test_what_other_locks_have_is_left_out(lock: ModuleType) -> None:
    here = [lock.Pin("a", "1", "", ()), lock.Pin("b", "1", "", ()), lock.Pin("c", "1", "os_name == 'nt'", ())]
    there = [lock.Pin("a", "1", "", ()), lock.Pin("b", "1", "os_name == 'nt'", ()), lock.Pin("c", "1", "", ())]
    assert [pin.name for pin in lock.without(here, there)] == ["b"]  # there it is for one platform only


def test_two_versions_of_a_package_are_refused(lock: ModuleType) -> None:
    with pytest.raises(SystemExit, match="a is 1 in run.txt and 2 in dev.txt"):
        lock.check_versions({"run": [lock.Pin("a", "1", "", ())], "dev": [lock.Pin("a", "2", "", ())]})


def test_a_line_that_is_no_pin_is_refused(lock: ModuleType) -> None:
    with pytest.raises(SystemExit, match="cannot read this line of a lock: --index-url"):
        lock.parse("a==1 \\\n    --hash=sha256:0\n--index-url https://example.org\n")
