"""Downloads of checkpoints, from a local server that behaves like the hub, and misbehaves like a network."""

from __future__ import annotations

import hashlib
import io
import json
import logging as std_logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.hub_server import COMMIT, Hub, serve
from tttlrm.checkpoints import load_model
from tttlrm.cli import main
from tttlrm.config import ModelConfig
from tttlrm.downloads import hub as hub_client
from tttlrm.downloads import weights
from tttlrm.downloads.hub import HubFile
from tttlrm.downloads.records import RECORD
from tttlrm.downloads.weights import Released, download_weights
from tttlrm.errors import CheckpointError, DownloadError, UserError
from tttlrm.model import TTTLRM

REPOSITORY = "someone/model"
FULL = Released("full", HubFile(REPOSITORY, "full.pt"))
SMALL = ModelConfig(width=64, blocks=1)


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    """A published checkpoint, as a pickle, of a small model."""
    torch.manual_seed(0)
    file = io.BytesIO()
    torch.save({"model": TTTLRM(SMALL).state_dict()}, file)
    return file.getvalue()


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A published file has no configuration, and is taken for the released model, which is too large for a test."""
    monkeypatch.setattr(weights, "load_model", lambda path: load_model(path, config=SMALL))


@pytest.fixture
def server(checkpoint: bytes) -> Iterator[Hub]:
    with serve(Hub(REPOSITORY, {"full.pt": checkpoint})) as hub:
        yield hub


def test_it_is_fetched_checked_converted_and_kept(server: Hub, checkpoint: bytes, tmp_path: Path) -> None:
    path = download_weights(FULL, tmp_path, endpoint=server.endpoint)
    assert path == tmp_path / "full.safetensors" and load_model(path).config == SMALL
    record = json.loads((tmp_path / RECORD).read_text())["full.pt"]
    assert record["sha256"] == hashlib.sha256(checkpoint).hexdigest()
    assert (record["commit"], record["source"], record["bytes"]) == (COMMIT, "someone/model/full.pt", len(checkpoint))
    assert not list(tmp_path.rglob("*.pt"))
    asked = len(server.requests)
    assert download_weights(FULL, tmp_path, endpoint=server.endpoint) == path
    assert download_weights(FULL, tmp_path, offline=True) == path
    assert len(server.requests) == asked  # nothing is asked for again
    for same in ("main", COMMIT):
        assert download_weights(FULL, tmp_path, revision=same, offline=True) == path
    with pytest.raises(DownloadError, match=f"was made of {COMMIT}, and not of revision v2; give another --output"):
        download_weights(FULL, tmp_path, revision="v2", offline=True)

    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DownloadError, match="has been changed since it was made"):
        download_weights(FULL, tmp_path, endpoint=server.endpoint)


def test_a_cut_connection_goes_on_where_it_stopped(
    server: Hub, checkpoint: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the client writes at a time, which is more than this small file has.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)
    server.cut_after = len(checkpoint) // 2
    download_weights(FULL, tmp_path, endpoint=server.endpoint)
    first, *later = server.content_requests()
    assert first is None or first == "bytes=0-"
    assert later and all(span is not None and int(span.split("=")[1].split("-")[0]) > 0 for span in later)


def test_what_an_interrupted_run_fetched_is_not_fetched_again(
    server: Hub, checkpoint: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)
    monkeypatch.setattr("tttlrm.downloads.transfer.RETRY_AFTER_S", (0.01,))
    half = len(checkpoint) // 2
    server.cut_after, server.busy = half, 1000  # the hub goes away in the middle
    with pytest.raises(DownloadError, match="status 503"):
        download_weights(FULL, tmp_path, endpoint=server.endpoint)
    (partial,) = (tmp_path / "partial").iterdir()
    kept = partial.stat().st_size
    assert half - 2**16 < kept <= half
    server.busy = 0
    with monkeypatch.context() as patch:
        patch.setattr(weights, "save_model", interrupted)  # in the middle of the conversion
        with pytest.raises(KeyboardInterrupt):
            download_weights(FULL, tmp_path, endpoint=server.endpoint)
    assert server.content_requests()[-1] == f"bytes={kept}-"
    asked = len(server.content_requests())
    assert load_model(download_weights(FULL, tmp_path, endpoint=server.endpoint)).config == SMALL
    assert len(server.content_requests()) == asked and not list(tmp_path.rglob("*.pt"))


def test_the_licence_is_the_repositorys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "REPOSITORY", REPOSITORY)
    with serve(Hub(REPOSITORY, {"LICENSE.md": b"Be kind.", "full.pt": b"x"})) as hub:
        assert weights.license_text(hub.endpoint) == "Be kind."
        hub.files["LICENSE.md"] = bytes(2**20)
        assert weights.license_text(hub.endpoint) is None  # no licence is as long
        del hub.files["LICENSE.md"]
        assert weights.license_text(hub.endpoint) is None
    assert weights.license_text("http://127.0.0.1:9") is None


def test_a_wrong_checksum_is_refused_and_removed(server: Hub, tmp_path: Path) -> None:
    server.announced = "0" * 64
    with pytest.raises(DownloadError, match="what came is not what was announced") as caught:
        download_weights(FULL, tmp_path, endpoint=server.endpoint)
    assert "0" * 64 in str(caught.value)
    assert not list(tmp_path.rglob("*.pt")) and not (tmp_path / "full.safetensors").exists()


def test_a_file_that_changed_on_the_hub_shows_both_digests(server: Hub, checkpoint: bytes, tmp_path: Path) -> None:
    download_weights(FULL, tmp_path, endpoint=server.endpoint)
    (tmp_path / "full.safetensors").unlink()
    server.files["full.pt"] = checkpoint + b"more"
    with pytest.raises(DownloadError, match="is not the file that is expected") as caught:
        download_weights(FULL, tmp_path, endpoint=server.endpoint)
    for data in (checkpoint, checkpoint + b"more"):
        assert hashlib.sha256(data).hexdigest() in str(caught.value)
    pinned = Released("full", FULL.file, "f" * 64)
    with pytest.raises(DownloadError, match="f" * 64):
        download_weights(pinned, tmp_path / "other", endpoint=server.endpoint)


def test_refusals_say_what_to_do(server: Hub, tmp_path: Path) -> None:
    server.gated = True
    with pytest.raises(
        DownloadError,
        match=r"terms on its page \(https://huggingface.co/someone/model\), log in",
    ):
        download_weights(FULL, tmp_path, endpoint=server.endpoint)
    server.gated = False
    with pytest.raises(DownloadError, match=r"full.pt of someone/model \(v9\): the repository has no such revision"):
        download_weights(FULL, tmp_path, revision="v9", endpoint=server.endpoint)
    for file in (HubFile(REPOSITORY, "gone.pt"), HubFile("nobody/model", "full.pt")):
        with pytest.raises(DownloadError, match="there is no such file on the hub|access is refused"):
            download_weights(Released("full", file), tmp_path, endpoint=server.endpoint)
    server.status = 500
    with pytest.raises(DownloadError, match="status 500"):
        download_weights(FULL, tmp_path, endpoint=server.endpoint)
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot be fetched .* name it with --from"):
        download_weights(FULL, tmp_path, endpoint="http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="--offline fetches nothing"):
        download_weights(FULL, tmp_path, offline=True)


def test_a_file_that_was_brought_along(checkpoint: bytes, tmp_path: Path) -> None:
    brought = tmp_path / "mine.pt"
    brought.write_bytes(checkpoint)
    path = download_weights(FULL, tmp_path / "weights", source=brought, offline=True)
    assert load_model(path).config == SMALL and brought.read_bytes() == checkpoint
    brought.write_bytes(checkpoint[:100])
    with pytest.raises(DownloadError, match="is not the file that is expected"):
        download_weights(FULL, tmp_path / "weights", source=brought)
    with pytest.raises(CheckpointError, match="mine.pt"):
        download_weights(FULL, tmp_path / "fresh", source=brought)
    with pytest.raises(UserError, match="gone.pt: no such file"):
        download_weights(FULL, tmp_path / "fresh", source=tmp_path / "gone.pt")


def test_the_disk_is_looked_at_first(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(hub_client.shutil, "disk_usage", lambda path: usage._replace(free=2**26 + 10))
    with pytest.raises(DownloadError, match="GiB are needed, and 0.06 GiB are free"):
        download_weights(FULL, tmp_path / "new", endpoint=server.endpoint)
    assert not server.content_requests() and not (tmp_path / "new").exists()


def test_damaged_records_are_named(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"a": 1}'):
        (tmp_path / RECORD).write_text(text)
        with pytest.raises(DownloadError, match="downloads.json"):
            download_weights(FULL, tmp_path, offline=True)


def test_the_command(
    checkpoint: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.pt").write_bytes(checkpoint)
    start = ["download", "weights", "full", "-o", str(tmp_path / "weights")]
    assert main([*start, "--offline"]) == 2
    said = capsys.readouterr().err
    assert "Adobe Research License: for non-commercial research only" in said
    assert "is not there, and --offline fetches nothing" in said and "accept" not in said
    assert main([*start, "--from", str(tmp_path / "mine.pt")]) == 2
    assert "the licence was not accepted" in capsys.readouterr().err
    assert main([*start, "--accept-license", "--from", str(tmp_path / "mine.pt")]) == 0
    assert "dl3dv_full.safetensors: give it to `tttlrm reconstruct`" in capsys.readouterr().out
    assert main([*start, "--offline"]) == 0
    assert main(["download", "weights", "--accept-license", "--from", "x.pt"]) == 2
    assert "say whether it is full or ar" in capsys.readouterr().err


@pytest.fixture
def published(checkpoint: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """What the command asks by itself: the authors' repository on a local hub."""
    with serve(Hub(weights.REPOSITORY, {"dl3dv_full.pt": checkpoint, "LICENSE.md": b"Be kind."})) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield hub


