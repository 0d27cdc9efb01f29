"""The batch scripts of the example clusters, held as files, and how jobs become arrays."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.clusters import SlurmCluster
from bench.errors import SettingsError
from bench.jobs import Job, group_cells
from bench.settings import load_settings
from bench.slurm.resources import Resources, resources_of, sbatch_text
from bench.slurm.submission import max_array_size, plan_arrays
from bench.store import Store
from tests.bench_cases import tiny_plan

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ("gpu", "pyxis", "apptainer", "testcluster")


def cluster_of(name: str, *overrides: str) -> SlurmCluster:
    cluster = load_settings([f"cluster={name}", *overrides]).cluster
    assert isinstance(cluster, SlurmCluster)
    return cluster


@pytest.fixture
def quality_job(tmp_path: Path) -> Job:
    planned = tiny_plan()
    (cell, *_) = [cell for cell in planned.plan.cells.values() if cell.kind == "quality"]
    store = Store.at(tmp_path, "machine", "table1")
    (job,) = group_cells([cell], planned.locations, {}, store, {"quality": 8}, 0)
    return job


def with_ranks(job: Job, sp_size: int, replicas: int = 1, device: str = "cuda") -> Job:
    item = job.cells[0]
    cell = item.cell.model_copy(update={"sp_size": sp_size, "device": device})
    return job.model_copy(update={"cells": (item.model_copy(update={"cell": cell}),), "replicas": replicas})


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_script_is_the_one_on_file(name: str, data_dir: Path, quality_job: Job) -> None:
    """Sixteen ranks, as an array of three jobs. To accept a change, write the new text into the file."""
    cluster = cluster_of(name)
    job = with_ranks(quality_job, 16, device="cpu" if name == "testcluster" else "cuda")
    text = sbatch_text(cluster, resources_of(job, cluster), Path("/results/slurm/logs"), "tttlrm-table2", jobs=3)
    text = text.replace(shlex.quote(sys.executable), "PYTHON").replace(str(ROOT), "REPOSITORY")
    assert text == (data_dir / "sbatch" / f"{name}.sh").read_text()


@pytest.mark.parametrize(
    ("sp_size", "replicas", "nodes", "per_node"),
    [(1, 1, 1, 1), (2, 4, 1, 8), (8, 1, 1, 8), (12, 1, 2, 6), (16, 1, 2, 8), (9, 1, 3, 3)],
)
def test_ranks_lie_evenly_on_as_few_nodes_as_hold_them(
    quality_job: Job, sp_size: int, replicas: int, nodes: int, per_node: int
) -> None:
    found = resources_of(with_ranks(quality_job, sp_size, replicas), cluster_of("gpu"))
    assert found == Resources(nodes, per_node, per_node)
    assert resources_of(with_ranks(quality_job, sp_size, replicas, "cpu"), cluster_of("gpu")).gpus_per_node == 0


def test_replicas_fill_a_node_but_not_with_more_groups_than_scenes(quality_job: Job) -> None:
    cell = with_ranks(quality_job, 2).cells[0].cell
    scenes = len(cell.dataset.scenes)
    shape = cluster_of("gpu").shape()
    assert shape.replicas(cell) == min(4, scenes)
    assert shape.replicas(cell.model_copy(update={"sp_size": 16})) == 1
    assert cluster_of("gpu", "cluster.replicas=1").shape().replicas(cell) == 1
    speed = next(cell for cell in tiny_plan().plan.cells.values() if cell.kind == "speed")
    assert shape.replicas(speed) == 1, "nothing else runs beside a measurement"


def test_a_thousand_jobs_are_a_few_arrays(quality_job: Job) -> None:
    cluster = cluster_of("gpu")
    jobs = [with_ranks(quality_job, sp_size) for sp_size in (1, 2, 16) for _ in range(400)]
    arrays = list(plan_arrays(jobs, cluster, max_array_size(cluster, {"MaxArraySize": "301"})))
    assert [(resources.ranks, len(array)) for resources, array in arrays] == [
        (1, 301),
        (1, 99),
        (2, 301),
        (2, 99),
        (16, 301),
        (16, 99),
    ]


@pytest.mark.parametrize(
    ("site", "own", "expected"), [("1001", "null", 1001), ("1001", "50", 50), ("0", "null", 1), ("", "null", 1001)]
)
def test_the_lower_limit_counts(site: str, own: str, expected: int) -> None:
    assert max_array_size(cluster_of("gpu", f"cluster.max_array_size={own}"), {"MaxArraySize": site}) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster.container={form: prefix}"], "needs command"),
        (["cluster.container={form: pyxis, command: x}"], "needs image"),
        (["cluster.replicas=0"], "at least 1"),
        (["+cluster.retries.bored=1"], "bored"),
        (["cluster.ranks_per_node=0"], "ranks_per_node"),
    ],
)
def test_impossible_settings_are_named(overrides: Sequence[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        cluster_of("slurm", *overrides)
