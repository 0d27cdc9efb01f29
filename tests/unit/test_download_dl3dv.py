"""The DL3DV benchmark from a local server that behaves like the hub, which has other scenes and other files too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hub_server import COMMIT, TOKEN, Hub, serve
from tttlrm.cli import main
from tttlrm.downloads import dl3dv
from tttlrm.downloads import hub as hub_client
from tttlrm.downloads.dl3dv import Done, Options, convert_brought, download_dl3dv
from tttlrm.downloads.dl3dv_listing import Choice, parse_choice
from tttlrm.downloads.input_views import InputViews
from tttlrm.downloads.records import RECORD
from tttlrm.errors import DownloadError, SceneError, UserError
from tttlrm.scenes import read_scene, select_views

CAPTURE = Path(__file__).parents[1] / "data" / "convert" / "dl3dv" / "input" / "nerfstudio"
NAMES = tuple(digit * 64 for digit in "abc")
OTHER = "d" * 64
"""Is in the repository and not of the benchmark."""
FILES = 4
DIGESTS = {"png": "sha256", "son": "git blob"}


def capture(name: str) -> dict[str, bytes]:
    """The files of a scene as the repository has them: more than are wanted."""
    files = {f"{name}/nerfstudio/{path.relative_to(CAPTURE)}": path.read_bytes() for path in CAPTURE.rglob("*.*")}
    others = (
        "nerfstudio/images/frame_00001.png",
        "nerfstudio/images_8/frame_00001.png",
        "gaussian_splat/images_4/a.png",
    )
    return {**files, **{f"{name}/{other}": b"large" for other in others}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    table = "hash,scene\n" + "".join(f"{name},x\n" for name in reversed(NAMES))
    files = {"benchmark-meta.csv": table.encode(), ".cache/filelist.bin": b"a pickle"}
    for name in (*NAMES, OTHER):
        files |= capture(name)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve(Hub(dl3dv.REPOSITORY, files, kind="dataset", page=2)) as hub:
        yield hub


@pytest.fixture
def options(server: Hub) -> Options:
    return Options(endpoint=server.endpoint, jobs=1, connections=3)


def names(folder: Path) -> list[str]:
    """Of the scenes in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and len(path.name) == 64)


def test_the_benchmarks_scenes_are_fetched_and_checked(server: Hub, options: Options, tmp_path: Path) -> None:
    assert download_dl3dv(Choice(), tmp_path, options) == Done(NAMES, 3 * FILES, 0)
    assert names(tmp_path) == list(NAMES)
    for name in NAMES:
        found = {path.relative_to(tmp_path / name / "nerfstudio") for path in (tmp_path / name).rglob("*.*")}
        assert found == {path.relative_to(CAPTURE) for path in CAPTURE.rglob("*.*")}
        assert all(
            (tmp_path / name / "nerfstudio" / path).read_bytes() == (CAPTURE / path).read_bytes() for path in found
        )
    record = json.loads((tmp_path / RECORD).read_text())[dl3dv.REPOSITORY]
    assert (record["commit"], record["benchmark"]) == (COMMIT, list(NAMES))
    assert record["scenes"][NAMES[0]]["files"] == FILES
    assert not any("filelist" in name for name in server.fetched())  # the pickle is not even fetched

    asked = len(server.requests)
    assert download_dl3dv(Choice(), tmp_path, options) == Done(NAMES, 0, 0)
    assert len(server.requests) == asked  # nothing is asked for again


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["2"], NAMES[:2]), ([NAMES[2], NAMES[0], NAMES[2]], (NAMES[2], NAMES[0])), ([OTHER], (OTHER,))],
)
def test_scenes_are_chosen(
    server: Hub, options: Options, tmp_path: Path, words: list[str], expected: tuple[str, ...]
) -> None:
    assert download_dl3dv(parse_choice(words), tmp_path, options).scenes == expected
    assert names(tmp_path) == sorted(expected)


