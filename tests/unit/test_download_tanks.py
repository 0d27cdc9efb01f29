"""Tanks and Temples from a local server, and archives that a download must not trust."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hub_server import Hub, serve
from tttlrm.cli import main
from tttlrm.downloads import archives, tanks_and_temples
from tttlrm.downloads.archives import unpack
from tttlrm.downloads.input_views import InputViews
from tttlrm.downloads.records import RECORD
from tttlrm.downloads.tanks_and_temples import ARCHIVE, Options, download_tanks_and_temples
from tttlrm.errors import DownloadError
from tttlrm.progress import Silent
from tttlrm.scenes import read_scene, select_views

PROJECT = Path(__file__).parents[1] / "data" / "convert" / "colmap" / "input"
SCENES = ("train", "truck")


def tandt(scenes: tuple[str, ...] = SCENES) -> bytes:
    """An archive laid out as the published one, with a small project in place of each scene."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for scene in scenes:
            for path in PROJECT.rglob("*.*"):
                file.write(path, f"tandt/{scene}/{path.relative_to(PROJECT)}")
            file.writestr(f"tandt/{scene}/sparse/0/project.ini", "not wanted")
        file.writestr("db/playroom/images/a.jpg", "not wanted")
    return data.getvalue()


@pytest.fixture
def server() -> Iterator[Hub]:
    with serve(Hub("no/repository", {}, plain={ARCHIVE: tandt()})) as hub:
        yield hub


@pytest.fixture
def options(server: Hub) -> Options:
    return Options(jobs=1, url=f"{server.endpoint}/plain/{ARCHIVE}")


def test_both_scenes_are_made_and_the_archive_goes(server: Hub, options: Options, tmp_path: Path) -> None:
    views = InputViews("the list", {"train": {2: (1, 3)}})
    how = replace(options, views=views)
    assert download_tanks_and_temples(SCENES, tmp_path, how) == 1
    for scene in SCENES:
        assert len(read_scene(tmp_path / scene).frames) == len(list((PROJECT / "images").iterdir()))
    assert select_views(read_scene(tmp_path / "train"), 2).inputs == (1, 3)
    record = json.loads((tmp_path / RECORD).read_text())[ARCHIVE]
    assert record["sha256"] == hashlib.sha256(server.plain[ARCHIVE]).hexdigest() and record["source"] == options.url
    assert not [path for path in (tmp_path / ".download").rglob("*") if path.is_file()]
    asked = len(server.requests)
    assert download_tanks_and_temples(SCENES, tmp_path, replace(how, offline=True)) == 1
    assert len(server.requests) == asked


def test_an_archive_that_changed_shows_both_digests(server: Hub, options: Options, tmp_path: Path) -> None:
    download_tanks_and_temples(("train",), tmp_path, options)
    original = server.plain[ARCHIVE]
    first = hashlib.sha256(original).hexdigest()
    server.plain[ARCHIVE] = tandt(("truck",))
    with pytest.raises(DownloadError, match="is not the file that is expected") as caught:
        download_tanks_and_temples(SCENES, tmp_path, options)
    assert first in str(caught.value) and hashlib.sha256(server.plain[ARCHIVE]).hexdigest() in str(caught.value)
    assert not (tmp_path / "truck").exists()
    server.plain[ARCHIVE] = original
    download_tanks_and_temples(SCENES, tmp_path, options)
    assert read_scene(tmp_path / "truck").frames


def test_a_cut_connection_goes_on(
    server: Hub, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**10)
    server.cut_after = 5000
    download_tanks_and_temples(("truck",), tmp_path, replace(options, keep=True))
    assert any(span and span != "bytes=0-" for _, _, span in server.requests)
    assert (tmp_path / ".download" / ARCHIVE).read_bytes() == server.plain[ARCHIVE]


def test_archives_that_are_brought_along(server: Hub, options: Options, tmp_path: Path) -> None:
    mine = tmp_path / "mine.zip"
    how = replace(options, source=mine, offline=True)
    with pytest.raises(DownloadError, match="mine.zip: no such file"):
        download_tanks_and_temples(SCENES, tmp_path / "out", how)
    mine.write_bytes(tandt(("train",)))
    with pytest.raises(DownloadError, match="mine.zip: has no scene truck"):
        download_tanks_and_temples(SCENES, tmp_path / "out", how)
    assert read_scene(tmp_path / "out" / "train").frames and not (tmp_path / "out" / "truck").exists()
    mine.write_bytes(server.plain[ARCHIVE][:3000])
    with pytest.raises(DownloadError, match="mine.zip: cannot be unpacked .File is not a zip file"):
        download_tanks_and_temples(SCENES, tmp_path / "other", how)
    assert not server.requests and mine.is_file()


