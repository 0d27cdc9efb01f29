"""Published lists of input views: the real file of Tanks and Temples, and what becomes of lists in scene files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.hub_server import Hub, serve
from tttlrm.downloads import input_views
from tttlrm.downloads.input_views import TANKS_AND_TEMPLES, InputViews, published_views, read_views, state_views
from tttlrm.errors import DownloadError, SceneError
from tttlrm.scenes import read_scene, select_views

# What the Long-LRM release (Apache-2.0) publishes for Tanks and Temples.
TRAIN_16 = (4, 19, 31, 41, 57, 113, 124, 133, 141, 187, 198, 207, 219, 249, 270, 275)
TRAIN_32 = (
    *(14, 19, 28, 37, 44, 62, 67, 99, 108, 117, 126, 133, 138, 143, 149, 155),
    *(161, 165, 183, 190, 195, 207, 228, 234, 239, 245, 253, 262, 275, 282, 286, 294),
)
TRUCK_16 = (6, 30, 36, 41, 59, 77, 90, 94, 100, 108, 116, 123, 143, 161, 207, 221)
TRUCK_32 = (
    *(6, 13, 27, 30, 39, 42, 50, 58, 70, 73, 75, 77, 103, 109, 114, 117),
    *(126, 134, 142, 151, 161, 166, 169, 172, 180, 186, 189, 193, 209, 213, 221, 230),
)
PUBLISHED = json.dumps(
    [
        {"scene_name": name, "fold_8_kmeans_16_input": sixteen, "fold_8_kmeans_32_input": thirty_two}
        for name, sixteen, thirty_two in (("train", TRAIN_16, TRAIN_32), ("truck", TRUCK_16, TRUCK_32))
    ],
    indent=4,
).encode()


@pytest.fixture
def server() -> Iterator[Hub]:
    with serve(Hub("no/repository", {}, plain={TANKS_AND_TEMPLES.name: PUBLISHED})) as hub:
        yield hub


def scene(folder: Path, frames: int = 40) -> Path:
    """A scene whose cameras stand on a line."""
    folder.mkdir(parents=True)
    entries = []
    for at in range(frames):
        Image.fromarray(np.full((2, 2, 3), at, dtype=np.uint8)).save(folder / f"{at}.png")
        pose = [[1, 0, 0, at], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
        entries.append({"w": 2, "h": 2, "fx": 2, "fy": 2, "cx": 1, "cy": 1, "w2c": pose, "file_path": f"{at}.png"})
    (folder / "opencv_cameras.json").write_text(json.dumps({"scene_name": folder.name, "frames": entries}))
    return folder


def test_the_published_file_is_fetched_once_and_read(server: Hub, tmp_path: Path) -> None:
    assert len(PUBLISHED) == TANKS_AND_TEMPLES.size
    assert hashlib.sha256(PUBLISHED).hexdigest() == TANKS_AND_TEMPLES.sha256
    base = f"{server.endpoint}/plain"
    views = published_views(TANKS_AND_TEMPLES, tmp_path, base_url=base)
    assert views.lists == {"train": {16: TRAIN_16, 32: TRAIN_32}, "truck": {16: TRUCK_16, 32: TRUCK_32}}
    assert views.source == "list published with Long-LRM (commit d92dd5166991)"
    assert published_views(TANKS_AND_TEMPLES, tmp_path, base_url=base, offline=True) == views
    assert [method for method, _, _ in server.requests] == ["HEAD", "GET"]


def test_it_must_be_what_it_was(server: Hub, tmp_path: Path) -> None:
    server.damaged = frozenset({TANKS_AND_TEMPLES.name})
    for base in (f"{server.endpoint}/plain", f"{server.endpoint}/elsewhere"):
        with pytest.raises(DownloadError, match="not what was announced|no such file") as caught:
            published_views(TANKS_AND_TEMPLES, tmp_path, base_url=base)
        assert "--input-views FILE takes them from a file, and --input-views kmeans goes" in str(caught.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DownloadError, match="are not there, and --offline fetches nothing"):
        published_views(TANKS_AND_TEMPLES, tmp_path, offline=True)


def test_lists_go_into_scene_files_and_out_again(tmp_path: Path) -> None:
    folder = scene(tmp_path / "train")
    before = (folder / "opencv_cameras.json").read_text()
    by_kmeans = select_views(read_scene(folder), 2)
    assert state_views(folder, InputViews("somebody", {"train": {2: (1, 30), 3: (1, 2, 3)}, "truck": {2: (4, 5)}}))
    split = select_views(read_scene(folder), 2)
    assert (split.inputs, split.source) == ((1, 30), "somebody")
    assert select_views(read_scene(folder), 4).source == "k-means"  # there is no list of four
    changed = (folder / "opencv_cameras.json").stat().st_mtime_ns
    assert state_views(folder, InputViews("somebody", {"train": {2: (1, 30), 3: (1, 2, 3)}}))
    assert (folder / "opencv_cameras.json").stat().st_mtime_ns == changed
    assert not state_views(folder, InputViews("somebody", {"truck": {2: (4, 5)}}))
    assert select_views(read_scene(folder), 2) == by_kmeans
    assert json.loads((folder / "opencv_cameras.json").read_text()) == json.loads(before)
    assert not state_views(folder, None)


@pytest.mark.parametrize(
    ("positions", "message"), [((1, 40), "frame 40 does not exist"), ((8, 9), "held out as a test")]
)
def test_lists_of_another_scene_are_refused(tmp_path: Path, positions: tuple[int, ...], message: str) -> None:
    folder = scene(tmp_path / "train")
    before = (folder / "opencv_cameras.json").read_text()
    with pytest.raises(SceneError, match=f"train: somebody does not fit the scene .*{message}"):
        state_views(folder, InputViews("somebody", {"train": {2: positions}}))
    assert (folder / "opencv_cameras.json").read_text() == before
    assert not list(folder.glob(".opencv*"))


BAD: dict[str, tuple[Any, str]] = {
    "empty": ([], "must hold a list of scenes"),
    "object": ({"train": {}}, "must hold a list of scenes"),
    "nameless": ([{"fold_8_kmeans_1_input": [1]}], "entry 0: scene_name must be a name"),
    "twice": ([{"scene_name": "a", "fold_8_kmeans_1_input": [1]}] * 2, "entry 1: scene_name must be"),
    "none": ([{"scene_name": "a"}], "a: has no fold_8_kmeans_N_input"),
    "text": ([{"scene_name": "a", "fold_8_kmeans_1_input": ["1"]}], "must be a list of positions"),
    "bool": ([{"scene_name": "a", "fold_8_kmeans_1_input": [True]}], "must be a list of positions"),
    "count": ([{"scene_name": "a", "fold_8_kmeans_2_input": [1]}], "must list 2 different frames"),
    "again": ([{"scene_name": "a", "fold_8_kmeans_2_input": [1, 1]}], "must list 2 different frames"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    (tmp_path / "mine.json").write_text(json.dumps(content))
    with pytest.raises(DownloadError, match=f"mine.json: .*{message}"):
        read_views(tmp_path / "mine.json")
    (tmp_path / "mine.json").write_text("[")
    with pytest.raises(DownloadError, match="mine.json: is not a readable file of input views"):
        read_views(tmp_path / "mine.json")


def test_a_file_of_the_users_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps([{"scene_name": "a", "fold_8_kmeans_1_input": [1]}]))
    assert read_views(tmp_path / "mine.json").source.startswith("list of the user's (sha256 ")
    (tmp_path / "same.json").write_bytes(PUBLISHED)
    assert "published with Long-LRM" in read_views(tmp_path / "same.json").source
    assert input_views.BASE_URL.endswith("/d92dd516699135be1e78c50305080d83aca0906c/data")
