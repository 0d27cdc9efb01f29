"""The documents: links lead somewhere, and the make targets that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *(ROOT / name / "README.md" for name in ("docker", "results", "slurm")),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_that_are_named_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = document.read_text()
    code = re.findall(r"`make ([^`]+)`", text) + re.findall(r"^make ([^#\n]+)", text, flags=re.MULTILINE)
    named = {
        word for words in code for word in words.split(" ARGS=")[0].split() if re.fullmatch(r"[a-z][a-z0-9-]*", word)
    }
    assert named - {"TARGET"} <= targets
