"""The set-up: which build of torch it installs, from which locks, and what it refuses."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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
        if "/torch-" not in text:
            return True
        for words, build in self.installs.items():
            if words in text:
                self.torch = self._setup.TorchBuild(*build)
                return True
        return False


def set_up(setup: ModuleType, variant: str) -> Any:
    """What the set-up does once the environment is there."""
    chosen = setup.ensure_torch(PYTHON, variant)
    setup.install_packages(PYTHON, chosen, dev=False)
    return setup.check_torch(PYTHON, chosen)


def test_cpu_machine_asks_for_the_cpu_build_by_name(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(setup, monkeypatch, torch=None, gpu=False)
    machine.installs = {"locks/torch-cpu.txt": ("2.13.0+cpu", None)}
    assert set_up(setup, "auto").cuda is None
    assert len([command for command in machine.commands if "/torch-" in command]) == 1
    assert not [command for command in machine.commands if "cuda" in command]


def test_cpu_machine_falls_back_to_uv_and_never_to_the_plain_build(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(setup, monkeypatch, torch=None, gpu=False)
    machine.installs = {"--torch-backend cpu": ("2.13.0+cpu", None)}
    assert set_up(setup, "auto").version == "2.13.0+cpu"
    assert not [command for command in machine.commands if "torch-cuda.txt" in command]
    assert any("locks/uv.txt" in command for command in machine.commands)


def test_cpu_machine_without_any_cpu_build_stops(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(setup, monkeypatch, torch=None, gpu=False)
    with pytest.raises(setup.SetupError, match="could not be installed"):
        setup.ensure_torch(PYTHON, "auto")
    assert machine.torch is None


def test_a_cuda_build_where_the_cpu_build_was_asked_for_is_an_error(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(setup, monkeypatch, torch=None, gpu=False)
    machine.installs = {"locks/torch-cpu.txt": ("2.13.0", "13.0")}
    with pytest.raises(setup.SetupError, match="CPU build of torch 2.13.0 was asked for, but torch 2.13.0 .CUDA 13.0"):
        set_up(setup, "cpu")


def test_gpu_machine_installs_the_plain_build(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(setup, monkeypatch, torch=None, gpu=True)
    machine.installs = {"locks/torch-cuda.txt": ("2.13.0", "13.0")}
    assert set_up(setup, "auto").cuda == "13.0"
    assert any("locks/cuda.txt" in command for command in machine.commands)


@pytest.mark.parametrize("torch", [("2.11.0+cu130", "13.0"), ("2.12.1", "12.9"), ("2.13.0", "13.0")])
@pytest.mark.parametrize("gpu", [True, False])
def test_a_cuda_build_of_a_supported_series_is_kept(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, torch: tuple[str, str], gpu: bool
) -> None:
    machine = Machine(setup, monkeypatch, torch=torch, gpu=gpu)
    assert set_up(setup, "auto").version == torch[0]
    assert not [command for command in machine.commands if "/torch-" in command]


@pytest.mark.parametrize("torch", [("2.10.0+cu130", "13.0"), ("2.12.0+cpu", None), ("2.14.0", None)])
def test_another_torch_is_replaced(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, torch: tuple[str, str | None]
) -> None:
    machine = Machine(setup, monkeypatch, torch=torch, gpu=False)
    machine.installs = {"locks/torch-cpu.txt": ("2.13.0+cpu", None)}
    assert str(set_up(setup, "auto")) == "torch 2.13.0+cpu (CPU build)"


@pytest.mark.parametrize("dev", [True, False])
def test_nothing_is_installed_but_from_a_lock(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, dev: bool) -> None:
    machine = Machine(setup, monkeypatch, torch=None, gpu=True)
    machine.installs = {"locks/torch-cuda.txt": ("2.13.0", "13.0")}
    setup.install_packages(PYTHON, setup.ensure_torch(PYTHON, "auto"), dev=dev)
    *from_locks, this_package = machine.commands
    assert this_package.endswith("--no-deps --no-build-isolation -e .")
    for command in from_locks:
        assert "--no-deps" in command and "--require-hashes -r " in command
    assert any("locks/dev.txt" in command for command in from_locks) == dev
    # What builds packages is there before anything that may have to be built.
    first_build = next(index for index, command in enumerate(from_locks) if "--no-build-isolation" in command)
    assert any("locks/build.txt" in command for command in from_locks[:first_build])


def test_a_changed_file_is_refused(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real pip, on a package made here: its own hash lets it in, another one does not."""
    wheel = tmp_path / "small_example-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small_example.py", "")
        info = "small_example-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: small-example\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(setup, "LOCKS", tmp_path)
    options = ["--isolated", "--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path / "there")]

    (tmp_path / "good.txt").write_text(f"small-example==1.0 --hash=sha256:{digest}\n")
    (tmp_path / "bad.txt").write_text(f"small-example==1.0 --hash=sha256:{'0' * 64}\n")
    assert not setup.pip(Path(sys.executable), *options, *setup.lock_arguments("bad"))
    assert not (tmp_path / "there").exists()
    assert setup.pip(Path(sys.executable), *options, *setup.lock_arguments("good"))
    assert (tmp_path / "there" / "small_example.py").exists()


def test_an_environment_made_from_another_one_shares_its_packages(setup: ModuleType, tmp_path: Path) -> None:
    """As on a GPU machine whose Python is that of an environment with torch in it."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    find = [str(python), "-c", "from importlib.util import find_spec as f; print(f('torch') is not None)"]
    assert subprocess.run(find, capture_output=True, text=True, cwd=tmp_path).stdout == "False\n"
    setup.share_packages(tmp_path / "venv")
    assert subprocess.run(find, capture_output=True, text=True, cwd=tmp_path).stdout == "True\n"


def test_what_an_environment_shares_is_shared_on(tmp_path: Path) -> None:
    """The second one finds what the first has from elsewhere; a .pth file of a shared folder would not be read."""
    (tmp_path / "elsewhere" / "site-packages").mkdir(parents=True)
    (tmp_path / "elsewhere" / "site-packages" / "small_example.py").touch()
    pythons = []
    for name in ("first", "second"):
        venv.create(tmp_path / name, with_pip=False)
        pythons.append(str(tmp_path / name / "bin" / "python"))
    (packages,) = (tmp_path / "first" / "lib").glob("python*/site-packages")
    (packages / "shared_packages.pth").write_text(f"{tmp_path / 'elsewhere' / 'site-packages'}\n")
    share = "import sys; from pathlib import Path; import setup; setup.share_packages(Path(sys.argv[1]))"
    subprocess.run([pythons[0], "-c", share, str(tmp_path / "second")], cwd=ROOT / "requirements", check=True)
    subprocess.run([pythons[1], "-c", "import small_example"], cwd=tmp_path, check=True)


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
