"""One file of known or unknown digest at a plain address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tttlrm.downloads.hub import WITHOUT_NETWORK, explained
from tttlrm.downloads.transfer import Expected, Stopped, quiet_client, transfer
from tttlrm.errors import DownloadError


def announce_url(url: str, without_network: str | None = WITHOUT_NETWORK) -> Expected:
    """The size of what lies at an address. Nothing that identifies the user is sent.

    Args:
        without_network: what to do where there is none.

    Raises DownloadError.
    """
    import huggingface_hub as hub

    try:
        response: Any = hub.get_session().head(
            url, headers={"Accept-Encoding": "identity"}, follow_redirects=True, timeout=30
        )
        response.raise_for_status()
    except Exception as error:
        raise explained(error, url, without_network=without_network) from error
    size = response.headers.get("Content-Length", "")
    if not size.isascii() or not size.isdigit():
        raise DownloadError(f"{url}: the server does not say how large it is")
    version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return Expected(int(size), version=version)


def fetch_url(url: str, expected: Expected, target: Path, **options: Any) -> None:
    """Fetch what lies at an address; ``options`` are those of :func:`.transfer.transfer`.

    Raises DownloadError.
    """
    try:
        with quiet_client():
            transfer(url, target, expected, **options)
    except DownloadError as error:
        raise DownloadError(f"{url}: {error}") from error
    except Stopped:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # of this machine's disk, not of the network
            raise
        raise explained(error, url) from error
