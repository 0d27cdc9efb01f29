"""Where jobs run, as typed settings; ``conf/cluster/`` has the defaults and says what each key means."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from bench.cells import Cell, Kind
from bench.schema import Frozen

Ending = Literal["node_fail", "preempted", "cancelled", "failed", "out_of_memory", "timeout", "lost"]
"""How a job can end without a record of the cell that it was at. lost: the scheduler does not know it any more."""


@dataclass(frozen=True)
class JobShape:
    """How the cells of a job are laid out on processes; see :class:`bench.jobs.Job`.

    Attributes:
        slots: processes that a job has room for: where sp_size ranks fit more than once, replicas of them split the
            scenes of quality cells. 1: one group of ranks, whatever its size.
        most: replicas at most; None: as many as fit.
    """

    slots: int = 1
    most: int | None = None
    collective_timeout_s: float = 600.0
    cell_limit_s: float | None = None

    def replicas(self, cell: Cell) -> int:
        """Speed runs have a node's share for themselves, so that nothing disturbs them."""
        if cell.kind == "speed":
            return 1
        fitting = self.slots // cell.sp_size if self.most is None else self.most
        return max(1, min(fitting, len(cell.dataset.scenes)))


ONE_GROUP = JobShape()


class LocalCluster(Frozen):
    kind: Literal["local"]
    cell_limit_s: float = Field(gt=0)
    collective_timeout_s: float = Field(gt=0)
    cells_per_job: dict[Kind, int]

    def shape(self) -> JobShape:
        return JobShape(collective_timeout_s=self.collective_timeout_s)


class Container(Frozen):
    """An image that the ranks run in: by a command before python (``prefix``), or by Pyxis's options of srun."""

    form: Literal["prefix", "pyxis"]
    command: str | None = None
    """prefix: all that comes before python, as a shell would read it; ``{image}`` in it stands for the image."""
    image: str | None = None
    mounts: tuple[str, ...] = ()
    """pyxis: SOURCE:TARGET."""
    digest: str | None = Field(default=None, pattern="^sha256:[0-9a-f]{64}$")
    """For the records, where it does not follow from the image; see :func:`bench.slurm.images.image_digest`."""

    @property
    def prefix(self) -> str:
        """prefix: the command, with the image in its place."""
        assert self.command is not None
        return self.command if self.image is None else self.command.replace("{image}", shlex.quote(self.image))

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.form == "prefix" and (self.command is None or self.mounts):
            raise ValueError("the form prefix needs command, and has no mounts")
        if self.form == "pyxis" and (self.image is None or self.command is not None):
            raise ValueError("the form pyxis needs image, and has no command")
        if self.command is not None and ("{image}" in self.command) != (self.image is not None):
            raise ValueError("the form prefix has image where its command says {image}, and only there")
        return self


class SlurmCluster(Frozen):
    kind: Literal["slurm"]
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    time_min: int = Field(ge=1)
    ranks_per_node: int = Field(ge=1)
    gpu_type: str | None
    cpus_per_rank: int = Field(ge=1)
    mem_gb_per_rank: float | None = Field(gt=0)
    sbatch: dict[str, str | int | float | bool]
    setup: tuple[str, ...]
    python: str | None
    srun: tuple[str, ...]
    container: Container | None
    replicas: Literal["fill"] | int
    cells_per_job: dict[Kind, int]
    max_array_size: int | None = Field(ge=1)
    parallel_jobs: int = Field(ge=1)
    cell_limit_s: float = Field(gt=0)
    collective_timeout_s: float = Field(gt=0)
    requeue: bool
    signal_delay_s: int = Field(ge=1)
    max_timeouts: int = Field(ge=0)
    retries: dict[Ending, int]
    poll_s: float = Field(gt=0)
    look_again_s: float = Field(ge=0)
    accounting: Literal["auto", "sacct", "squeue"]

    @field_validator("replicas")
    @classmethod
    def _at_least_one(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError("give fill, or at least 1")
        return value

    @field_validator("sbatch")
    @classmethod
    def _long_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        bad = [name for name in value if name.startswith("-") or not name.replace("-", "").replace("_", "").isalnum()]
        if bad:
            raise ValueError(f"options are named without dashes in front, such as reservation, not {bad[0]!r}")
        return value

    def shape(self) -> JobShape:
        most = None if self.replicas == "fill" else self.replicas
        return JobShape(self.ranks_per_node, most, self.collective_timeout_s, self.cell_limit_s)


ClusterSettings = Annotated[LocalCluster | SlurmCluster, Field(discriminator="kind")]
