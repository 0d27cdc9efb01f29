"""Writing files so that a reader finds the old file, the new file or none, but never half of one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path``: it becomes ``path`` when the block ends well, and is gone otherwise.

    The name starts with a dot and keeps the suffix, because some writers choose their format by it.
    """
    with temporary_path(path) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """A path beside ``path`` that no other process uses, and that is gone after the block."""
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN or infinity), indented, with each list of numbers on one line, atomically."""
    text = json.dumps(value, indent=2, allow_nan=False)
    write_text(path, re.sub(r'\[[^][{}"]*\]', lambda match: " ".join(match[0].split()), text) + "\n")


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