def test_the_licence_is_asked_for_before_anything_is_fetched(
    published: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["download", "weights", "full", "-o", str(tmp_path / "weights")]
    assert main(start) == 2  # nobody is asked where there is no terminal
    said = capsys.readouterr().err
    assert "Be kind." in said and "give --accept-license" in said
    assert published.fetched() == ["LICENSE.md"] and not (tmp_path / "weights").exists()
    assert main([*start, "--accept-license"]) == 0
    assert load_model(tmp_path / "weights" / "dl3dv_full.safetensors").config == SMALL
    capsys.readouterr()
    assert main(start) == 0  # what is there is not asked about again
    assert "Be kind." not in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["gated", "status"])
def test_nobody_is_asked_about_what_cannot_be_fetched(
    broken: str, published: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published.gated, published.status = broken == "gated", 404 if broken == "status" else None
    assert main(["download", "weights", "full", "-o", str(tmp_path / "weights")]) == 2
    said = capsys.readouterr().err
    assert "dl3dv_full.pt of chenwang/tttLRM (main): " in said and "--accept-license" not in said


def test_the_client_says_nothing_of_its_own(
    server: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As it would, by itself, of each request that it tries again."""
    import huggingface_hub
    from huggingface_hub.utils import logging

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    client = huggingface_hub.HfApi(endpoint=server.endpoint)  # its import sets up logging
    # Whatever other tests of this process left: it speaks, and to where the test hears it.
    for name in ("huggingface_hub", "huggingface_hub.utils._http"):
        monkeypatch.setattr(std_logging.getLogger(name), "disabled", False)
    monkeypatch.setattr(std_logging.root.manager, "disable", 0)
    logging.set_verbosity_warning()
    logging.enable_propagation()
    server.status, before = 503, logging.get_verbosity()
    try:
        with pytest.raises(huggingface_hub.errors.HfHubHTTPError):
            list(client.list_repo_tree(REPOSITORY))
        assert "Retrying" in caplog.text
        caplog.clear()
        with pytest.raises(DownloadError, match="status 503"):
            hub_client.list_folder(hub_client.Repository(REPOSITORY), "", server.endpoint)
        assert not caplog.records and logging.get_verbosity() == before
    finally:
        logging.disable_propagation()
