"""``tttlrm doctor``: what it says of this machine, and of broken ones."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tttlrm import bundled, doctor
from tttlrm.cli import main
from tttlrm.doctor import PACKAGES, can_run, examine, report

ROOT = Path(__file__).parents[2]


def finding(name: str) -> Any:
    (found,) = [found for found in examine() if found.name == name]
    return found


def program(folder: Path, name: str, text: str) -> None:
    """A command that prints a text, first on the path."""
    file = folder / name
    file.write_text(f"#!/bin/sh\necho '{text}'\n")
    file.chmod(0o755)


def test_this_machine_can_run_the_main_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "the main job can run here" in said
    for name in ("python", "torch", "tiny-object", "plyfile", "sbatch"):
        assert any(name in line.split()[1] for line in said.splitlines() if line), name


def test_a_missing_package_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec

    def find(name: str, *arguments: Any) -> Any:
        return None if name in ("plyfile", "cv2") else real(name, *arguments)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(SystemExit) as caught:
        main(["doctor"])
    assert caught.value.code == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "the main job cannot run without plyfile"
    assert any(line.startswith("absent") and "opencv" in line and "tttlrm convert" in line for line in said)


@pytest.mark.parametrize("command", [["-m", "tttlrm.doctor"], ["-m", "tttlrm", "doctor"]])
def test_it_also_speaks_where_nothing_is_installed(command: list[str]) -> None:
    """-S: without site-packages, and so without PyTorch, which the other commands need to be imported at all."""
    done = subprocess.run([sys.executable, "-S", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    broken = [line for line in done.stdout.splitlines() if line.startswith("BROKEN  torch ")]
    assert len(broken) == 1 and "No module named 'torch'" in broken[0] and "make setup" in broken[0]
    assert "the main job cannot run without torch, numpy" in done.stdout.splitlines()[-1]


def test_a_version_outside_the_declared_range_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.26.4" if name == "numpy" else real(name))
    found = finding("numpy")
    assert found.state == "broken" and found.needed
    assert "1.26.4" in found.detail and ">=2 is needed: run make setup" in found.detail


def test_a_torch_outside_the_declared_range_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.10.0+cu128")
    found = finding("torch")
    assert found.state == "broken" and "2.10.0+cu128" in found.detail and ">=2.11" in found.detail


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs the CPU build of torch")
def test_a_gpu_that_this_torch_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The main job still runs, on the CPU."""
    program(tmp_path, "nvidia-smi", "580.95.05")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = finding("GPU")
    assert found.state == "broken" and not found.needed
    assert "driver 580.95.05" in found.detail and "make setup TORCH=cuda" in found.detail


class PretendedGpu:
    """What the doctor asks ``torch.cuda``, answered for one GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        properties = type("Properties", (), {"name": "H100", "total_memory": 80 * 2**30, "major": 9, "minor": 0})
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        monkeypatch.setattr(torch, "ones", self._ones)
        self.error: str | None = None

    def _ones(self, size: int, device: str) -> Any:
        assert device == "cuda:0"
        if self.error is not None:
            raise RuntimeError(self.error)
        return torch.tensor([1.0] * size)


def test_a_gpu_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendedGpu(monkeypatch)
    found = finding("GPU 0")
    assert found.state == "ok" and found.needed
    assert found.detail.startswith("H100, 80 GiB, compute capability 9.0, driver ")


def test_a_gpu_that_does_not_compute_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendedGpu(monkeypatch).error = "CUDA error: no kernel image is available for execution on the device\nmore"
    found = finding("GPU 0")
    assert found.state == "broken" and found.needed
    assert "no kernel image is available" in found.detail and "more" not in found.detail


def test_with_a_gpu_the_main_job_needs_gsplat_and_what_compiles_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    PretendedGpu(monkeypatch)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "kept"))
    real = importlib.util.find_spec
    places: list[str] | None = None

    def find(name: str, *arguments: Any) -> Any:
        if name != "gsplat":
            return real(name, *arguments)
        return None if places is None else type("Spec", (), {"submodule_search_locations": places})

    monkeypatch.setattr(importlib.util, "find_spec", find)
    real_which = doctor.shutil.which
    monkeypatch.setattr(
        doctor.shutil, "which", lambda name, path=None: real_which(name, path=(path or "").replace("/usr/local", "/no"))
    )
    missing = {found.name for found in examine() if found.needed and found.state != "ok"}
    assert missing == {"gsplat", "nvcc"}

    places = [str(tmp_path / "gsplat")]
    assert finding("nvcc").state == "absent" and finding("nvcc").needed

    (tmp_path / "gsplat").mkdir()
    (tmp_path / "gsplat" / "csrc.so").touch()
    assert can_run(examine())  # compiled when it was installed, as in an image
    (tmp_path / "gsplat" / "csrc.so").unlink()

    (tmp_path / "kept" / "py312_cu130" / "gsplat_cuda").mkdir(parents=True)
    (tmp_path / "kept" / "py312_cu130" / "gsplat_cuda" / "gsplat_cuda.so").touch()
    assert can_run(examine())  # compiled when it was first used

    (tmp_path / "kept" / "py312_cu130" / "gsplat_cuda" / "gsplat_cuda.so").unlink()
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    program(tmp_path / "cuda" / "bin", "nvcc", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert finding("nvcc").state == "ok"


def test_a_damaged_model_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(bundled, "_FOLDER", tmp_path)
    findings = examine()
    assert not can_run(findings) and "install tttlrm again" in report(findings)


def test_every_dependency_is_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {canonicalize_name(package.distribution) for package in PACKAGES} | {"torch"}
    for requirement in map(Requirement, project["dependencies"]):
        assert canonicalize_name(requirement.name) in known, requirement


def test_make_doctor_speaks_where_there_is_no_environment(tmp_path: Path) -> None:
    command = [
        "make",
        "--no-print-directory",
        "doctor",
        f"VENV={tmp_path / 'none'}",
        f"PYTHON=/nowhere {sys.executable}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "the main job can run here"
    assert not (tmp_path / "none").exists()
