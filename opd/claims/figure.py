"""What a claim's cases came to, drawn: every method a dot with its interval, the method itself in colour.

The drawing is an SVG of text and lines that follows the reader's light or dark background.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment

LEFT, WIDTH, LINE, HEAD = 300, 380, 22, 44  # pixels: the names' column, the drawing's, a line, a title
TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ wide }} {{ high }}" width="{{ wide }}" font-family="sans-serif"\
 font-size="12" role="img">
<title>{{ title }}</title>
<style>
text { fill: #1f2328 } .quiet { fill: #59636e } line { stroke: #8c959f } circle { fill: #59636e }
.own line { stroke: #0969da; stroke-width: 2 } .own circle { fill: #0969da } .own text { font-weight: bold }
@media (prefers-color-scheme: dark) { text { fill: #f0f6fc } .quiet { fill: #9198a1 } circle { fill: #9198a1 }
  .own line { stroke: #4493f8 } .own circle { fill: #4493f8 } }
</style>
{% for case in cases -%}
<text class="quiet" x="0" y="{{ case.top + 20 }}">{{ case.title }}</text>
{% for one in case.lines -%}
<g{% if one.own %} class="own"{% endif %}><text x="{{ left - 12 }}" y="{{ one.y + 4 }}" text-anchor="end">\
{{ one.label }}</text>\
{% if one.low is not none %}<line x1="{{ one.low }}" x2="{{ one.high }}" y1="{{ one.y }}" y2="{{ one.y }}"/>{% endif %}\
<circle cx="{{ one.value }}" cy="{{ one.y }}" r="4"/><text class="quiet" x="{{ left + width + 12 }}"\
 y="{{ one.y + 4 }}">\
{{ one.words }}</text></g>
{% endfor %}{% endfor -%}
</svg>
"""
MOST = 44  # letters of a name that fit


def figure(result: Mapping[str, Any], scales: Mapping[str, float], words: Mapping[str, str]) -> str:
    """The drawing of a claim.json; values of a measure are times `scales`, measures are called by `words`."""
    top, cases = 0, list[dict[str, Any]]()
    for outcome in result["cases"]:
        cases.append(drawn(outcome, top, scales, words))
        top += HEAD + LINE * len(outcome["values"])
    title = f"{result['method']}: {result['verdict']}"
    page = Environment(autoescape=True).from_string(TEMPLATE)
    return page.render(cases=cases, title=title, left=LEFT, width=WIDTH, wide=LEFT + WIDTH + 60, high=top + 8) + "\n"


def drawn(
    outcome: Mapping[str, Any], top: int, scales: Mapping[str, float], words: Mapping[str, str]
) -> dict[str, Any]:
    """One case, `top` pixels below the upper edge, on a scale of its own."""
    case, values = outcome["case"], outcome["values"]
    scale = scales.get(case["measure"], 1.0)
    edges = [edge for one in values.values() for edge in one.values() if edge is not None] or [0.0]
    low, wide = min(edges), (max(edges) - min(edges)) or 1.0
    place = lambda value: None if value is None else round(LEFT + WIDTH * (value - low) / wide, 1)
    lines = [
        {
            "label": label if len(label) <= MOST else f"{label[: MOST - 1]}…",
            "own": label == case["method"],
            "y": top + HEAD + LINE * number - LINE // 2 + 4,
            "words": f"{scale * one['value']:.{1 if scale > 1 else 3}f}",
            **{edge: place(one[edge]) for edge in ("value", "low", "high")},
        }
        for number, (label, one) in enumerate(values.items())
    ]
    name = words.get(case["measure"], case["measure"].partition(":")[2])
    return {"top": top, "title": f"When {case['name']}: {name} ({case['better']} is better)", "lines": lines}
