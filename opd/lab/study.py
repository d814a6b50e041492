"""What a study leaves behind: tables for the terminal, the raw numbers, a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd.checkpoint import plain, write_text
from opd.errors import SettingError
from opd.lab.drawing import Panel, drawn


@dataclass(frozen=True)
class Table:
    """One finding: the sentence above, the head and the lines."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table with its columns aligned, as it stands in a terminal and in a text."""
        wide = [max(len(line[i]) for line in [self.head, *self.lines]) for i in range(len(self.head))]
        rows = [self.head, ["-" * width for width in wide], *self.lines]
        text = "\n".join(f"| {' | '.join(f'{c:<{w}}' for c, w in zip(row, wide, strict=True))} |" for row in rows)
        return f"{self.title}\n\n{text}\n"


@dataclass(frozen=True)
class Result:
    tables: Sequence[Table]
    raw: dict[str, Any]
    panels: Sequence[Panel]


def free(out: Path) -> None:
    """A folder in which something stands already is left as it is."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingError(f"the folder {out} exists", expected="a new folder", remedy="Choose another with --out")


def write(result: Result, out: Path) -> None:
    """OUT/tables.md, results.json and picture.svg; what is infinite becomes null."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "tables.md", "\n".join(table.markdown() for table in result.tables))
    write_text(out / "results.json", json.dumps(plain(result.raw), indent=1, allow_nan=False) + "\n")
    write_text(out / "picture.svg", drawn(result.panels))


def spread(values: Sequence[float], form: str) -> str:
    """A mean over seeds and its 95 % interval (normal approximation)."""
    mean, half = interval(values)
    return f"{mean:{form}} ± {half:{form.lstrip('+')}}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval."""
    n = len(values)
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else math.nan
    return mean, 1.96 * deviation / math.sqrt(n)
