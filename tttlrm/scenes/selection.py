"""Which views of a scene are inputs, and which are held out to test on (evaluation protocol of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tttlrm.errors import SceneError, UserError
from tttlrm.scenes.scene import Scene

TEST_EVERY = 8
K_MEANS = "k-means"
"""The source of input views that no list names."""


@dataclass(frozen=True)
class ViewSplit:
    """Positions in ``scene.frames`` of the input views and of the held-out test views.

    ``source`` says where the inputs come from: ``k-means``, ``scene file`` or what that says of its list, or whatever a
    caller's own rule is called.
    """

    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    source: str


def select_views(scene: Scene, num_views: int) -> ViewSplit:
    """The input and test views of a scene.

    Test views are ``scene.target_frames`` where the scene file states them, else every 8th frame (0, 8, ...). Input
    views are ``scene.input_frames[num_views]`` where stated, else chosen from the other frames by :func:`kmeans_views`.

    Raises:
        SceneError: fewer frames than views asked for, or a stated input view is also a test view.
    """
    if num_views < 1:
        raise UserError(f"the number of input views must be at least 1, not {num_views}")
    targets = test_views(scene)
    held_out = set(targets)
    if num_views in scene.input_frames:
        inputs = scene.input_frames[num_views]
        shared = [index for index in inputs if index in held_out]
        if shared:
            raise SceneError(
                f"{scene.file}: frame {shared[0]} of input_frames_{num_views} is held out as a test view "
                f"(every {TEST_EVERY}th frame is, unless target_frames says otherwise)"
            )
        return ViewSplit(inputs, targets, scene.input_frames_from or "scene file")
    candidates = np.array([i for i in range(len(scene.frames)) if i not in held_out], dtype=np.int64)
    if len(candidates) < num_views:
        raise SceneError(
            f"{scene.file}: {num_views} input views asked for, but only {len(candidates)} of its "
            f"{len(scene.frames)} frames are not held out as test views"
        )
    chosen = kmeans_views(scene.world_to_camera()[candidates], num_views)
    return ViewSplit(tuple(int(i) for i in candidates[chosen]), targets, K_MEANS)


def test_views(scene: Scene) -> tuple[int, ...]:
    """The held-out frames, which do not depend on the input views: those the scene file states, or every 8th."""
    return tuple(range(0, len(scene.frames), TEST_EVERY)) if scene.target_frames is None else scene.target_frames


def kmeans_views(world_to_camera: np.ndarray, num_views: int) -> np.ndarray:
    """Choose views that cover a scene: the frame nearest to each K-means centroid of position and direction.

    Features are the camera position, in the scene's own units, and the unit viewing direction. The published lists were
    made from poses inverted in float32; the same is done here, because a centroid of two frames is equally far
    from both, so that rounding alone decides which one is taken. Where a frame is nearest to several centroids, the
    closest centroid keeps it and each other one takes the nearest free frame of its own cluster (of all, if that has
    none left): the views are always distinct.

    Args:
        world_to_camera: [F, 4, 4], F >= num_views.

    Returns:
        [num_views] sorted positions, int64.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import pairwise_distances_argmin_min

    features = _features(world_to_camera)
    kmeans = KMeans(num_views, random_state=0, n_init="auto").fit(features)
    centroids = kmeans.cluster_centers_
    nearest, distances = pairwise_distances_argmin_min(centroids, features)
    if len(np.unique(nearest)) < num_views:
        nearest = distinct_frames(nearest, distances, kmeans.transform(features), kmeans.labels_)
    return np.sort(nearest)


def _features(world_to_camera: np.ndarray) -> np.ndarray:
    """[F, 6] float64: camera position and unit viewing direction."""
    camera_to_world = np.linalg.inv(world_to_camera.astype(np.float32)).astype(np.float64)
    directions = camera_to_world[:, :3, 2]
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return np.concatenate([camera_to_world[:, :3, 3], directions], axis=1)


def distinct_frames(
    nearest: np.ndarray, distances: np.ndarray, all_distances: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Resolve frames that are nearest to several centroids; every other centroid keeps its frame.

    Args:
        nearest, distances: [K], of each centroid: its nearest frame, and how far that is.
        all_distances: [F, K]. labels: [F], the cluster of each frame.
    """
    order = np.argsort(distances, kind="stable")
    result = np.full_like(nearest, -1)
    free = np.ones(len(labels), dtype=bool)
    for centroid in order:
        if free[nearest[centroid]]:
            result[centroid] = nearest[centroid]
            free[nearest[centroid]] = False
    for centroid in order[result[order] < 0]:
        preference = np.lexsort((all_distances[:, centroid], labels != centroid))
        result[centroid] = preference[free[preference]][0]
        free[result[centroid]] = False
    return result
