"""Captures of other programs to the suite's scene format: undistorted images and ``opencv_cameras.json``."""

from tttlrm.scenes.convert.colmap import read_colmap
from tttlrm.scenes.convert.conversion import Conversion, convert
from tttlrm.scenes.convert.nerfstudio import read_dl3dv, read_nerfstudio

__all__ = ["Conversion", "convert", "read_colmap", "read_dl3dv", "read_nerfstudio"]
