"""The resolved configuration as typed, checked values. ``conf/`` has the defaults and says what each key means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from bench.cells import Kind, Precision, Sampling, ScheduleChoice
from bench.clusters import ClusterSettings
from bench.errors import SettingsError
from bench.schema import Frozen, Growing

_SITES = Path(__file__).resolve().parents[1] / "slurm" / "conf"
"""Where a checkout has the configurations of clusters that are no part of the package."""


class Column(Growing):
    """A column of the paper's table, and the kind of run that fills it."""

    LATER: ClassVar[frozenset[str]] = frozenset({"metric", "dataset"})

    kind: Kind
    label: str
    unit: str
    decimals: int = Field(ge=0)
    """As printed in the paper."""
    better: Literal["higher", "lower"]
    metric: str | None = None
    """What of the run's result: psnr, ssim, lpips or usage_percent of quality runs; time_s, or a stage's name for the
    time of that stage alone, of speed runs. None: named like the column."""
    dataset: str | None = None
    """Key of the paper's dataset; None: the table's for this kind of run."""

    @property
    def run(self) -> str:
        """Name of the run that fills the column, in :class:`bench.plans.PlanRow`: ``quality``, ``quality:tnt``."""
        return self.kind if self.dataset is None else f"{self.kind}:{self.dataset}"


class Claim(Growing):
    """What the paper's table says in words; :mod:`bench.claims` says how each kind is judged.

    ``method`` and ``other`` choose lines by that label; ``lines`` and ``against`` by any.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"lines", "against", "tolerance"})

    name: str
    kind: Literal["better", "improves", "ratio_grows", "at_most_linear", "speedup", "equal"]
    column: str
    method: str | None = None
    match: tuple[str, ...]
    other: str | None = None
    along: str | None = None
    lines: dict[str, Any] = Field(default_factory=dict)
    against: dict[str, Any] = Field(default_factory=dict)
    tolerance: float | None = Field(default=None, gt=0)
    """Of ``at_most_linear``: how far above 1 the exponent may be. Of ``speedup``: the least efficiency. Of ``equal``:
    the largest difference."""

    @model_validator(mode="after")
    def _complete(self) -> Claim:
        along = self.kind in ("improves", "ratio_grows", "at_most_linear")
        rivals = self.kind in ("better", "ratio_grows")
        if along and self.along is None:
            raise ValueError(f"a claim of kind {self.kind} needs along, the label that it goes along")
        if rivals and not (self.other or self.against):
            raise ValueError(f"a claim of kind {self.kind} needs other, or against: the lines to compare with")
        if self.kind in ("at_most_linear", "speedup", "equal") and self.tolerance is None:
            raise ValueError(f"a claim of kind {self.kind} needs a tolerance")
        return self

    @property
    def chosen(self) -> dict[str, Any]:
        """Labels of the lines that the claim is about."""
        return {**({"method": self.method} if self.method else {}), **self.lines}

    @property
    def rivals(self) -> dict[str, Any]:
        """Labels of the lines that these are compared with."""
        return {**({"method": self.other} if self.other else {}), **self.against}


class PaperConditions(Growing):
    """What a run must share with the paper's before numbers can be compared."""

    LATER: ClassVar[frozenset[str]] = frozenset({"other_datasets"})

    device: str
    dataset: str
    scenes: int
    weights: str
    weights_sha256: tuple[str, ...]
    other_datasets: dict[str, int] = Field(default_factory=dict)
    """Scenes of the datasets that columns name themselves."""

    def data_of(self, column: Column) -> tuple[str, int]:
        """Dataset and number of scenes of a column of quality. A claimed dataset without a size is a wrong table."""
        if column.dataset is None or column.dataset == self.dataset:
            return self.dataset, self.scenes
        return column.dataset, self.other_datasets[column.dataset]


