"""Draws the plots of a table as SVG, with matplotlib (the extra ``plots``)."""

from __future__ import annotations

import importlib.util
import io
import math
import re
from typing import Any

from bench.figures import Figure

_DATA = re.compile(r"data sha256:([0-9a-f]{64})")
_SIZE = (7.0, 4.5)  # inches
_LABEL_WIDTH = 0.12  # of the x axis, for a number of seven digits


def can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def draw(figure: Figure) -> str:
    """The plot as SVG; the same text each time, with one version of matplotlib. Carries the digest of what it shows."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    settings: Any = {"svg.hashsalt": "bench", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **settings}):
        canvas = Canvas(figsize=_SIZE, layout="constrained")
        axes = canvas.add_subplot()
        for series in figure.series:
            x, y = [point.x for point in series.points], [point.y for point in series.points]
            below = [0.0 if point.low is None else point.y - point.low for point in series.points]
            above = [0.0 if point.high is None else point.high - point.y for point in series.points]
            axes.errorbar(x, y, yerr=[below, above], marker="o", markersize=3, capsize=2, label=series.name)
        if figure.ideal is not None:
            axes.axhline(figure.ideal, color="grey", linewidth=0.8, linestyle="--")
        if figure.logarithmic:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        places = _ticks({point.x for series in figure.series for point in series.points}, figure.logarithmic)
        axes.set_xticks(places, [f"{x:,.0f}" for x in places])
        axes.set_xticks([], minor=True)
        axes.set(xlabel=figure.x_label, ylabel=figure.y_label, title=figure.title)
        axes.grid(True, linewidth=0.3)
        axes.legend(fontsize=7)
        text = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Description": f"data sha256:{figure.digest}"}
        canvas.savefig(text, format="svg", metadata=metadata)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def _ticks(places: set[float], logarithmic: bool) -> list[float]:
    """Those of the places, from the largest down, whose labels do not overlap, in rising order."""
    at = math.log if logarithmic else float
    least = _LABEL_WIDTH * (at(max(places)) - at(min(places)))
    kept: list[float] = []
    for place in sorted(places, reverse=True):
        if not kept or at(kept[-1]) - at(place) >= least:
            kept.append(place)
    return kept[::-1]


def shows(svg: str, figure: Figure) -> bool:
    """Whether a drawn plot is one of these data. Its strokes may be of another version of matplotlib."""
    found = _DATA.search(svg)
    return found is not None and found.group(1) == figure.digest
