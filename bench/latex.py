"""A table as LaTeX, for ``\\input`` in a document that uses booktabs and graphicx."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.grids import Grid, Notes, claim_grid, external_grid, quality_grids, speed_grid

if TYPE_CHECKING:
    from bench.tables import Table

_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "→": r"$\to$",
        "–": "--",
        "µ": r"$\mu$",
        "·": r"$\cdot$",
    }
)


def render_latex(table: Table) -> str:
    """Quality, time and claims, each as a ``table`` environment; notes as a numbered list after them."""
    from bench.rendering import run_facts, title

    notes, label = Notes(), f"{table.plan.table}-{table.plan.profile}"
    name, facts = title(table), run_facts(table)
    parts = []
    for at, grid in enumerate(quality_grids(table, notes)):
        about = f"quality{' on ' + grid.title if grid.title else ''}"
        parts.append(_environment(grid, f"{name}; {about}.", f"{label}-quality{at or ''}"))
    rest = {"time and memory": speed_grid(table, notes), "claims": claim_grid(table)}
    rest["values of other systems, imported"] = external_grid(table)
    for about, other in rest.items():
        if other is not None:
            parts.append(_environment(other, f"{name}; {about}.", f"{label}-{about.split()[0]}"))
    head = "% Made by `python -m bench.tables` from the records beside it; changes here are lost.\n"
    items = "".join(f"  \\item {escape(text)}\n" for text in notes.texts)
    listed = f"\\begin{{enumerate}}\n{items}\\end{{enumerate}}\n" if items else ""
    run = f"Profile {escape(table.plan.profile)}; {escape(facts)}\\par\n"
    return head + "\n".join([*parts, run + listed])


def escape(text: str) -> str:
    """Plain text (with Markdown's bold marks, which are dropped) as LaTeX."""
    return text.replace("**", "").translate(_ESCAPES)


def _environment(grid: Grid, caption: str, label: str) -> str:
    columns = "l" * len(grid.header)
    lines = [
        "\\begin{table}",
        "  \\centering\\scriptsize",
        f"  \\caption{{{escape(caption)}}}",
        f"  \\label{{tab:{label}}}",
        "  \\resizebox{\\textwidth}{!}{%",
        f"  \\begin{{tabular}}{{{columns}}}",
        "    \\toprule",
        f"    {_row(grid.header)}",
        "    \\midrule",
        *(f"    {_row(row)}" for row in grid.rows),
        "    \\bottomrule",
        "  \\end{tabular}}",
        "\\end{table}",
        "",
    ]
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    """A cell's line breaks become stacked lines."""
    texts = []
    for cell in cells:
        parts = [escape(part) for part in cell.split("<br>")]
        # Braces: what begins with a bracket would be taken for the argument of the row's end.
        stacked = (
            parts[0] if len(parts) == 1 else r"\begin{tabular}[t]{@{}l@{}}" + r"\\ ".join(parts) + r"\end{tabular}"
        )
        texts.append(f"{{{stacked}}}" if stacked.startswith("[") else stacked)
    return " & ".join(texts) + r" \\"
