"""The suite's command: ``python -m bench`` and ``tttlrm-bench``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

from tttlrm.errors import UserError

HELP = """\
usage: python -m bench [list] [KEY=VALUE ...]
       python -m bench --print-config [KEY=VALUE ...]

Runs a table of the paper: plans its cells, runs those that have no record yet, renders the table beside the paper's
numbers, and says of each whether it was reproduced. Run it again to go on where it stopped.

  list                show tables, cells and their state
  --print-config      show every key with its value
  --help              show this

Keys (Hydra syntax; quote those with brackets):
  table=table1        which table
  profile=tiny        tiny: small models and images, on a CPU, in minutes; paper: the paper's sizes, on a CUDA GPU
  cluster=local       processes on this machine
  retry=none          failed: run failed cells again; all: run everything again
  dry_run=true        show cells and jobs, run nothing
  report_only=true    render the table again from its records
  'cells.sp_size=[1]' 'cells.rows=[1,2]' 'cells.kinds=[speed]'   which of the table's cells
  profile.sampling.limit_s=10   any key that --print-config shows

Exit codes: 0 every cell has a result or a reason why it cannot have one; 1 some failed; 2 wrong usage; 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    signal.signal(signal.SIGTERM, _interrupt)  # so that workers are ended as well
    try:
        return _dispatch(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was recorded stays, the same command goes on from there", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    # Imported here: PyTorch and Hydra take seconds, which --help should not.
    from bench.settings import load_settings

    if "--print-config" in arguments:
        return _print_config([argument for argument in arguments if argument != "--print-config"])
    listing = "list" in arguments
    settings = load_settings([argument for argument in arguments if argument != "list"])
    from bench.listing import describe_cells, describe_jobs, describe_tables
    from bench.run import find_work, report, run_table, summary

    if listing:
        print(describe_tables(settings))
    if listing or settings.dry_run:
        work = find_work(settings)
        print(describe_cells(work))
        if settings.dry_run:
            print(describe_jobs(work, settings))
        return 0
    outcome = report(settings) if settings.report_only else run_table(settings)
    print(summary(outcome))
    return outcome.exit_code


def _print_config(overrides: list[str]) -> int:
    import yaml

    from bench.settings import compose, parse_settings

    values = compose(overrides)
    parse_settings(values)
    print(yaml.safe_dump(values, sort_keys=False), end="")
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
