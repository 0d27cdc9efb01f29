"""Older records as current ones: one function for each step of the schema, on JSON values."""

from __future__ import annotations

from typing import Any


class UnknownVersion(Exception):
    """A record of a version that this suite does not know."""


def upgrade_record(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a record of an older version, as those of the current one. The given ones are left as they are.

    Raises UnknownVersion.
    """
    if values.get("schema_version") != 1:
        raise UnknownVersion(f"schema_version {values.get('schema_version')!r} is none that this suite reads")
    return _from_1(values)


def _from_1(values: dict[str, Any]) -> dict[str, Any]:
    """Version 1 read clocks once before both phases and once after both, of every visible GPU of its one rank."""
    speed = values.get("speed")
    if speed is not None:
        speed = dict(speed)
        before, after = speed.pop("clocks_before", []), speed.pop("clocks_after", [])
        speed["reconstruct"] = {**speed["reconstruct"], "before": [_state(clocks) for clocks in before[:1]]}
        speed["show"] = {**speed["show"], "after": [_state(clocks) for clocks in after[:1]]}
    return {**values, "schema_version": 2, "speed": speed}


def _state(clocks: dict[str, Any]) -> dict[str, Any]:
    names = {"sm_mhz": "clock_mhz", "memory_mhz": "memory_clock_mhz"}
    return {names.get(name, name): value for name, value in clocks.items()}
