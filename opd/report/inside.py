"""What a run measured in passing: small curves, and where on the page of an answer student and teacher disagree.

Under each stands the sentence of opd.metrics on what it is and what is healthy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from opd.metrics import sentence
from opd.report.figures import INSIDE, Figure, curve, is_worth
from opd.report.reading import Folder

KINDS = ("digits", "words", "punctuation", "space", "special")  # in the order of the page
Means = dict[str, float]


@dataclass(frozen=True)
class Bar:
    """One mean at the start and at the end; `spans` are the ends of its two bars, as shares of the width."""

    label: str
    share: float | None  # of all tokens, where it is known
    first: float | None
    last: float | None
    spans: tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Bars:
    """Means over the first and the last tenth of the steps, side by side."""

    title: str
    about: str
    first: str
    last: str
    zero: float  # where zero lies, as a share of the width
    bars: list[Bar]


def curves(run: Folder) -> list[Figure]:
    """What there is, in the order of the page."""
    found = list[Figure | None]()
    for title, unit, metrics in INSIDE:
        known = [(name, label) for name, label in metrics if is_worth(run, name)]
        found.append(curve(run, title, unit, known, sentence(known[0][0]) if known else ""))
    return [figure for figure in found if figure]


def bars(run: Folder) -> list[Bars]:
    """The log-ratio by place in the answer and by kind of token, where it was measured."""
    places = sorted({int(name.rpartition(".")[2]) for line in run.batches for name in line if _is_place(name)})
    longest = max((int(line.get("length.max") or 0) for line in run.batches), default=0)
    by_place = {f"ratio.at.{at}": _place(at, longest) for at in places}
    by_kind = {f"ratio.on.{kind}": kind for kind in KINDS}
    found = [
        _bars(run, "Log-ratio by place in the answer", sentence("ratio.at.*"), by_place),
        _bars(run, "Log-ratio by kind of token", sentence("ratio.on.*"), by_kind),
    ]
    return [one for one in found if one]


def _is_place(name: str) -> bool:
    return name.startswith("ratio.at.")


def _place(first: int, longest: int) -> str:
    """Tokens first to 2 * first - 1, or to the end of the longest answer."""
    last = max(first, min(2 * first - 1, longest or 2 * first - 1))
    return f"token {first}" if last == first else f"{first} to {last}"


def _bars(run: Folder, title: str, about: str, names: dict[str, str]) -> Bars | None:
    size = -(-len(run.batches) // 10)
    ends = [_means(lines, names) for lines in (run.batches[:size], run.batches[-size:])]
    values = [value for end in ends for value in end.values()]
    if not values:
        return None
    low, high = min(0.0, *values), max(0.0, *values)
    width = high - low or 1.0

    def span(value: float | None) -> tuple[float, float]:
        start, end = sorted((0.0, value or 0.0))
        return (start - low) / width, (end - low) / width

    shares = _means(run.batches, {f"kinds.{label}": label for label in names.values()})
    rows = [(label, ends[0].get(name), ends[1].get(name)) for name, label in names.items()]
    found = [
        Bar(label, shares.get(f"kinds.{label}"), a, b, (span(a), span(b)))
        for label, a, b in rows
        if (a, b) != (None, None)
    ]
    first, last = ("first step", "last step") if size == 1 else (f"first {size} steps", f"last {size} steps")
    return Bars(title, about, first, last, -low / width, found)


def _means(lines: Sequence[dict[str, float | None]], names: dict[str, str]) -> Means:
    known = {name: [value for line in lines if (value := line.get(name)) is not None] for name in names}
    return {name: fmean(values) for name, values in known.items() if values}
