"""The benchmark suite: paper values -> cells -> jobs -> records -> tables.

It uses the ``tttlrm`` library and is never imported by it.
"""

from tttlrm import __version__ as SUITE_VERSION

__all__ = ["SUITE_VERSION"]
