"""``tttlrm doctor``: what it says of this machine, and of broken ones."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tttlrm import bundled
from tttlrm.cli import main
from tttlrm.doctor import PACKAGES, can_run, examine, report


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


def test_a_damaged_model_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(bundled, "_FOLDER", tmp_path)
    findings = examine()
    assert not can_run(findings) and "install tttlrm again" in report(findings)


def test_every_dependency_is_known() -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    names = {p.distribution.lower().replace("_", "-") for p in PACKAGES}
    for requirement in project["dependencies"]:
        name = requirement.split(">")[0].split("=")[0].lower()
        assert name in names | {"torch", "scipy", "omegaconf", "jinja2", "pyyaml"}, name
