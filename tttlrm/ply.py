"""Gaussians as a PLY file in the layout of 3D Gaussian Splatting (Kerbl et al., 2023), which viewers read.

One ``vertex`` element of 32-bit floats: x y z, nx ny nz (zero), f_dc_0..2 (the constant SH coefficient of r, g, b),
f_rest_* (the other coefficients, all of r, then all of g, then all of b), opacity (logit), scale_0..2 (logarithms),
rot_0..3 (quaternion w, x, y, z).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tttlrm.errors import UserError
from tttlrm.files import atomic_path

if TYPE_CHECKING:
    from tttlrm.gaussians import Gaussians


def write_gaussians(gaussians: Gaussians, path: Path, comment: str = "") -> None:
    """Write Gaussians of a single scene as binary little-endian PLY, atomically.

    Args:
        comment: lines for the header; characters outside ASCII are written as escapes, which is all that PLY allows.
    """
    from plyfile import PlyData, PlyElement

    if gaussians.positions.ndim != 2:
        raise UserError(f"{path.name}: only Gaussians of a single scene can be saved, not a batch")
    bad = gaussians.count_not_finite()
    if bad:
        raise UserError(f"{path.name}: {bad} of the {len(gaussians)} Gaussians have values that are not finite")
    values = _to_columns(gaussians)
    names = _property_names(gaussians.sh.shape[-2])
    vertices = values.numpy().view([(name, "<f4") for name in names])[:, 0]
    element = PlyElement.describe(vertices, "vertex")
    comments = [line.encode("ascii", "backslashreplace").decode() for line in comment.splitlines()]
    with atomic_path(path) as temporary:
        PlyData([element], text=False, byte_order="<", comments=comments).write(temporary)


def read_gaussians(path: Path) -> Gaussians:
    """Read Gaussians, as float32 on the CPU, from a PLY file of this layout (binary or text, any SH degree up to 3)."""
    from tttlrm.gaussians import Gaussians

    vertices = _vertices(_read(path), path)
    names = set(vertices.dtype.names or ())
    num_rest = sum(name.startswith("f_rest_") for name in names)
    if num_rest not in (0, 9, 24, 45):
        raise UserError(f"{path}: {num_rest} properties f_rest_* are not of a spherical-harmonics degree up to 3")
    expected = _property_names(num_rest // 3 + 1)
    missing = [name for name in expected if name not in names and name not in ("nx", "ny", "nz")]
    if missing:
        raise UserError(f"{path}: not a file of Gaussians, property {missing[0]} is missing")

    def columns(*wanted: str) -> Tensor:
        return torch.from_numpy(np.stack([_column(vertices, name, path) for name in wanted], axis=-1))

    rest = columns(*(f"f_rest_{i}" for i in range(num_rest))) if num_rest else torch.zeros(len(vertices), 0)
    return Gaussians(
        positions=columns("x", "y", "z"),
        sh=torch.cat([columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None], rest.unflatten(1, (3, -1)).mT], dim=1),
        log_scales=columns("scale_0", "scale_1", "scale_2"),
        quaternions=columns("rot_0", "rot_1", "rot_2", "rot_3"),
        opacity_logits=columns("opacity")[:, 0],
    )


def read_comments(path: Path) -> list[str]:
    """The comment lines of a PLY file's header."""
    return list(_read(path).comments)


def _property_names(num_coefficients: int) -> list[str]:
    rest = [f"f_rest_{i}" for i in range(3 * (num_coefficients - 1))]
    scale = [f"scale_{i}" for i in range(3)]
    rotation = [f"rot_{i}" for i in range(4)]
    return ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity", *scale, *rotation]


def _to_columns(gaussians: Gaussians) -> Tensor:
    """[N, number of properties], float32, contiguous, on the CPU."""
    g = gaussians.to("cpu", torch.float32)
    parts = [
        g.positions,
        torch.zeros_like(g.positions),
        g.sh[:, 0],
        g.sh[:, 1:].mT.flatten(1),
        g.opacity_logits[:, None],
        g.log_scales,
        g.quaternions,
    ]
    return torch.cat([part.detach() for part in parts], dim=1)


def _read(path: Path) -> Any:
    from plyfile import PlyData, PlyParseError

    try:
        return PlyData.read(path, mmap=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (PlyParseError, ValueError, MemoryError) as error:
        raise UserError(f"{path}: not a valid PLY file: {error}") from error


def _vertices(ply: Any, path: Path) -> Any:
    for element in ply.elements:
        if element.name == "vertex":
            return element.data
    raise UserError(f"{path}: not a file of Gaussians, it has no vertex element")


def _column(vertices: Any, name: str, path: Path) -> Any:
    column = vertices[name]
    if column.dtype.kind not in "fiu":
        raise UserError(f"{path}: property {name} is not a number")
    column = column.astype(np.float32)
    if not np.isfinite(column).all():
        raise UserError(f"{path}: property {name} of vertex {int(np.argmin(np.isfinite(column)))} is not finite")
    return column
