"""Fetch one source archive from a Python package index without running anything that is inside it.

``pip download`` and ``pip install --dry-run`` both run the archive's build script to learn its metadata. This program
asks pip only where the archive is, and then fetches it through pip's own network session; so the user's pip settings
(index, proxy, certificates, credentials, offline folders) hold. It uses pip's internal modules, for which pip promises
no stability: any failure is one line on the error stream and a non-zero exit status, and the archive can always be
fetched by other means.

Run as a program, never imported by the library: pip must not share a process with the rest.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import sys
from typing import Any


def main(arguments: list[str]) -> int:
    """Arguments: package name, version, largest size in bytes, output path."""
    name, version, max_bytes, output = arguments
    failures = _FailureLog()
    logging.getLogger("pip").addHandler(failures)
    logging.getLogger("pip").setLevel(logging.DEBUG)
    try:
        fetch(name, version, int(max_bytes), output, failures)
    except Exception as error:  # one line for whatever pip raises: its exception types differ by version
        text = " ".join(str(error).split()) or type(error).__name__
        print(without_credentials(text), file=sys.stderr)
        return 1
    return 0


def fetch(name: str, version: str, max_bytes: int, output: str, failures: _FailureLog) -> None:
    command: Any = importlib.import_module("pip._internal.commands").create_command("download")
    options, _ = command.parse_args(["--no-deps", "--ignore-requires-python", "--retries", "2", f"{name}=={version}"])
    # The command's context holds its session and temporary folders, as in pip's own run.
    with contextlib.ExitStack() as stack:
        stack.enter_context(command.main_context())
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        links = [
            candidate.link
            for candidate in finder.find_all_candidates(name)
            if str(candidate.version) == version and not candidate.link.is_wheel
        ]
        if not links:
            raise LookupError(failures.last or f"no package index that pip is set up for offers {name} {version}")
        # pip sorts candidates by preference of source and index, the best last.
        response = session.get(links[-1].url_without_fragment, headers={"Accept-Encoding": "identity"}, stream=True)
        response.raise_for_status()
        _write_limited(response, output, max_bytes)


def _write_limited(response: Any, output: str, max_bytes: int) -> None:
    size = 0
    with open(output, "wb") as file:
        for block in response.iter_content(1 << 20):
            size += len(block)
            if size > max_bytes:
                raise ValueError(f"the archive is larger than the expected {max_bytes} bytes")
            file.write(block)


def without_credentials(text: str) -> str:
    """The text with user names and passwords taken out of any address in it."""
    return re.sub(r"://[^/@\s]+@", "://", text)


class _FailureLog(logging.Handler):
    """Keeps pip's last message about an index that it could not read: pip itself goes on silently."""

    last: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Could not fetch URL"):
            self.last = message


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