def test_choices_that_cannot_be(server: Hub, options: Options, tmp_path: Path) -> None:
    for words in (["0"], ["some"], ["all", "2"], [], ["A" * 64]):
        with pytest.raises(UserError, match="--scenes must be all, a number of scenes, or names of 64"):
            parse_choice(words)
    with pytest.raises(UserError, match="--scenes: 4 scenes asked for, and there are 3"):
        download_dl3dv(Choice(count=4), tmp_path, options)
    with pytest.raises(DownloadError, match="eeee/nerfstudio of DL3DV/DL3DV-Benchmark .* there is no such file on the"):
        download_dl3dv(Choice(names=("e" * 64,)), tmp_path, options)
    assert names(tmp_path) == []


def test_a_scene_becomes_the_suites_and_what_it_was_made_of_goes(server: Hub, options: Options, tmp_path: Path) -> None:
    views = InputViews("the list", {NAMES[0]: {2: (1, 2)}, NAMES[1]: {1: (2,)}})
    how = replace(options, convert=True, views=views)
    assert download_dl3dv(Choice(), tmp_path, how) == Done(NAMES, 3 * FILES, 2)
    expected = CAPTURE.parents[1] / "expected" / "images_undistort"
    for name in NAMES:
        scene = read_scene(tmp_path / name)
        assert scene.name == name and len(scene.frames) == 3
        assert len(list(expected.iterdir())) == len(list((tmp_path / name / "images_undistort").iterdir()))
    assert select_views(read_scene(tmp_path / NAMES[0]), 2).source == "the list"
    assert select_views(read_scene(tmp_path / NAMES[2]), 2).source == "k-means"
    assert not list((tmp_path / ".download").rglob("*.png"))

    asked, written = len(server.requests), (tmp_path / NAMES[0] / "opencv_cameras.json").stat().st_mtime_ns
    assert download_dl3dv(Choice(), tmp_path, how) == Done(NAMES, 0, 2)
    assert len(server.requests) == asked
    assert (tmp_path / NAMES[0] / "opencv_cameras.json").stat().st_mtime_ns == written
    assert download_dl3dv(Choice(), tmp_path, replace(how, offline=True)).fetched == 0


def test_kept_captures_and_a_copy_that_was_brought_along(server: Hub, options: Options, tmp_path: Path) -> None:
    download_dl3dv(Choice(count=1), tmp_path / "scenes", replace(options, convert=True, keep=True))
    copy = tmp_path / "scenes" / ".download"
    assert (copy / NAMES[0] / "nerfstudio" / "transforms.json").is_file()
    asked = len(server.requests)
    done = convert_brought(Choice(), copy, tmp_path / "others", options)
    assert done.scenes == NAMES[:1] and len(read_scene(tmp_path / "others" / NAMES[0]).frames) == 3
    assert (copy / NAMES[0] / "nerfstudio" / "transforms.json").is_file() and len(server.requests) == asked
    for folder in (tmp_path / "gone", CAPTURE):
        with pytest.raises(DownloadError, match="has no folders of scenes of DL3DV"):
            convert_brought(Choice(), folder, tmp_path / "more", options)


def test_a_bad_scene_does_not_hold_up_the_others(server: Hub, options: Options, tmp_path: Path) -> None:
    server.files[f"{NAMES[0]}/nerfstudio/images_4/frame_00002.png"] = b"not an image"
    how = replace(options, convert=True)
    with pytest.raises(SceneError, match="frame_00002.png.* not a readable .*; all other scenes are there") as caught:
        download_dl3dv(Choice(), tmp_path, how)
    assert NAMES[0] in str(caught.value)
    assert not (tmp_path / NAMES[0] / "opencv_cameras.json").exists()
    assert all(len(read_scene(tmp_path / name).frames) == 3 for name in NAMES[1:])
    server.files[f"{NAMES[0]}/nerfstudio/images_4/frame_00002.png"] = b"no longer asked for"
    fetched = len(server.fetched())
    with pytest.raises(SceneError):
        download_dl3dv(Choice(), tmp_path, how)
    assert len(server.fetched()) == fetched  # what it is made of is still there


