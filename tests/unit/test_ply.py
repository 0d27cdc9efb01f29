"""Gaussians to PLY and back, the layout that viewers expect, and files that are not of it."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tttlrm.errors import UserError
from tttlrm.gaussians import Gaussians
from tttlrm.ply import read_comments, read_gaussians, write_gaussians


def random_gaussians(count: int, degree: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(count, 3), (count, (degree + 1) ** 2, 3), (count, 3), (count, 4), (count,)]
    return Gaussians(*(torch.randn(shape, generator=generator).to(dtype) for shape in shapes))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 50), degree=st.integers(0, 3), seed=st.integers(0, 1000))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, count: int, degree: int, seed: int) -> None:
    path = tmp_path_factory.mktemp("ply") / "gaussians.ply"
    gaussians = random_gaussians(count, degree, seed)
    write_gaussians(gaussians, path)
    again = read_gaussians(path)
    for before, after in zip(gaussians.tensors, again.tensors, strict=True):
        assert torch.equal(before, after)


def test_methods_of_gaussians_use_it(tmp_path: Path) -> None:
    gaussians = random_gaussians(5, 1, dtype=torch.float64)
    gaussians.save_ply(tmp_path / "a.ply", "from a test")
    assert torch.equal(Gaussians.load_ply(tmp_path / "a.ply").sh, gaussians.sh.float())


def test_layout_of_viewers(tmp_path: Path) -> None:
    """Read back byte by byte, without the reader: names, order, and the channel-major order of the SH."""
    path = tmp_path / "gaussians.ply"
    gaussians = random_gaussians(2, 3)
    write_gaussians(gaussians, path, "first line\nsecond line: \u00e9")
    header, body = path.read_bytes().split(b"end_header\n")
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert lines[2:4] == ["comment first line", "comment second line: \\xe9"]
    assert lines[4] == "element vertex 2"
    names = [line.removeprefix("property float ") for line in lines[5:]]
    rest = [f"f_rest_{i}" for i in range(45)]
    assert names == (
        ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"]
        + ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    )
    values = dict(zip(names, np.frombuffer(body, "<f4").reshape(2, -1)[1].tolist(), strict=True))
    assert values["f_dc_2"] == float(gaussians.sh[1, 0, 2])
    assert values["f_rest_0"] == float(gaussians.sh[1, 1, 0])
    assert values["f_rest_14"] == float(gaussians.sh[1, 15, 0])
    assert values["f_rest_15"] == float(gaussians.sh[1, 1, 1])
    assert values["rot_0"] == float(gaussians.quaternions[1, 0])
    assert values["nx"] == 0
    assert read_comments(path) == ["first line", "second line: \\xe9"]


def test_replaces_and_leaves_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gaussians.ply"
    write_gaussians(random_gaussians(3, 0), path)
    before = path.read_bytes()
    import plyfile

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(plyfile.PlyData, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        write_gaussians(random_gaussians(4, 0), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["gaussians.ply"]


def test_batch_is_refused(tmp_path: Path) -> None:
    one = random_gaussians(3, 0)
    batch = Gaussians(*(t[None] for t in one.tensors))
    with pytest.raises(UserError, match="single scene"):
        write_gaussians(batch, tmp_path / "a.ply")


def written(tmp_path: Path) -> tuple[Path, bytes]:
    path = tmp_path / "gaussians.ply"
    write_gaussians(random_gaussians(4, 1), path)
    return path, path.read_bytes()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.ply: cannot be read: No such file"):
        read_gaussians(tmp_path / "gone.ply")


@pytest.mark.parametrize("content", [b"", b"ply\n", b"not a ply file at all", b"\xff\xfe\x00\x01"])
def test_not_a_ply_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.ply"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.ply: not a valid PLY file"):
        read_gaussians(path)


def test_truncated(tmp_path: Path) -> None:
    path, data = written(tmp_path)
    path.write_bytes(data[:-5])
    with pytest.raises(UserError, match="not a valid PLY file"):
        read_gaussians(path)
    huge = data.replace(b"element vertex 4\n", b"element vertex 4000000000000\n")
    path.write_bytes(huge)
    with pytest.raises(UserError, match="not a valid PLY file"):
        read_gaussians(path)


def test_missing_properties_and_elements(tmp_path: Path) -> None:
    path, data = written(tmp_path)
    path.write_bytes(data.replace(b"property float opacity\n", b"property float opaque\n"))
    with pytest.raises(UserError, match="property opacity is missing"):
        read_gaussians(path)
    path.write_bytes(data.replace(b"property float f_rest_8\n", b"property float g_rest_8\n"))
    with pytest.raises(UserError, match="8 properties f_rest"):
        read_gaussians(path)
    path.write_bytes(data.replace(b"element vertex 4\n", b"element faces 4\n"))
    with pytest.raises(UserError, match="no vertex element"):
        read_gaussians(path)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    gaussians = random_gaussians(4, 1)
    gaussians.log_scales[2, 1] = 1234.5
    write_gaussians(gaussians, tmp_path / "a.ply")
    data = (tmp_path / "a.ply").read_bytes()
    assert data.count(struct.pack("<f", 1234.5)) == 1
    (tmp_path / "a.ply").write_bytes(data.replace(struct.pack("<f", 1234.5), struct.pack("<f", math.nan)))
    with pytest.raises(UserError, match="property scale_1 of vertex 2 is not finite"):
        read_gaussians(tmp_path / "a.ply")
