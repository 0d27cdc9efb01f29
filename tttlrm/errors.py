"""Errors that a user can cause. Each message is one sentence that names the file, frame, key or value."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input or usage. Command-line programs print the message alone and exit with status 2."""


class SceneError(UserError):
    """A scene, one of its frames or one of its images is missing, unreadable or inconsistent."""


class CheckpointError(UserError):
    """A checkpoint that is unreadable, or does not fit the model."""


class BackendUnavailableError(UserError):
    """An optional backend was asked for that is not installed or cannot run on this device."""


class DownloadError(UserError):
    """A file could not be fetched, or is not the file that was expected."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, as a part of a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
