"""Keeps what identifies a person, or opens a door, out of records: user names, home folders, tokens."""

from __future__ import annotations

import getpass
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|CREDENTIAL", re.IGNORECASE)
_TOKEN = re.compile(r"\b(?:hf|ghp|gho|ghs|ghu|github_pat|glpat|sk|xox[abp])[-_][A-Za-z0-9_-]{16,}")
_URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
_HOME = re.compile(r"(/home/|/Users/)[^/\s:'\"]+")
_COMMON_NAMES = frozenset({"root", "user", "users", "admin", "test", "runner", "docker", "ubuntu", "debian", "nobody"})


@dataclass(frozen=True)
class Sanitizer:
    """Replaces literal strings, longest first, then what looks like a token or a home folder."""

    replacements: Mapping[str, str]

    def text(self, value: str) -> str:
        for secret in sorted(self.replacements, key=len, reverse=True):
            value = _replace(value, secret, self.replacements[secret])
        value = _TOKEN.sub("<token>", value)
        value = _URL_LOGIN.sub("<login>@", value)
        return _HOME.sub("~", value)

    def value(self, value: Any) -> Any:
        """The same for every string in a JSON value, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value


def local_sanitizer(environment: Mapping[str, str] | None = None) -> Sanitizer:
    """For this process: its repository, home and temporary folders, user name, and secrets in its environment."""
    environment = os.environ if environment is None else environment
    replacements = {str(Path(__file__).resolve().parents[1]): "<repository>", tempfile.gettempdir(): "<tmp>"}
    home = str(Path.home())
    if len(home) > 1:
        replacements[home] = "~"
    for name in (environment.get("USER"), environment.get("LOGNAME"), _user_name()):
        if name and len(name) > 2 and name not in _COMMON_NAMES:
            replacements[name] = "<user>"
    for name, value in environment.items():
        if _SECRET_NAME.search(name) and len(value) >= 8:
            replacements[value] = "<token>"
    return Sanitizer(replacements)


def _replace(text: str, secret: str, by: str) -> str:
    """Whole words only, so that a user called ``ann`` does not change ``channel``."""
    before = r"(?<![A-Za-z0-9])" if secret[0].isalnum() else ""
    after = r"(?![A-Za-z0-9])" if secret[-1].isalnum() else ""
    return re.sub(before + re.escape(secret) + after, lambda _: by, text)


def _user_name() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user, as in some containers
        return None
