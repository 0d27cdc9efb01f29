"""docker/sbom.py reads an archive that comes from an image: nothing of it is written elsewhere."""

from __future__ import annotations

import io
import runpy
import tarfile
from pathlib import Path

import pytest

SBOM = Path(__file__).resolve().parents[2] / "docker" / "sbom.py"


@pytest.mark.parametrize("name", ["../outside", "/outside", "one.dist-info/../../outside"])
def test_a_file_outside_of_the_packages_is_refused(name: str, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as writer:
        for path in ("one.dist-info/METADATA", name):
            member = tarfile.TarInfo(path)
            member.size = 1
            writer.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(ValueError, match="outside of the packages"):
        runpy.run_path(str(SBOM))["python_packages"](archive.getvalue(), tmp_path / "made")
    assert not list(tmp_path.rglob("outside")) and not Path("/outside").exists()
