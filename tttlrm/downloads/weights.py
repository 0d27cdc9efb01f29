"""The authors' checkpoints: fetched or brought along, checked, and converted once to safetensors."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tttlrm.checkpoints import digest, load_model, save_model
from tttlrm.downloads.hub import HubFile, Repository, announce, commit_of, fetch, fetch_to, list_folder, require_space
from tttlrm.downloads.records import changed, read_records, sole_download, write_record
from tttlrm.downloads.transfer import quiet_client, shown
from tttlrm.errors import DownloadError, UserError
from tttlrm.lpips_weights import default_cache_dir
from tttlrm.progress import Progress, Silent

REPOSITORY = "chenwang/tttLRM"
_LONGEST_LICENSE = 2**18
LICENSE = (
    "The weights are the authors' and come under the Adobe Research License: for non-commercial research only. "
    f"Its text is in the hub repository {REPOSITORY}."
)


@dataclass(frozen=True)
class Released:
    """A published checkpoint.

    Attributes:
        sha256: of the published file; None: not known before the first download.
    """

    key: str
    file: HubFile
    sha256: str | None = None

    @property
    def converted(self) -> str:
        return Path(self.file.name).with_suffix(".safetensors").name


RELEASED = {
    # No digest is pinned: the files could not be reached when this was written.
    "full": Released("full", HubFile(REPOSITORY, "dl3dv_full.pt")),
    "ar": Released("ar", HubFile(REPOSITORY, "dl3dv_ar.pt")),
}


def default_folder() -> Path:
    return default_cache_dir() / "weights"


def is_there(released: Released, folder: Path) -> bool:
    """Whether the converted checkpoint, with its record, was made before."""
    return (folder / released.converted).is_file() and released.file.name in read_records(folder)


def on_hub(released: Released, revision: str | None = None) -> HubFile:
    """The published file; ``revision``: of the repository, by default its main branch."""
    return HubFile(released.file.repository, released.file.name, revision or released.file.revision)


def license_text(endpoint: str | None = None) -> str | None:
    """The licence as the hub's repository has it; None if it has no such file, or cannot be asked."""
    repository = Repository(REPOSITORY)
    try:
        commit_of(repository, endpoint)  # which fails at once where there is no network
        files, _ = list_folder(repository, "", endpoint)
        found = [file for file in files if file.name.lower().split(".")[0] in ("license", "licence")]
        if not found or found[0].size > _LONGEST_LICENSE:
            return None
        with tempfile.TemporaryDirectory() as folder, quiet_client():
            path = Path(folder) / "license"
            fetch_to(HubFile(REPOSITORY, found[0].name), found[0].expected, path, endpoint)
            return path.read_text(encoding="utf-8", errors="replace")
    except DownloadError:
        return None


def download_weights(
    released: Released,
    folder: Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    source: Path | None = None,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The converted checkpoint, fetched unless it is there. A second file beside it records what it was made of.

    The published file is a pickle, which is read without running anything in it, and is removed after conversion.

    Args:
        revision: of the hub's repository; default: its main branch.
        offline: fetch nothing.
        source: a published file that was brought along, which is left as it is.

    Raises:
        DownloadError: it cannot be had, or is not the file that was recorded before.
        CheckpointError: it is not a checkpoint of this model.
    """
    progress = progress or Silent()
    records = read_records(folder)
    target, known = folder / released.converted, records.get(released.file.name)
    if source is None and known is not None and is_there(released, folder):
        if revision not in (None, known.get("revision"), known.get("commit")):
            raise DownloadError(
                f"{target}: was made of {known.get('commit') or known.get('source')}, and not of revision {revision}; "
                "give another --output, or remove it"
            )
        return _verified(target, known)
    if source is not None:
        if not source.is_file():
            raise UserError(f"{source}: no such file")
        require_space(folder, source.stat().st_size)
        return _convert(released, source, digest(source), {"source": "a local file"}, folder, records)
    if offline:
        raise DownloadError(
            f"{target}: is not there, and --offline fetches nothing; run once without it, or use --from"
        )
    file = on_hub(released, revision)
    announced = announce(file, endpoint)
    progress.note(f"{file}: {announced.size / 2**30:.2f} GiB to fetch, and as much again when converted, to {folder}")
    expected = released.sha256 or (known or {}).get("sha256")
    if expected is not None and announced.sha256 is not None and announced.sha256 != expected:
        raise changed(str(file), file.name, expected, announced.sha256)
    require_space(folder, 2 * announced.size)
    with sole_download(folder), shown(progress, "fetch", announced.size) as on_bytes:
        fetched = fetch(file, announced, folder / "partial", endpoint, on_bytes)
    made_of = {
        "source": f"{file.repository}/{file.name}",
        "revision": file.revision,
        "commit": fetched.commit,
    }
    path = _convert(released, fetched.path, fetched.sha256, made_of, folder, records)
    fetched.path.unlink(missing_ok=True)
    return path


def _convert(
    released: Released,
    published: Path,
    sha256: str,
    made_of: dict[str, Any],
    folder: Path,
    records: dict[str, dict[str, Any]],
) -> Path:
    known = records.get(released.file.name, {}).get("sha256")
    expected = released.sha256 or known
    if expected is not None and expected != sha256:
        raise changed(str(released.file), released.file.name, expected, sha256)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / released.converted
    save_model(load_model(published), target)
    entry = {"sha256": sha256, "bytes": published.stat().st_size, **made_of, "converted_sha256": digest(target)}
    write_record(folder, released.file.name, entry)
    return target


def _verified(target: Path, known: dict[str, Any]) -> Path:
    found = digest(target)
    if found != known.get("converted_sha256"):
        raise DownloadError(
            f"{target}: has been changed since it was made (sha256 {found}, recorded {known.get('converted_sha256')}); "
            "remove it to fetch it again"
        )
    return target
