"""View-dependent colour: real spherical harmonics up to degree 3, in the order and signs of 3D Gaussian Splatting."""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import Tensor

MAX_DEGREE = 3

BAND0 = sqrt(1 / (4 * pi))
"""The constant basis function: a colour c without direction has the coefficient (c - 0.5) / BAND0."""
_BAND1 = sqrt(3 / (4 * pi))
_BAND2 = (sqrt(15 / (4 * pi)), sqrt(5 / (16 * pi)), sqrt(15 / (16 * pi)))
_BAND3 = (sqrt(35 / (32 * pi)), sqrt(105 / (4 * pi)), sqrt(21 / (32 * pi)), sqrt(7 / (16 * pi)), sqrt(105 / (16 * pi)))


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """The basis functions in some unit directions.

    Args:
        directions: [..., 3], of length 1.
        degree: 0 to 3.

    Returns:
        [..., (degree + 1)^2].
    """
    x, y, z = directions.unbind(-1)
    terms = [torch.full_like(x, BAND0)]
    if degree >= 1:
        terms += [-_BAND1 * y, _BAND1 * z, -_BAND1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        mixed, polar, equatorial = _BAND2
        terms += [mixed * x * y, -mixed * y * z, polar * (2 * zz - xx - yy), -mixed * x * z, equatorial * (xx - yy)]
    if degree >= 3:
        m3, xyz, m1, m0, m2 = _BAND3
        terms += [
            -m3 * y * (3 * xx - yy),
            xyz * x * y * z,
            -m1 * y * (4 * zz - xx - yy),
            m0 * z * (2 * zz - 3 * xx - 3 * yy),
            -m1 * x * (4 * zz - xx - yy),
            m2 * z * (xx - yy),
            -m3 * x * (xx - 3 * yy),
        ]
    return torch.stack(terms, dim=-1)


def sh_colors(sh: Tensor, directions: Tensor) -> Tensor:
    """Colours seen along some directions: the series plus 0.5, not below 0 (and not limited above).

    Args:
        sh: [N, K, 3] coefficients, K = (degree + 1)^2.
        directions: [N, 3], from the camera's centre to the Gaussian, of length 1.

    Returns:
        [N, 3], RGB.
    """
    degree = round(sqrt(sh.shape[-2])) - 1
    basis = sh_basis(directions, degree)
    channels = [(basis * sh[..., channel]).sum(-1) for channel in range(3)]
    return (torch.stack(channels, dim=-1) + 0.5).clamp_min(0)
