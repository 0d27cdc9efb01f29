"""Errors of the suite that a user can cause; see :mod:`tttlrm.errors` for what their messages look like."""

from __future__ import annotations

from tttlrm.errors import UserError


class SettingsError(UserError):
    """A key of the configuration, or a command-line argument, that is unknown or has an impossible value."""


class RecordError(UserError):
    """A record or plan that is missing, truncated, edited by hand, or of an unknown schema version."""


class UnavailableError(UserError):
    """Something that a cell needs (weights, data, a device) is not there. Becomes the status ``unavailable``."""
