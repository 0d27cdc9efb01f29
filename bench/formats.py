"""Numbers as people read them."""

from __future__ import annotations

import math

from bench.statistics import Estimate

NONE = "–"


def seconds(value: float) -> str:
    """Three significant digits, in s, ms or µs."""
    if value == 0:
        return "0 s"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= scale:
            return f"{significant(value / scale)} {unit}"
    return f"{value / 1e-6:.2g} µs"


def seconds_estimate(estimate: Estimate) -> str:
    """``21.3 ms [21.0, 21.9]``, the interval in the value's unit."""
    text = seconds(estimate.value)
    if estimate.low is None or estimate.high is None:
        return text
    scale = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}[text.split()[1]]
    return f"{text} [{significant(estimate.low / scale)}, {significant(estimate.high / scale)}]"


def number_estimate(estimate: Estimate, decimals: int) -> str:
    """``25.31 [24.90, 25.72]``."""
    text = f"{estimate.value:.{decimals}f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:.{decimals}f}, {estimate.high:.{decimals}f}]"


def gain_estimate(estimate: Estimate, decimals: int, unit: str) -> str:
    """``+0.31 dB [0.02, 0.60]``."""
    text = f"{estimate.value:+.{decimals}f}" + (f" {unit}" if unit else "")
    if estimate.low is None or estimate.high is None:
        return f"{text} (no interval)"
    return f"{text} [{estimate.low:+.{decimals}f}, {estimate.high:+.{decimals}f}]"


def difference(value: float, decimals: int) -> str:
    """With its sign, and a zero without one: ``+0.31``, ``-1.2``, ``0.0``."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def joules(value: float | None) -> str:
    return NONE if value is None else f"{significant(value)} J"


def significant(value: float, digits: int = 3) -> str:
    """Without exponent: 0.0312, 3.12, 312, 3120."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def mebibytes(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value / 1024:.2f} GiB" if value >= 10240 else f"{value:.0f} MiB"
