"""Gives an image build this machine's access to packages: its pip configuration and certificates, as build secrets.

Folders of packages on this machine are served over loopback while the build runs, because it cannot see them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_PLACES = ("index-url", "extra-index-url", "find-links")
_CERTIFICATES = "/run/secrets/ca.crt"


class _Folders(SimpleHTTPRequestHandler):
    """Files below some folders, under their own paths."""

    def __init__(self, *arguments: Any, allowed: tuple[Path, ...]) -> None:
        self._allowed = allowed
        super().__init__(*arguments, directory="/")

    def translate_path(self, path: str) -> str:
        found = Path(super().translate_path(path)).resolve()
        return str(found) if any(found.is_relative_to(folder) for folder in self._allowed) else "/nowhere"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def build_secrets(folder: Path) -> Iterator[list[str]]:
    """Arguments of the engine's build, valid while the block runs; files go to ``folder``."""
    settings = _pip_settings()
    local = {place: path for values in settings.values() for place in values if (path := _local(place)) is not None}
    # The index pages of a folder name files beside the folder of pages.
    allowed = tuple({root.resolve() for path in local.values() for root in (path, path.parent)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Folders, allowed=allowed))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        at = f"http://127.0.0.1:{server.server_port}"
        lines = ["[global]"]
        for key, values in settings.items():
            lines += [
                f"{key} =",
                *(f"    {at}{local[value]}/" if value in local else f"    {value}" for value in values),
            ]
        arguments: list[str] = []
        certificates = _certificates()
        if certificates is not None:
            lines.append(f"cert = {_CERTIFICATES}")
            arguments += ["--secret", f"id=ca,src={certificates}"]
        configuration = folder / "pip.conf"
        configuration.write_text("\n".join(lines) + "\n")
        yield [*arguments, "--secret", f"id=pip,src={configuration}"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _pip_settings() -> dict[str, list[str]]:
    """Where pip looks for packages, from its files and the environment; the later of equal keys counts, as for pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    settings: dict[str, list[str]] = {}
    for line in sorted(listing.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in _PLACES:
            settings[key] = value.strip("'\"").replace("\\n", " ").split()
    return settings


def _local(place: str) -> Path | None:
    """A folder of this machine, given as a path or an address."""
    parts = urlsplit(place)
    path = Path(unquote(parts.path)) if parts.scheme == "file" else Path(place)
    return path if parts.scheme in ("", "file") and path.is_dir() else None


def _certificates() -> str | None:
    for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        if os.path.isfile(os.environ.get(name, "")):
            return os.environ[name]
    return None
