"""Procedural scenes with exact renderings: textured objects, and rooms to walk through. Nothing is downloaded."""

from tttlrm.scenes.procedural.cameras import sample_cameras
from tttlrm.scenes.procedural.export import write_scene
from tttlrm.scenes.procedural.parameters import SceneParameters
from tttlrm.scenes.procedural.scenes import ProceduralBatch, ProceduralSpec, make_batch, scene_parameters
from tttlrm.scenes.procedural.tracing import ProceduralRendering, render_scenes

__all__ = [
    "ProceduralBatch",
    "ProceduralRendering",
    "ProceduralSpec",
    "SceneParameters",
    "make_batch",
    "render_scenes",
    "sample_cameras",
    "scene_parameters",
    "write_scene",
]