def test_what_cannot_be_had(server: Hub, options: Options, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="--offline fetches nothing; run once without it, or give tandt_db.zip"):
        download_tanks_and_temples(SCENES, tmp_path, replace(options, offline=True))
    with pytest.raises(DownloadError, match="cannot be fetched"):
        download_tanks_and_temples(SCENES, tmp_path, replace(options, url="http://127.0.0.1:9/x.zip"))
    del server.plain[ARCHIVE]
    with pytest.raises(DownloadError, match="there is no such file"):
        download_tanks_and_temples(SCENES, tmp_path, options)


def zip_of(path: Path, members: dict[str, bytes], mode: int = stat.S_IFREG | 0o644) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, data)
    return path


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/evil", "a\\..\\evil", "c:evil"],
    ids=["up", "inside", "root", "slash", "drive"],
)
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    archive = zip_of(tmp_path / "a.zip", {name: b"x", "good": b"y"})
    with pytest.raises(DownloadError, match="a.zip: the name .*evil' leads out of the folder"):
        unpack(archive, lambda member: member, tmp_path / "in" / "out", Silent())
    assert not (tmp_path / "in").exists() and not list(tmp_path.rglob("*evil*"))


def test_links_bombs_and_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "in" / "out"
    link = zip_of(tmp_path / "link.zip", {"a": b"/etc/passwd"}, stat.S_IFLNK | 0o777)
    with pytest.raises(DownloadError, match="'a' is a link or a device, not a file"):
        unpack(link, lambda name: name, out, Silent())
    monkeypatch.setattr(archives, "LARGEST", 1000)
    bomb = zip_of(tmp_path / "bomb.zip", {"a": bytes(1001)})
    with pytest.raises(DownloadError, match="would unpack to 1 files of 1001 bytes, more than"):
        unpack(bomb, lambda name: name, out, Silent())
    # It announces less than it holds.
    data = bytearray(zip_of(tmp_path / "liar.zip", {"a": bytes(5000)}).read_bytes())
    at = data.rfind(b"PK\1\2")
    data[at + 24 : at + 28] = (100).to_bytes(4, "little")
    (tmp_path / "liar.zip").write_bytes(data)
    with pytest.raises(DownloadError, match="liar.zip: cannot be unpacked .Bad CRC-32"):
        unpack(tmp_path / "liar.zip", lambda name: name, out, Silent())
    whole = zip_of(tmp_path / "whole.zip", {"a": b"x", "b": bytes(range(256))})
    data = bytearray(whole.read_bytes())
    data[data.index(b"PK\3\4", 4) + 40] ^= 0xFF
    (tmp_path / "damaged.zip").write_bytes(data)
    with pytest.raises(DownloadError, match="damaged.zip: cannot be unpacked"):
        unpack(tmp_path / "damaged.zip", lambda name: name, out, Silent())
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "twice.zip", "w") as file:
        file.writestr("a", "1")
        file.writestr("a", "2")
    with pytest.raises(DownloadError, match="'a' comes twice"):
        unpack(tmp_path / "twice.zip", lambda name: name, out, Silent())
    assert not out.exists() and not list((tmp_path / "in").iterdir())
    assert unpack(whole, lambda name: None, out, Silent()) == 0 and not out.exists()
    assert unpack(whole, lambda name: f"x/{name}" if name == "a" else None, out, Silent()) == 1
    assert (out / "x" / "a").read_bytes() == b"x"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.zip").write_bytes(tandt())
    start = ["download", "tanks-and-temples", "-o", str(tmp_path / "tnt"), "--from", str(tmp_path / "mine.zip")]
    assert main([*start, "--jobs", "0"]) == 2
    assert "--jobs must be at least 1, not 0" in capsys.readouterr().err
    assert main([*start, "--offline"]) == 2
    assert "the published lists of input views are not there" in capsys.readouterr().err
    assert main([*start, "--input-views", "kmeans", "--jobs", "1", "--scenes", "truck"]) == 0
    said = capsys.readouterr()
    assert "0 of 1 scene files list them; those of 1 are chosen by K-means" in said.out
    assert "Tanks and Temples comes under its own terms" in said.err and tanks_and_temples.TERMS in said.err