class MethodSettings(Frozen):
    """Which rows of the paper's table these are, and how they are run, or why they cannot be.

    Attributes:
        when: labels that a row must have; a list names several values. Empty: the method's own name.
        name: of the cells' method, and key of ``profile.weights``; None: the name that it has in the table.
        model: what makes it, over the profile's model. A trained model must have the same values.
        schedule: None: the table's.
        attention_backend: None: ``cells.attention_backend``.
        merge: predict-and-merge.
        builder: ``module:function`` of a method that is not the suite's own; see docs/adding-a-method.md. ``model`` is
            then whatever that understands.
        unavailable: why none of these rows can be run.
    """

    when: dict[str, Any] = Field(default_factory=dict)
    name: str | None = None
    model: dict[str, Any] = Field(default_factory=dict)
    schedule: ScheduleChoice | None = None
    attention_backend: str | None = None
    merge: bool = False
    builder: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")
    unavailable: str | None = None


class TableSettings(Frozen):
    """A table of the paper, or one of the suite's own; ``conf/table/`` says what each key means."""

    name: str
    paper: str
    version: int
    content: Literal["object", "room"]
    methods: dict[str, MethodSettings]
    schedule: ScheduleChoice
    datasets: dict[Kind, str]
    columns: dict[str, Column]
    paper_conditions: PaperConditions
    claims: tuple[Claim, ...]
    sp_size: tuple[int, ...] = (1,)
    virtual_views: int | None = Field(default=None, ge=1)
    notes: tuple[str, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()
    """Labels of rows that the paper does not have, below those that it has."""

    @model_validator(mode="after")
    def _known_columns(self) -> TableSettings:
        for claim in self.claims:
            if claim.column not in self.columns:
                raise ValueError(f"the claim {claim.name!r} is about the column {claim.column!r}, which is not there")
        for name, column in self.columns.items():
            if column.dataset is None and column.kind not in self.datasets:
                raise ValueError(f"datasets has no {column.kind}, which the column {name} needs")
            conditions = self.paper_conditions
            known = {conditions.dataset, *conditions.other_datasets}
            if column.kind == "quality" and column.dataset is not None and column.dataset not in known:
                raise ValueError(f"the column {name} is of the dataset {column.dataset}, of unknown size in the paper")
        return self


class DatasetSettings(Frozen):
    name: str
    source: Literal["procedural", "folder"]
    content: Literal["object", "room"]
    split: Literal["train", "validation", "test"]
    seed: int
    scenes: int = Field(ge=1)
    test_views: int | None = Field(ge=1)
    root: Path | None


class Scale(Frozen):
    """How the paper's sizes become those of a profile, for one table, or for all that show objects, or rooms."""

    resolutions: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """Printed ``height x width`` -> height, width here; empty: as printed."""
    views: dict[str, int] = Field(default_factory=dict)
    """Printed input views -> input views here; those that are not named are as printed."""
    pruning: Literal["paper", "none"]
    model: dict[str, Any] = Field(default_factory=dict)
    """Of random weights, over the profile's."""
    notes: tuple[str, ...] = ()


class PostOptimizationSettings(Frozen):
    """Of the rows that have optimisation steps; see :class:`bench.cells.PostOptimization`."""

    views_per_step: int | None = Field(ge=1)
    learning_rates: dict[str, float]


class ProfileSettings(Frozen):
    name: str
    device: Literal["cpu", "cuda"]
    model: dict[str, Any]
    scales: dict[str, Scale]
    weights: dict[Kind, dict[str, str]]
    datasets: dict[str, DatasetSettings]
    precision: Precision
    newton_schulz_precision: Precision | None
    tile_tokens: int = Field(ge=1)
    threads: dict[Kind, int | None]
    post_optimization: PostOptimizationSettings
    lpips: bool
    sampling: Sampling

    def scale(self, table: TableSettings) -> Scale:
        """The table's own, or that of what its scenes show."""
        for name in (table.name, table.content):
            if name in self.scales:
                return self.scales[name]
        raise SettingsError(f"profile.scales has neither {table.name} nor {table.content}")


class CellSettings(Frozen):
    kinds: tuple[Kind, ...]
    rows: tuple[int, ...] | None
    sp_size: tuple[int, ...] | None
    seeds: tuple[int, ...]
    attention_backend: str

    @field_validator("kinds", "rows", "sp_size", "seeds")
    @classmethod
    def _not_empty(cls, value: tuple[Any, ...] | None, info: ValidationInfo) -> tuple[Any, ...] | None:
        if value is not None and not value:
            hint = {"rows": ", or null for all", "sp_size": ", or null for the table's"}.get(info.field_name or "", "")
            raise ValueError(f"the list is empty; give at least one value{hint}")
        return value

    @field_validator("sp_size")
    @classmethod
    def _positive(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and min(value) < 1:
            raise ValueError("every sp_size must be at least 1")
        return value

    @field_validator("seeds")
    @classmethod
    def _not_negative(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 0:
            raise ValueError(f"every seed must be at least 0, not {min(value)}")
        return value

    @field_validator("attention_backend")
    @classmethod
    def _known_backend(cls, value: str) -> str:
        from tttlrm.attention import BACKENDS  # imports PyTorch, which only this needs of the settings

        if value not in BACKENDS:
            raise ValueError(f"unknown attention backend {value!r}; choose one of {', '.join(BACKENDS)}")
        return value

    @field_validator("kinds", "rows", "sp_size", "seeds")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("a value is listed twice")
        return value


class Tolerance(Frozen):
    """Largest difference that still counts as reproduced: absolute + relative * |printed value|."""

    absolute: float = Field(ge=0)
    relative: float = Field(ge=0)

    def allows(self, difference: float, printed: float) -> bool:
        slack = 1e-9  # of decimal numbers in binary, far below any printed digit
        return abs(difference) <= self.absolute + self.relative * abs(printed) + slack


class Settings(Frozen):
    """Everything; see ``conf/config.yaml``."""

    table: TableSettings
    profile: ProfileSettings
    cluster: ClusterSettings
    results_dir: Path
    machine: str | None = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    device: Literal["cpu", "cuda"] | None
    retry: Literal["none", "failed", "all"]
    order_seed: int
    dry_run: bool
    report_only: bool
    quiet: bool
    cells: CellSettings
    tolerances: dict[str, Tolerance]

    @property
    def resolved_device(self) -> Literal["cpu", "cuda"]:
        return self.device or self.profile.device


def load_settings(overrides: Sequence[str] = ()) -> Settings:
    """Compose the packaged configuration with Hydra overrides (``table=table1``, ``profile.sampling.limit_s=5``).

    Raises SettingsError naming the key.
    """
    return parse_settings(compose(overrides))


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration as plain values, before it is checked."""
    # The compose API rather than hydra.main: no outputs folder, no change of directory, exit codes of our own.
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    wanted = list(overrides)
    if _SITES.is_dir() and not any("hydra.searchpath" in override for override in wanted):
        wanted.append(f"hydra.searchpath=[file://{_SITES}]")
    try:
        with initialize_config_module("bench.conf", version_base="1.3"):
            config = hydra_compose("config", overrides=wanted)
        values = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(_one_sentence(error)) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def parse_settings(values: dict[str, Any]) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(f"configuration: {describe(error)}") from None


def describe(error: ValidationError) -> str:
    """The problems of a pydantic error in one line, each with the key it is about."""
    problems = [
        f"{'.'.join(str(part) for part in e['loc']) or 'document'}: {e['msg'].removeprefix('Value error, ')}"
        for e in error.errors()[:3]
    ]
    more = error.error_count() - len(problems)
    return "; ".join(problems) + (f" (and {more} more)" if more else "")


def _one_sentence(error: Exception) -> str:
    """Hydra's messages, without its hints about other syntax."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException) and error.options:
        return f"there is no {error.missing_cfg_file}; choose one of {', '.join(sorted(error.options))}"
    if isinstance(error, OverrideParseException):
        return f"cannot read the argument {error.override!r}; write key=value, or use --help"
    first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    cause = str(error.__cause__ or "").splitlines()
    unknown = re.fullmatch("Could not override '(.+)'", first)
    if unknown and cause and "is not in struct" in cause[0]:
        return f"{unknown[1]}: no such key; `python -m bench --print-config` lists all of the chosen table and cluster"
    return f"{first}: {cause[0]}" if cause and cause[0] not in first else first
