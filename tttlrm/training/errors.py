"""What can go wrong in training, besides wrong input (:class:`tttlrm.errors.UserError`)."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot go on: too many steps in a row gave no usable gradient."""
