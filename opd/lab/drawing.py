"""Line charts side by side as one SVG file: no dependency, text stays text, the same numbers give the same file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by all eyes
DASHES = ("", "7 4", "2 3", "9 3 2 3", "", "7 4")
WIDTH, HEIGHT = 430, 320  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 40, 46
ROW = 17  # height of a line of the legend


@dataclass(frozen=True)
class Line:
    """One curve; low and high are the edges of its interval. Points that are not finite are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    title: str
    x: str  # what is on the axes
    y: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    range_y: tuple[float, float] | None = None


def drawn(panels: Sequence[Panel]) -> str:
    """The panels in a row, each with its legend below."""
    legend = max(len(panel.lines) for panel in panels) * ROW
    width, height = WIDTH * len(panels), HEIGHT + legend + 10
    inside = "\n".join(f'<g transform="translate({i * WIDTH} 0)">{_panel(panel)}</g>' for i, panel in enumerate(panels))
    style = "text{font:12px system-ui,sans-serif;fill:#222}.quiet{fill:#666;font-size:11px}.title{font-weight:600}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><style>{style}</style><rect width="100%" height="100%" fill="#fff"/>\n{inside}\n</svg>\n'
    )


def _panel(panel: Panel) -> str:
    points = [(x, y) for line in panel.lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    edges = [y for line in panel.lines for y in (*line.low, *line.high) if math.isfinite(y)]
    across = _scale([x for x, _ in points], panel.log_x, LEFT, WIDTH - RIGHT)
    ends = list(panel.range_y) if panel.range_y else [*(y for _, y in points), *edges]
    up = _scale(ends, panel.log_y, HEIGHT - BOTTOM, TOP)
    parts = [f'<text class="title" x="{LEFT}" y="20">{escape(panel.title)}</text>', *_axes(panel, across, up)]
    for style, line in enumerate(panel.lines):
        parts += _line(line, style, across, up)
        y = HEIGHT + 8 + style * ROW
        parts.append(f'<path d="M{LEFT} {y}h26" {_stroke(style)}/>')
        parts.append(f'<text x="{LEFT + 34}" y="{y + 4}">{escape(line.label)}</text>')
    return "\n".join(parts)


@dataclass(frozen=True)
class _Scale:
    """Numbers to places on the page, and the ticks between."""

    place: Callable[[float], float]
    ticks: list[float]


def _scale(values: Sequence[float], log: bool, start: float, end: float) -> _Scale:
    low, high = min(values), max(values)
    if log:
        low, high = math.log10(low), math.log10(high)
        margin = 0.04 * (high - low or 1)
        low, high = low - margin, high + margin
        ticks = [10.0**k for k in range(math.ceil(low), math.floor(high) + 1)]
        if len(ticks) < 3:
            ticks = [m * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
        ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    else:
        step = _step(high - low or 1)
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        high = high if high > low else low + step
        ticks = [low + i * step for i in range(round((high - low) / step) + 1)]

    def place(value: float) -> float:
        at = math.log10(value) if log else value
        return start + (at - low) / (high - low) * (end - start)

    return _Scale(place, ticks)


def _step(span: float) -> float:
    """A round number of which about five cover the span."""
    size = 10.0 ** math.floor(math.log10(span / 5))
    return next(m * size for m in (1, 2, 5, 10) if m * size >= span / 5)


def _axes(panel: Panel, across: _Scale, up: _Scale) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = list[str]()
    for tick in up.ticks:
        y = up.place(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#e6e6e6"/>')
        parts.append(f'<text class="quiet" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in across.ticks:
        x = across.place(tick)
        parts.append(f'<path d="M{x:.1f} {bottom}v5" stroke="#999"/>')
        parts.append(f'<text class="quiet" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{_number(tick)}</text>')
    parts.append(f'<path d="M{LEFT} {bottom}H{right}" stroke="#999"/>')
    parts.append(
        f'<text class="quiet" x="{(LEFT + right) / 2}" y="{bottom + 36}" text-anchor="middle">{panel.x}</text>'
    )
    parts.append(f'<text class="quiet" x="{LEFT}" y="34">{escape(panel.y)}</text>')
    return parts


def _line(line: Line, style: int, across: _Scale, up: _Scale) -> list[str]:
    known = [i for i, y in enumerate(line.y) if math.isfinite(y)]
    at = [(across.place(line.x[i]), up.place(line.y[i])) for i in known]
    parts = list[str]()
    if line.low:
        there = [(across.place(line.x[i]), up.place(line.high[i])) for i in known]
        back = [(across.place(line.x[i]), up.place(line.low[i])) for i in reversed(known)]
        parts.append(f'<path d="{_path([*there, *back])}Z" fill="{COLOURS[style]}" opacity="0.13"/>')
    parts.append(f'<path d="{_path(at)}" {_stroke(style)}/>')
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{COLOURS[style]}"/>' for x, y in at]
    return parts


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _stroke(style: int) -> str:
    dash = f' stroke-dasharray="{DASHES[style]}"' if DASHES[style] else ""
    return f'fill="none" stroke="{COLOURS[style]}" stroke-width="2"{dash}'


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1 and value == round(value) else f"{value:.6g}"