@pytest.mark.parametrize("suffix", ["images_4/frame_00002.png", "transforms.json"])
def test_wrong_content_ends_it_and_the_good_files_stay(
    server: Hub, options: Options, tmp_path: Path, suffix: str
) -> None:
    wrong = f"{NAMES[1]}/nerfstudio/{suffix}"
    server.damaged = frozenset({wrong})
    with pytest.raises(DownloadError, match=f"not what was announced .{DIGESTS[suffix[-3:]]} .*, and was removed") as e:
        download_dl3dv(Choice(), tmp_path, options)
    assert wrong in str(e.value) and not (tmp_path / wrong).exists()
    assert (tmp_path / NAMES[0] / "nerfstudio" / suffix).is_file()
    server.damaged = frozenset()
    first = [name for name in server.fetched() if name.startswith(NAMES[0])]
    assert download_dl3dv(Choice(), tmp_path, options).scenes == NAMES
    assert [name for name in server.fetched() if name.startswith(NAMES[0])] == first


def test_a_cut_connection_and_a_busy_hub(
    server: Hub, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tttlrm.downloads.transfer.RETRY_AFTER_S", (0.01, 0.01))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**10)
    server.cut_after, server.busy = 1500, 2
    assert download_dl3dv(Choice(names=NAMES[:1]), tmp_path, options).fetched == FILES
    assert any(span and span != "bytes=0-" for _, _, span in server.requests)


def test_what_changed_on_disk_is_found(server: Hub, options: Options, tmp_path: Path) -> None:
    download_dl3dv(Choice(count=1), tmp_path, options)
    image = tmp_path / NAMES[0] / "nerfstudio" / "images_4" / "frame_00001.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:-1])  # another size: always
    assert download_dl3dv(Choice(count=1), tmp_path, options).fetched == 1 and image.read_bytes() == whole
    image.write_bytes(whole[:-1] + b"?")  # the same size: with --verify
    assert download_dl3dv(Choice(count=1), tmp_path, options).fetched == 0
    assert download_dl3dv(Choice(count=1), tmp_path, replace(options, verify=True)).fetched == 1
    assert image.read_bytes() == whole


def test_gated_access(server: Hub, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.gated = True
    for choice in (Choice(), Choice(names=NAMES[:1])):
        with pytest.raises(DownloadError) as caught:
            download_dl3dv(choice, tmp_path, options)
        assert "accept the repository's terms on its page (https://huggingface.co/datasets/DL3DV" in str(caught.value)
        assert "log in with `hf auth login`, and try again" in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert download_dl3dv(Choice(count=1), tmp_path, options).fetched == FILES
    to_storage = [sent for path, sent in server.tokens if path.startswith("/storage/")]
    assert to_storage and not any(to_storage)  # the token is for the hub alone


def test_scenes_of_two_commits_are_never_mixed(server: Hub, options: Options, tmp_path: Path) -> None:
    download_dl3dv(Choice(count=1), tmp_path, options)
    server.commit = "f" * 40
    with pytest.raises(DownloadError, match=f"holds scenes of commit {COMMIT} .* main is {'f' * 40}; give another"):
        download_dl3dv(Choice(count=1), tmp_path, replace(options, revision="main"))
    assert download_dl3dv(Choice(count=1), tmp_path / "new", replace(options, revision="main")).fetched == FILES
    with pytest.raises(DownloadError, match=r"Benchmark \(v9\): the repository has no such revision"):
        download_dl3dv(Choice(count=1), tmp_path / "newer", replace(options, revision="v9"))


def test_offline(server: Hub, options: Options, tmp_path: Path) -> None:
    offline = replace(options, offline=True)
    with pytest.raises(DownloadError, match="knows of no scenes, and --offline fetches nothing"):
        download_dl3dv(Choice(), tmp_path, offline)
    download_dl3dv(Choice(count=2), tmp_path, options)
    asked = len(server.requests)
    assert download_dl3dv(Choice(count=2), tmp_path, offline) == Done(NAMES[:2], 0, 0)
    for choice in (Choice(), Choice(names=(NAMES[2],))):
        with pytest.raises(DownloadError, match=f"the scene {NAMES[2]} is not there, or not all of it, and --offline"):
            download_dl3dv(choice, tmp_path, offline)
    (tmp_path / NAMES[0] / "nerfstudio" / "images_4" / "frame_00001.png").unlink()
    with pytest.raises(DownloadError, match=f"the scene {NAMES[0]} is not there, or not all of it"):
        download_dl3dv(Choice(count=1), tmp_path, offline)
    assert len(server.requests) == asked


def test_the_disk_is_looked_at_first(
    server: Hub, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(hub_client.shutil, "disk_usage", lambda path: usage._replace(free=2**26 + 10))
    with pytest.raises(DownloadError, match="GiB are needed, and 0.06 GiB are free"):
        download_dl3dv(Choice(count=1), tmp_path, options)
    assert not server.content_requests()


def test_unexpected_layouts_are_named(server: Hub, options: Options, tmp_path: Path) -> None:
    inner = f"{NAMES[0]}/nerfstudio"
    whole = dict(server.files)
    for gone in (f"{inner}/transforms.json", f"{inner}/images_4/"):
        server.files = {name: data for name, data in whole.items() if not name.startswith(gone)}
        with pytest.raises(DownloadError, match="has no transforms.json|images_4 of .* there is no such file"):
            download_dl3dv(Choice(names=NAMES[:1]), tmp_path, options)
    server.files = {**whole, f"{inner}/images_4/-rf ~": b""}
    with pytest.raises(DownloadError, match="the listing has an unexpected file"):
        download_dl3dv(Choice(names=NAMES[:1]), tmp_path, options)
    for table, message in ((b"name\n1\n", "not ''"), (b"hash\n../x\n", "not '../x'"), (b"hash\n", "not 'nothing'")):
        server.files = {**whole, "benchmark-meta.csv": table}
        with pytest.raises(DownloadError, match=f"benchmark-meta.csv: its column hash must have .* {message}"):
            download_dl3dv(Choice(), tmp_path, options)
    server.files.pop("benchmark-meta.csv")
    with pytest.raises(DownloadError, match="has no benchmark-meta.csv, the table of its scenes; name scenes"):
        download_dl3dv(Choice(), tmp_path, options)


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"Benchmark \(main\): cannot be fetched .* name it with --from"):
        download_dl3dv(Choice(), tmp_path, Options(endpoint="http://127.0.0.1:9"))


def test_the_command(server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["download", "dl3dv", "-o", str(tmp_path / "scenes"), "--scenes"]
    for words, message in (
        (["some"], "--scenes must be all"),
        (["1", "--connections", "0"], "--connections must be at least 1"),
        (["1", "--input-views", "kmeans"], "--input-views is about scenes, which --convert makes"),
        (["1", "--convert", "--input-views", "gone.json"], "there is no file gone.json"),
        (["1", "--convert", "--offline"], "the published lists of input views are not there, and --offline"),
        (["1", "--offline"], "knows of no scenes"),
    ):
        assert main([*start, *words]) == 2
        assert message in capsys.readouterr().err
    copy = tmp_path / "copy" / NAMES[0] / "nerfstudio"
    shutil.copytree(CAPTURE, copy)
    assert main([*start, "all", "--from", str(tmp_path / "copy"), "--input-views", "kmeans", "--jobs", "1"]) == 0
    said = capsys.readouterr()
    assert (
        "1 scenes of DL3DV, 0 files fetched" in said.out and "0 of 1 scene files list them; those of 1 are" in said.out
    )
    assert "DL3DV comes under its own terms (non-commercial" in said.err
