"""Which image a job's ranks run in, for the records."""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from pathlib import Path

from bench.clusters import Container
from tttlrm.files import sha256_of

_NOTICEABLE_BYTES = 10**9
_IN_NAME = re.compile(r"@(sha256:[0-9a-f]{64})$")


def image_digest(container: Container) -> str | None:
    """``sha256:...``: as stated, in the image's name, or of the image's file. None where there is none of these, as for
    a folder, or a file that is not visible here."""
    if container.digest is not None or container.image is None:
        return container.digest
    named = _IN_NAME.search(container.image)
    if named is not None:
        return named[1]
    path = Path(container.image)
    if not path.is_file():
        return None
    state = path.stat()
    return _of_file(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=8)
def _of_file(path: Path, size: int, modified: int) -> str:
    """Read once by this process, unless the file has changed since."""
    if size > _NOTICEABLE_BYTES:
        print(f"reading {path} ({size / 1e9:.1f} GB) for its digest ...", file=sys.stderr)
    return f"sha256:{sha256_of(path)}"
