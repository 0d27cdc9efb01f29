"""Scenes on disk: their format, images, and the choice of input and test views."""

from tttlrm.scenes.images import evaluation_size
from tttlrm.scenes.scene import SCENE_FILE, Frame, Scene, read_scene
from tttlrm.scenes.selection import ViewSplit, kmeans_views, select_views
from tttlrm.scenes.views import SplitViews, load_split, load_views

__all__ = [
    "SCENE_FILE",
    "Frame",
    "Scene",
    "SplitViews",
    "ViewSplit",
    "evaluation_size",
    "kmeans_views",
    "load_split",
    "load_views",
    "read_scene",
    "select_views",
]
