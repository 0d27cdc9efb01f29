"""Single files by HTTP, from a local server that misbehaves: what is there afterwards, and what was asked for."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import Hub, git_blob, serve
from tttlrm.downloads import transfer as transfers
from tttlrm.downloads.records import RECORD, read_records, sole_download, write_record
from tttlrm.downloads.transfer import Expected, Stopped, git_blob_of, transfer
from tttlrm.downloads.urls import announce_url, fetch_url
from tttlrm.errors import DownloadError

DATA = bytes(range(256)) * 2000
WHOLE = Expected(len(DATA), hashlib.sha256(DATA).hexdigest())


@pytest.fixture
def server() -> Iterator[Hub]:
    with serve(Hub("someone/thing", {}, plain={"a.zip": DATA})) as hub:
        yield hub


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "RETRY_AFTER_S", (0.01, 0.01))


def url(server: Hub) -> str:
    return f"{server.endpoint}/plain/a.zip"


def spans(server: Hub) -> list[str | None]:
    return [span for method, _, span in server.requests if method == "GET"]


def leave_partial(server: Hub, target: Path, content: bytes) -> Path:
    """What a run that was killed leaves."""
    path = transfers._partial(target, url(server), WHOLE)
    path.write_bytes(content)
    return path


def test_it_goes_on_where_a_killed_run_stopped(server: Hub, tmp_path: Path) -> None:
    partial = leave_partial(server, tmp_path / "a.zip", DATA[:1000])
    counted: list[int] = []
    transfer(url(server), tmp_path / "a.zip", WHOLE, on_bytes=counted.append)
    assert (tmp_path / "a.zip").read_bytes() == DATA and not partial.exists()
    assert spans(server) == ["bytes=1000-"] and counted[0] == 1000 and sum(counted) == len(DATA)


@pytest.mark.parametrize("left", [b"?" * 1000, b"?" * len(DATA), b"?" * (len(DATA) + 1)])
def test_what_a_killed_run_left_damaged_is_fetched_again(server: Hub, tmp_path: Path, left: bytes) -> None:
    leave_partial(server, tmp_path / "a.zip", left)
    counted: list[int] = []
    transfer(url(server), tmp_path / "a.zip", WHOLE, on_bytes=counted.append)
    assert (tmp_path / "a.zip").read_bytes() == DATA and sum(counted) == len(DATA)


def test_a_server_that_knows_no_ranges(server: Hub, tmp_path: Path) -> None:
    server.no_ranges = True
    leave_partial(server, tmp_path / "a.zip", DATA[:1000])
    counted: list[int] = []
    transfer(url(server), tmp_path / "a.zip", WHOLE, on_bytes=counted.append)
    assert (tmp_path / "a.zip").read_bytes() == DATA and sum(counted) == len(DATA)


def test_a_busy_server_is_asked_again(server: Hub, tmp_path: Path) -> None:
    server.busy = 2
    fetch_url(url(server), WHOLE, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA and len(spans(server)) == 3
    server.busy = 3
    with pytest.raises(DownloadError, match="the server answered with status 503; try again later"):
        fetch_url(url(server), WHOLE, tmp_path / "b.zip")


def test_wrong_content_is_removed(server: Hub, tmp_path: Path) -> None:
    server.damaged = frozenset({"a.zip"})
    with pytest.raises(DownloadError, match="a.zip: what came is not what was announced .sha256 [0-9a-f]{64}, exp"):
        fetch_url(url(server), WHOLE, tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())


def test_only_the_same_file_is_gone_on_with(server: Hub, tmp_path: Path) -> None:
    """An address whose content changed is another file: parts of both are never put together."""
    target = tmp_path / "a.zip"
    before = announce_url(url(server))
    server.plain["a.zip"] = DATA[::-1]
    after = announce_url(url(server))
    assert before.size == after.size and before.version != after.version
    assert transfers._partial(target, url(server), before) != transfers._partial(target, url(server), after)


def test_it_can_be_stopped(server: Hub, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        transfer(url(server), tmp_path / "a.zip", WHOLE, stop=stop)
    assert not (tmp_path / "a.zip").exists()


def test_addresses_that_do_not_answer(server: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="/plain/b.zip: there is no such file$"):
        announce_url(f"{server.endpoint}/plain/b.zip")
    with pytest.raises(DownloadError, match="http://127.0.0.1:9/x: cannot be fetched"):
        announce_url("http://127.0.0.1:9/x")


def test_a_plain_server_learns_nothing_of_the_user(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch_url(url(server), announce_url(url(server)), tmp_path / "a.zip")
    assert len(server.tokens) == 2 and not any(sent for _, sent in server.tokens)


def test_git_names_content_as_git_does(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "some").write_bytes(b"what is up, doc?")
    assert git_blob_of(tmp_path / "empty") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_blob_of(tmp_path / "some") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37" == git_blob(b"what is up, doc?")


def test_one_download_at_a_time(tmp_path: Path) -> None:
    running = pytest.raises(DownloadError, match="another download to this folder is running")
    with sole_download(tmp_path), running, sole_download(tmp_path):
        pass
    with sole_download(tmp_path):
        pass


def test_records_keep_each_other(tmp_path: Path) -> None:
    write_record(tmp_path, "a", {"sha256": "1"})
    write_record(tmp_path, "b", {"sha256": "2"})
    write_record(tmp_path, "a", {"sha256": "3"})
    assert read_records(tmp_path) == {"a": {"sha256": "3"}, "b": {"sha256": "2"}}
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]
