"""The resolved configuration as typed, checked values. ``conf/`` has the defaults and says what each key means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from bench.cells import Kind, Precision, Sampling, ScheduleChoice
from bench.errors import SettingsError
from bench.schema import Frozen
from tttlrm.attention import BACKENDS


class Column(Frozen):
    """A column of the paper's table, and the kind of run that fills it."""

    kind: Kind
    label: str
    unit: str
    decimals: int = Field(ge=0)
    """As printed in the paper."""
    better: Literal["higher", "lower"]


class Claim(Frozen):
    """What the paper's table says in words; :mod:`bench.claims` says how each kind is judged."""

    name: str
    kind: Literal["better", "improves", "ratio_grows"]
    column: str
    method: str
    match: tuple[str, ...]
    other: str | None = None
    along: str | None = None


class PaperConditions(Frozen):
    """What a run must share with the paper's before numbers can be compared."""

    device: str
    dataset: str
    scenes: int
    weights: str
    weights_sha256: tuple[str, ...]


class TableSettings(Frozen):
    name: str
    paper: str
    version: int
    methods: dict[str, dict[str, Any]]
    schedule: ScheduleChoice
    columns: dict[str, Column]
    paper_conditions: PaperConditions
    claims: tuple[Claim, ...]


class DatasetSettings(Frozen):
    name: str
    source: Literal["procedural", "folder"]
    content: Literal["object", "room"]
    split: Literal["train", "validation", "test"]
    seed: int
    scenes: int = Field(ge=1)
    test_views: int | None = Field(ge=1)
    root: Path | None


class ProfileSettings(Frozen):
    name: str
    device: Literal["cpu", "cuda"]
    model: dict[str, Any]
    resolutions: dict[str, tuple[int, int]]
    weights: dict[Kind, dict[str, str]]
    datasets: dict[Kind, DatasetSettings]
    precision: Precision
    newton_schulz_precision: Precision | None
    tile_tokens: int = Field(ge=1)
    threads: int | None = Field(ge=1)
    pruning: Literal["paper", "none"]
    lpips: bool
    sampling: Sampling


class ClusterSettings(Frozen):
    kind: Literal["local"]
    cell_limit_s: float = Field(gt=0)
    cells_per_job: dict[Kind, int]


class CellSettings(Frozen):
    kinds: tuple[Kind, ...]
    rows: tuple[int, ...] | None
    sp_size: tuple[int, ...]
    seeds: tuple[int, ...]
    attention_backend: str

    @field_validator("kinds", "rows", "sp_size", "seeds")
    @classmethod
    def _not_empty(cls, value: tuple[Any, ...] | None, info: ValidationInfo) -> tuple[Any, ...] | None:
        if value is not None and not value:
            hint = ", or null for all" if info.field_name == "rows" else ""
            raise ValueError(f"the list is empty; give at least one value{hint}")
        return value

    @field_validator("sp_size")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1:
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

    try:
        with initialize_config_module("bench.conf", version_base="1.3"):
            config = hydra_compose("config", overrides=list(overrides))
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
    return f"{first}: {cause[0]}" if cause and cause[0] not in first else first
