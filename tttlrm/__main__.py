"""``tttlrm`` and ``python -m tttlrm``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command; returns the exit status."""
    if sys.argv[1:] == ["doctor"]:  # before anything is imported that may be missing, which it is there to say
        from tttlrm.doctor import main as doctor

        return doctor()
    from tttlrm.cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
