"""Which views are inputs and which are held out: published lists, and what happens at the edges."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tttlrm.errors import SceneError, UserError
from tttlrm.scenes import Frame, Scene, kmeans_views, read_scene, select_views
from tttlrm.scenes.selection import distinct_frames

GOLDEN = Path(__file__).parents[1] / "data" / "view_selection_mydesk.json"
MYDESK = Path(__file__).parents[3] / "shared" / "data" / "mydesk"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def scene_of(world_to_camera: Any, **selections: Any) -> Scene:
    """A scene in memory alone; selection reads no images."""
    frames = tuple(
        Frame(f"{i}.png", 8, 8, 9.0, 9.0, 4.0, 4.0, tuple(tuple(row) for row in pose))
        for i, pose in enumerate(np.asarray(world_to_camera, dtype=np.float64).tolist())
    )
    return Scene("made", Path("made"), frames, **selections)


def ring(count: int) -> np.ndarray:
    """[count, 4, 4] world-to-camera of cameras on a circle, looking at its centre."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(angles)
    poses[:, 0, 2] = np.sin(angles)
    poses[:, 2, 0] = -np.sin(angles)
    poses[:, 2, 3] = 3
    return poses


@pytest.mark.parametrize("num_views", [4, 8, 16, 32, 64])
def test_kmeans_reproduces_the_golden_lists(golden: dict[str, Any], num_views: int) -> None:
    split = select_views(scene_of(golden["w2c"]), num_views)
    assert list(split.inputs) == golden["sklearn_kmeans"][str(num_views)]
    assert split.targets == tuple(range(0, 498, 8))
    assert split.source == "k-means"


def test_kmeans_reproduces_the_published_list(golden: dict[str, Any]) -> None:
    split = select_views(scene_of(golden["w2c"]), 32)
    assert list(split.inputs) == golden["official_fold_8_kmeans_32_input"]


def test_scene_file_wins() -> None:
    scene = scene_of(ring(20), target_frames=(3, 1), input_frames={2: (9, 4)})
    split = select_views(scene, 2)
    assert (split.inputs, split.targets, split.source) == ((9, 4), (3, 1), "scene file")


def test_stated_targets_hold_for_chosen_inputs() -> None:
    split = select_views(scene_of(ring(20), target_frames=tuple(range(16))), 4)
    assert (split.inputs, split.targets, split.source) == ((16, 17, 18, 19), tuple(range(16)), "k-means")


def test_stated_empty_targets_hold_nothing_out() -> None:
    split = select_views(scene_of(ring(5), target_frames=()), 5)
    assert (split.inputs, split.targets) == ((0, 1, 2, 3, 4), ())


def test_stated_inputs_may_not_be_held_out() -> None:
    with pytest.raises(SceneError, match="frame 8 of input_frames_2 is held out"):
        select_views(scene_of(ring(20), input_frames={2: (8, 9)}), 2)


@settings(deadline=None, max_examples=25)
@given(num_frames=st.integers(2, 40), data=st.data())
def test_views_are_distinct_sorted_and_not_held_out(num_frames: int, data: st.DataObject) -> None:
    available = num_frames - len(range(0, num_frames, 8))
    num_views = data.draw(st.integers(1, available))
    split = select_views(scene_of(ring(num_frames)), num_views)
    assert len(split.inputs) == len(set(split.inputs)) == num_views
    assert list(split.inputs) == sorted(split.inputs)
    assert not set(split.inputs) & set(split.targets)
    assert select_views(scene_of(ring(num_frames)), num_views) == split


def test_fewer_frames_than_views() -> None:
    with pytest.raises(SceneError, match="opencv_cameras.json: 15 input views asked for, but only 14 of its 16 frames"):
        select_views(scene_of(ring(16)), 15)
    assert len(select_views(scene_of(ring(16)), 14).inputs) == 14


@pytest.mark.parametrize("num_views", [0, -1])
def test_number_of_views_must_be_positive(num_views: int) -> None:
    with pytest.raises(UserError, match="at least 1"):
        select_views(scene_of(ring(16)), num_views)


def test_coinciding_cameras_give_distinct_views() -> None:
    """Fewer different poses than views: every centroid still gets a frame of its own."""
    poses = ring(2).repeat(6, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn says that it found fewer clusters than asked for
        chosen = kmeans_views(poses, 5)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == 5
    assert {int(i) // 6 for i in chosen} == {0, 1}


def test_a_frame_nearest_to_several_centroids_is_taken_once() -> None:
    distances = np.array(  # of frames (rows) to centroids; frame 1 is nearest to centroids 0, 1 and 3
        [
            [0.9, 5.0, 5.0, 5.0],
            [0.5, 0.1, 5.0, 0.3],
            [0.6, 0.2, 5.0, 5.0],
            [5.0, 5.0, 0.4, 0.7],
            [0.8, 5.0, 5.0, 0.8],
        ]
    )
    labels = np.array([0, 1, 1, 2, 0])
    nearest = distances.argmin(0)
    assert nearest.tolist() == [1, 1, 3, 1]
    result = distinct_frames(nearest, distances.min(0), distances, labels)
    # Centroid 1 is closest and keeps frame 1, centroid 2 keeps frame 3; 3 has no frame of its own cluster, and comes
    # before 0, which passes over frame 2 of another cluster.
    assert result.tolist() == [0, 1, 3, 4]


def test_real_capture_takes_its_own_lists() -> None:
    if not MYDESK.is_dir():
        pytest.skip("the real capture is not on this machine")
    scene = read_scene(MYDESK)
    golden_lists = json.loads(GOLDEN.read_text())["sklearn_kmeans"]
    sources = [int(Path(frame.file_path).stem) for frame in scene.frames]
    for num_views in (4, 8, 16, 32, 64):
        split = select_views(scene, num_views)
        assert split.source == "scene file"
        assert [sources[i] for i in split.inputs] == golden_lists[str(num_views)]
        assert [sources[i] for i in split.targets] == list(range(0, 498, 8))
