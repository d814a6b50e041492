"""What every experiment leaves behind: a table in markdown, the raw numbers in JSON, a plot in PNG."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

from matplotlib.figure import Figure

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00")  # Okabe and Ito: told apart by all eyes


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The mean of a few seeds, and their whole range where there are several."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{fmean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def middle(values: Sequence[float], form: str = ".2f") -> str:
    """The median of many draws, and the middle half of them."""
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{median(values):{form}} ({low:{form}} to {high:{form}})"


def table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A table in markdown."""
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def keep(out: Path, name: str, text: str, raw: Any, figure: Figure) -> None:
    """Writes NAME.md, NAME.json and NAME.png into a folder, and prints the table."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    (out / f"{name}.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    figure.savefig(out / f"{name}.png", dpi=120)
    print(f"\n{text}\nwritten: {out}/{name}.md, .json and .png")
