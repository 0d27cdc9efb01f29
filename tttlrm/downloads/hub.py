"""One file of a repository on the Hugging Face hub, by the hub's own client, with errors that say what to do."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tttlrm.errors import DownloadError
from tttlrm.files import sha256_of

_MARGIN = 2**26
"""Bytes of the disk that are left free."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository.

    Attributes:
        repository: OWNER/NAME.
        revision: branch, tag or commit.
    """

    repository: str
    name: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{self.name} of {self.repository} ({self.revision})"


@dataclass(frozen=True)
class Fetched:
    """A file that was fetched and checked.

    Attributes:
        commit: of the repository that it came from.
    """

    path: Path
    sha256: str
    size: int
    commit: str | None


@dataclass(frozen=True)
class Announced:
    """What the hub says of a file before it is fetched. ``sha256``: where the hub knows it."""

    size: int
    sha256: str | None
    commit: str | None


def announce(file: HubFile, endpoint: str | None = None) -> Announced:
    """Ask for a file's size and digest.

    Raises:
        DownloadError: no network, no such file, or no access.
    """
    import huggingface_hub as hub

    try:
        url = hub.hf_hub_url(file.repository, file.name, revision=file.revision, endpoint=endpoint)
        found = hub.get_hf_file_metadata(url, endpoint=endpoint)
    except Exception as error:
        raise _explained(error, file) from error
    etag = found.etag or ""
    digest = etag if len(etag) == 64 and set(etag) <= set("0123456789abcdef") else None
    if found.size is None:
        raise DownloadError(f"{file}: the hub does not say how large it is")
    return Announced(found.size, digest, found.commit_hash)


def fetch(file: HubFile, announced: Announced, folder: Path, endpoint: str | None = None) -> Fetched:
    """Fetch a file into a folder. A download that was cut off goes on where it stopped.

    Raises:
        DownloadError: as :func:`announce`; or what came is not what the hub announced.
    """
    import huggingface_hub as hub

    folder.mkdir(parents=True, exist_ok=True)
    try:
        path = Path(
            hub.hf_hub_download(
                file.repository,
                file.name,
                revision=announced.commit or file.revision,
                local_dir=folder,
                endpoint=endpoint,
            )
        )
    except Exception as error:
        raise _explained(error, file) from error
    size, digest = path.stat().st_size, sha256_of(path)
    if size != announced.size or (announced.sha256 is not None and digest != announced.sha256):
        path.unlink()
        raise DownloadError(
            f"{file}: what came (sha256 {digest}, {size} bytes) is not what the hub announced (sha256 "
            f"{announced.sha256 or 'unknown'}, {announced.size} bytes), and was removed; try again"
        )
    return Fetched(path, digest, size, announced.commit)


def require_space(folder: Path, size: int) -> None:
    """Raise DownloadError unless the disk of a folder, which may not exist yet, has room for ``size`` bytes."""
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if free < size + _MARGIN:
        raise DownloadError(
            f"{folder}: {size / 2**30:.2f} GiB are needed, and {free / 2**30:.2f} GiB are free on its disk"
        )


def _explained(error: Exception, file: HubFile) -> DownloadError:
    """A sentence for what the hub's client raised, which has many types by version and cause."""
    from huggingface_hub import errors

    code: Any = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or code in (401, 403):
        return DownloadError(
            f"{file}: access is refused; accept the repository's terms on its page, log in with `hf auth login`, "
            "and try again"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(f"{file}: the repository has no such revision")
    if isinstance(error, errors.LocalEntryNotFoundError) or code is None:
        return DownloadError(
            f"{file}: cannot be fetched ({_first_sentence(error)}); where there is no network, bring the file from "
            "another machine and name it with --from"
        )
    if isinstance(error, errors.EntryNotFoundError | errors.RepositoryNotFoundError) or code == 404:
        return DownloadError(f"{file}: there is no such file on the hub")
    return DownloadError(f"{file}: the hub answered with status {code}; try again later")


def _first_sentence(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
