"""``python -m tttlrm``."""

import sys

from tttlrm.cli import main

if __name__ == "__main__":
    sys.exit(main())
