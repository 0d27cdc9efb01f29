"""Files of repositories on the Hugging Face hub, by the hub's own client, with errors that say what to do."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tttlrm.downloads.transfer import Expected, OnBytes, Stopped, quiet_client, status_of, transfer
from tttlrm.errors import DownloadError, UserError
from tttlrm.files import sha256_of

_MARGIN = 2**26
"""Bytes of the disk that are left free."""

RepositoryType = Literal["model", "dataset"]


@dataclass(frozen=True)
class Repository:
    """``name``: OWNER/NAME. ``revision``: branch, tag or commit."""

    name: str
    kind: RepositoryType = "model"
    revision: str = "main"

    @property
    def page(self) -> str:
        """Where its terms can be accepted."""
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def __str__(self) -> str:
        return f"{self.name} ({self.revision})"


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
    kind: RepositoryType = "model"

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


@dataclass(frozen=True)
class Listed:
    """A file in a repository's listing, with the digest by which it is kept there: one of the two."""

    name: str
    size: int
    sha256: str | None
    git_blob: str | None

    @property
    def expected(self) -> Expected:
        return Expected(self.size, self.sha256, self.git_blob)


@quiet_client()
def announce(file: HubFile, endpoint: str | None = None) -> Announced:
    """Ask for a file's size and digest.

    Raises:
        DownloadError: no network, no such file, or no access.
    """
    import huggingface_hub as hub

    try:
        found = hub.get_hf_file_metadata(_url(file, endpoint), endpoint=endpoint)
    except Exception as error:
        raise explained(error, str(file), _page(file)) from error
    etag = found.etag or ""
    digest = etag if len(etag) == 64 and set(etag) <= set("0123456789abcdef") else None
    if found.size is None:
        raise DownloadError(f"{file}: the hub does not say how large it is")
    return Announced(found.size, digest, found.commit_hash)


def fetch(
    file: HubFile,
    announced: Announced,
    folder: Path,
    endpoint: str | None = None,
    on_bytes: OnBytes | None = None,
) -> Fetched:
    """Fetch a file into a folder. A download that was cut off or killed goes on where it stopped.

    Raises:
        DownloadError: as :func:`announce`; or what came is not what the hub announced.
    """
    pinned = HubFile(file.repository, file.name, announced.commit or file.revision, file.kind)
    expected = Expected(announced.size, announced.sha256, version=announced.commit or "")
    path = folder / file.name
    if not path.is_file() or expected.problem(path):  # else an earlier run fetched it and got no further
        with quiet_client():
            fetch_to(pinned, expected, path, endpoint, on_bytes=on_bytes)
    return Fetched(path, announced.sha256 or sha256_of(path), announced.size, announced.commit)


def fetch_to(file: HubFile, expected: Expected, target: Path, endpoint: str | None = None, **options: Any) -> None:
    """Fetch a file of which everything is known; ``options`` are those of :func:`.transfer.transfer`.

    Raises DownloadError.
    """
    from huggingface_hub.utils import build_hf_headers

    try:
        transfer(_url(file, endpoint), target, expected, headers=build_hf_headers(), **options)
    except DownloadError as error:
        raise DownloadError(f"{file}: {error}") from error
    except Stopped:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # of this machine's disk, not of the network
            raise
        raise explained(error, str(file), _page(file)) from error


@quiet_client()
def commit_of(repository: Repository, endpoint: str | None = None) -> str:
    """The commit that a revision of a repository stands for.

    Raises DownloadError.
    """
    import huggingface_hub as hub

    try:
        found = hub.HfApi(endpoint=endpoint).repo_info(
            repository.name, repo_type=repository.kind, revision=repository.revision, expand="sha"
        )
    except Exception as error:
        raise explained(error, str(repository), repository.page) from error
    if not found.sha:
        raise DownloadError(f"{repository}: the hub does not say which commit this is")
    return found.sha


@quiet_client()
def list_folder(repository: Repository, folder: str, endpoint: str | None = None) -> tuple[list[Listed], list[str]]:
    """The files and the folders that lie in a folder of a repository (``""``: its root), with paths from the root.

    Raises DownloadError.
    """
    import huggingface_hub as hub

    try:
        entries = hub.HfApi(endpoint=endpoint).list_repo_tree(
            repository.name, folder or None, revision=repository.revision, repo_type=repository.kind
        )
        return _sorted(entries)
    except Exception as error:
        where = f"{folder} of {repository}" if folder else str(repository)
        raise explained(error, where, repository.page) from error


def _sorted(entries: Iterable[Any]) -> tuple[list[Listed], list[str]]:
    from huggingface_hub.hf_api import RepoFile

    files, folders = [], []
    for entry in entries:
        if not isinstance(entry, RepoFile):
            folders.append(entry.path)
        elif entry.lfs is None:
            files.append(Listed(entry.path, entry.size, None, entry.blob_id))
        else:
            files.append(Listed(entry.path, entry.lfs.size, entry.lfs.sha256, None))
    return files, folders


def require_space(folder: Path, size: int) -> None:
    """Raise DownloadError unless the disk of a folder, which may not exist yet, has room for ``size`` bytes."""
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if free < size + _MARGIN:
        raise DownloadError(
            f"{folder}: {size / 2**30:.2f} GiB are needed, and {free / 2**30:.2f} GiB are free on its disk"
        )


WITHOUT_NETWORK = "where there is no network, bring it from another machine and name it with --from"


def explained(
    error: Exception, what: str, page: str | None = None, without_network: str | None = WITHOUT_NETWORK
) -> UserError:
    """A sentence for what the client raised, which has many types by version and cause.

    Args:
        page: of a repository, where its terms can be accepted; None: it is not from the hub.
        without_network: what to do where there is none.
    """
    from huggingface_hub import errors

    code = status_of(error)
    if page is not None and (isinstance(error, errors.GatedRepoError) or code in (401, 403)):
        return DownloadError(
            f"{what}: access is refused; accept the repository's terms on its page ({page}), log in with "
            "`hf auth login`, and try again"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(f"{what}: the repository has no such revision")
    if isinstance(error, errors.LocalEntryNotFoundError) or code is None:
        hint = f"; {without_network}" if without_network else ""
        return DownloadError(f"{what}: cannot be fetched ({_first_sentence(error)}){hint}")
    if isinstance(error, errors.EntryNotFoundError | errors.RepositoryNotFoundError) or code == 404:
        return DownloadError(f"{what}: there is no such file{' on the hub' if page else ''}")
    return DownloadError(f"{what}: the {'hub' if page else 'server'} answered with status {code}; try again later")


def _url(file: HubFile, endpoint: str | None) -> str:
    import huggingface_hub as hub

    return hub.hf_hub_url(file.repository, file.name, repo_type=file.kind, revision=file.revision, endpoint=endpoint)


def _page(file: HubFile) -> str:
    return Repository(file.repository, file.kind).page


def _first_sentence(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
