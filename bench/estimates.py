"""How long cells and jobs may take, before anything has run: for planning a submission, not a measurement.

Of speed runs it is their time limits, which they rarely need in full. Of quality runs it is the network's arithmetic at
a cautious rate, and a share for each image that is read, rendered or compared.
"""

from __future__ import annotations

from collections.abc import Iterable

from bench.cells import Cell
from bench.jobs import Job
from tttlrm.plan import operations

_RATE = {"cuda": 200e12, "cpu": 25e9}
"""Operations a second: of one GPU in bfloat16 (a quarter of what an H100's matrix products reach), of one core."""
_IMAGE_S = {"cuda": 0.1, "cpu": 0.2}
"""To read an input image, or to render and compare a test view."""
_START_S = {"cuda": 60.0, "cpu": 6.0}
"""Of a job: starting, loading, compiling."""
_SHOWN_S = {"cuda": 0.05, "cpu": 0.1}
"""Of a step of post-optimisation, for each view that it renders."""
_ALL_TEST_VIEWS = 40
"""Where a scene's own list says how many."""


def cell_seconds(cell: Cell) -> float:
    """Of one cell on its ranks, one scene after the other."""
    cores = (cell.threads or 1) if cell.device == "cpu" else 1
    network = operations(cell.model_config_resolved, cell.input_views, cell.resolution)
    seconds = network / (_RATE[cell.device] * cores * cell.sp_size)
    if cell.post_optimization is not None:
        how = cell.post_optimization
        seconds += how.steps * (how.views_per_step or cell.input_views) * _SHOWN_S[cell.device]
    if cell.sampling is not None:
        phases = 2 * (cell.sampling.warmup_s + cell.sampling.limit_s)
        return phases + 3 * seconds  # the first call, and those that are under way when a limit is reached
    images = cell.input_views + (cell.dataset.test_views or _ALL_TEST_VIEWS)
    return len(cell.dataset.scenes) * (seconds + images * _IMAGE_S[cell.device])


def job_seconds(job: Job) -> float:
    """Of one job; replicas share its scenes."""
    first = job.cells[0].cell
    return _START_S[first.device] + sum(cell_seconds(item.cell) for item in job.cells) / job.replicas


def device_hours(jobs: Iterable[Job]) -> float:
    """Hours of all devices (or processes) together."""
    return sum(job_seconds(job) * job.ranks for job in jobs) / 3600


def duration_text(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
