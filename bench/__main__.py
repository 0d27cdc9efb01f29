"""The suite's command: ``python -m bench`` and ``tttlrm-bench``."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from tttlrm.errors import UserError

if TYPE_CHECKING:
    from bench.run import Work
    from bench.settings import Settings

HELP = """\
usage: python -m bench [list] [--dry-run] [KEY=VALUE ...]
       python -m bench --print-config [KEY=VALUE ...]
       python -m bench compare A B | import FILE ... | schema      (each with --help)

Runs a table of the paper: plans its cells, runs those that have no record yet, renders the table beside the paper's
numbers, and says of each whether it was reproduced. Run it again to go on where it stopped.

  list                show tables, cells and their state
  --dry-run           the same as dry_run=true
  compare A B         what changed beyond the intervals between two result sets (folders, or REVISION:folder)
  import FILE ...     another system's per-view results, to be shown in a table as external
  schema              print the JSON Schema of records
  --print-config      show every key with its value
  --help              show this

Keys (Hydra syntax; quote those with brackets):
  table=table1        table1 to table7, figure8, scaling
  profile=tiny        tiny: small models and images, on a CPU, in minutes; paper: the paper's sizes, on a CUDA GPU
  cluster=local       local: processes on this machine; slurm: jobs on a cluster (slurm/README.md)
  retry=none          failed: run failed cells again; all: run everything again
  dry_run=true        show cells, the jobs they become, and an estimate of their time; run nothing
  report_only=true    render the table again from its records
  'cells.rows=[1,2]' 'cells.kinds=[speed]'   run only these of the table's cells now; the table stays whole
  'cells.sp_size=[1]' 'cells.seeds=[0,1]'    how many ranks and seeds each row is run with
  profile.sampling.limit_s=10   any key that --print-config shows

Exit codes: 0 every cell asked for has a result or a reason why it cannot have one; 1 some failed or did not run;
2 wrong usage, or a file that cannot be read or written; 130 interrupted.
"""


def _compare(arguments: list[str]) -> int:
    from bench.compare import main

    return main(arguments)


def _import(arguments: list[str]) -> int:
    from bench.external import main

    return main(arguments)


def _schema(arguments: list[str]) -> int:
    if arguments:
        return _fail("usage: python -m bench schema", 0 if {"-h", "--help"} & set(arguments) else 2)
    from bench.records import schema_text

    print(schema_text(), end="")
    return 0


_TOOLS = {"compare": _compare, "import": _import, "schema": _schema}


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments) and not set(arguments[:1]) & _TOOLS.keys():
        print(HELP, end="")
        return 0
    try:
        with _interruptible():
            return _dispatch(arguments)
    except UserError as error:
        return _fail(f"error: {error}", 2)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"error: {name}{error.strerror or error}", 2)
    except KeyboardInterrupt as interruption:
        said = str(interruption) or "interrupted; what was recorded stays, the same command goes on from there"
        return _fail(said, 130)


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in _TOOLS:
        return _TOOLS[arguments[0]](arguments[1:])
    # Imported here: PyTorch and Hydra take seconds, which --help should not.
    from bench.settings import load_settings

    if "--print-config" in arguments:
        return _print_config([argument for argument in arguments if argument != "--print-config"])
    listing = "list" in arguments
    dry_run = ["dry_run=true"] if "--dry-run" in arguments else []
    overrides = [argument for argument in arguments if argument not in ("list", "--dry-run")]
    settings = load_settings([*overrides, *dry_run])
    from bench.run import find_work, report, run_table, summary

    if listing or settings.dry_run:
        from bench.listing import describe_cells, describe_jobs

        work = find_work(settings)
        if listing:
            print(_describe_tables(overrides, settings, work))
        print(describe_cells(work))
        if settings.dry_run:
            print(describe_jobs(work, settings))
        return 0
    outcome = report(settings) if settings.report_only else run_table(settings)
    print(summary(outcome))
    return outcome.exit_code


def _describe_tables(overrides: Sequence[str], chosen: Settings, work: Work) -> str:
    """Every table under the same keys, those apart that only the chosen table takes."""
    from bench.listing import describe_tables, table_names
    from bench.run import find_work
    from bench.settings import load_settings

    shared = [text for text in overrides if not text.lstrip("+~").startswith(("table=", "table.", "cells.rows="))]
    works = {
        name: work if name == chosen.table.name else find_work(load_settings([*shared, f"table={name}"]))
        for name in table_names()
    }
    return describe_tables(works, chosen)


def _print_config(overrides: list[str]) -> int:
    import yaml

    from bench.settings import compose, parse_settings

    values = compose(overrides)
    parse_settings(values)
    print(yaml.safe_dump(values, sort_keys=False), end="")
    return 0


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt as Ctrl-C does, so that workers are ended as well."""
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored: started with nohup, to outlive its terminal
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # a terminal that hung up takes no message
        print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
