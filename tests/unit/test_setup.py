"""The set-up: which build of torch it installs, what it refuses, and that the pins cover what is declared."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path("/nowhere/bin/python")


@pytest.fixture
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("requirements_setup", ROOT / "requirements" / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Machine:
    """A machine that only pretends: what torch it has, whether it has a GPU, and what each command would install."""

    def __init__(
        self, setup: ModuleType, monkeypatch: pytest.MonkeyPatch, *, torch: tuple[str, str | None] | None, gpu: bool
    ) -> None:
        self.torch = None if torch is None else setup.TorchBuild(*torch)
        self.commands: list[str] = []
        self.installs: dict[str, tuple[str, str | None]] = {}  # words of a command -> the torch that it installs
        self.system = "Linux"
        self._setup = setup
        monkeypatch.setattr(setup, "installed_torch", lambda python: self.torch)
        monkeypatch.setattr(setup, "has_nvidia_gpu", lambda: gpu)
        monkeypatch.setattr(setup, "run", self._run)
        monkeypatch.setattr(setup.platform, "system", lambda: self.system)

    def _run(self, command: list[str]) -> bool:
        text = " ".join(command)
        self.commands.append(text)
        if "torch==" not in text:
            return True
        for words, build in self.installs.items():
            if text.endswith(words):
                self.torch = self._setup.TorchBuild(*build)
                return True
        return False


def test_cpu_machine_asks_for_the_cpu_build_by_name(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(setup, monkeypatch, torch=None, gpu=False)
    machine.installs = {" torch==2.13.0+cpu": ("2.13.0+cpu", None)}
    assert setup.ensure_torch(PYTHON, "auto").cuda is None
    assert len(machine.commands) == 1


def test_cpu_machine_falls_back_to_uv_and_never_to_the_plain_build(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(setup, monkeypatch, torch=None, gpu=False)
    machine.installs = {"--torch-backend cpu torch==2.13.0": ("2.13.0+cpu", None)}
    assert setup.ensure_torch(PYTHON, "auto").version == "2.13.0+cpu"
    assert not [c for c in machine.commands if c.endswith("torch==2.13.0") and "--torch-backend cpu" not in c]


def test_cpu_machine_without_any_cpu_build_stops(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(setup, monkeypatch, torch=None, gpu=False)
    with pytest.raises(setup.SetupError, match="could not be installed"):
        setup.ensure_torch(PYTHON, "auto")
    assert machine.torch is None


def test_a_cuda_build_where_the_cpu_build_was_asked_for_is_an_error(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(setup, monkeypatch, torch=None, gpu=False)
    machine.system = "Darwin"
    machine.installs = {" torch==2.13.0": ("2.13.0", "13.0")}
    with pytest.raises(setup.SetupError, match="CPU build of torch 2.13.0 was asked for, but torch 2.13.0 .CUDA 13.0"):
        setup.ensure_torch(PYTHON, "cpu")


def test_gpu_machine_installs_the_plain_build(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(setup, monkeypatch, torch=None, gpu=True)
    machine.installs = {" torch==2.13.0": ("2.13.0", "13.0")}
    assert setup.ensure_torch(PYTHON, "auto").cuda == "13.0"


@pytest.mark.parametrize("torch", [("2.11.0+cu130", "13.0"), ("2.12.1", "12.9"), ("2.13.0", "13.0")])
@pytest.mark.parametrize("gpu", [True, False])
def test_a_cuda_build_of_a_supported_series_is_kept(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, torch: tuple[str, str], gpu: bool
) -> None:
    machine = Machine(setup, monkeypatch, torch=torch, gpu=gpu)
    assert setup.ensure_torch(PYTHON, "auto").version == torch[0]
    assert machine.commands == []


@pytest.mark.parametrize("torch", [("2.10.0+cu130", "13.0"), ("2.12.0+cpu", None), ("2.14.0", None)])
def test_another_torch_is_replaced(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, torch: tuple[str, str | None]
) -> None:
    machine = Machine(setup, monkeypatch, torch=torch, gpu=False)
    machine.installs = {" torch==2.13.0+cpu": ("2.13.0+cpu", None)}
    assert str(setup.ensure_torch(PYTHON, "auto")) == "torch 2.13.0+cpu (CPU build)"


def test_an_environment_made_from_another_one_shares_its_packages(setup: ModuleType, tmp_path: Path) -> None:
    """As on a GPU machine whose Python is that of an environment with torch in it."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    find = [str(python), "-c", "from importlib.util import find_spec as f; print(f('torch') is not None)"]
    assert subprocess.run(find, capture_output=True, text=True, cwd=tmp_path).stdout == "False\n"
    setup.share_packages(tmp_path / "venv")
    assert subprocess.run(find, capture_output=True, text=True, cwd=tmp_path).stdout == "True\n"


def test_make_names_the_pythons_that_it_tried(tmp_path: Path) -> None:
    """A command of the right name that does not run (a version manager's stand-in) is passed over."""
    stand_in = tmp_path / "python3.12"
    stand_in.write_text("#!/bin/sh\nexit 127\n")
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["make", "setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={stand_in} /nowhere/python3.11"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"none of '{stand_in} /nowhere/python3.11' is a Python 3.11 or 3.12" in done.stderr
    assert not (tmp_path / "venv").exists()


def _pins() -> dict[str, str]:
    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins}


def test_every_declared_dependency_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]
    pins = _pins()
    for requirement in declared:
        if requirement.name != "torch":
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            assert requirement.specifier.contains(pins[name]), f"{requirement} is pinned to {pins[name]}"


def test_pins_bring_neither_torch_nor_cuda_packages() -> None:
    assert not [
        name for name in _pins() if name in {"torch", "torchvision", "lpips"} or name.startswith(("nvidia-cu", "cuda"))
    ]
