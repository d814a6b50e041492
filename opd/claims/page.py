"""docs/methods.md: what every method's paper claims, what is seen here, and the numbers behind the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.checkpoint import write_text
from opd.claims.figure import figure

HEAD = """# Methods: what their papers claim, and what is seen here

Each claim is tried on a small task made for it: the method against its own baseline, against two common methods and
against a control that has the same numbers on the wrong tokens. A method whose teacher is a copy of the student has no
outside teacher, whom the common methods ask; its control is one that lowers whatever was written. Every method gets
the best learning rate of one grid, chosen on problems that no number here is about: all rates with one seed, then the
better half with three where the table says so. That choice keeps some noise, which no interval holds. **Shown** means
better than baseline *and* control by more than a 95 % interval leaves open, corrected for no number of claims; where
the best rate is the end of its grid, a better one may lie beyond. A claim that is not shown at this size may hold at
another; one with fewer than five seeds is provisional. What each method is, and what is uncertain about it: `opd show
METHOD`. Written by `opd reproduce --page docs/methods.md`.

"""
SHARES = {
    "context:under": "accuracy of greedy answers with the context back, %",
    "context:harm": "of the greedy answers that were right, those wrong with the context back, %",
    "context:both": "right with and without the context, greedy, %",
}
SCALES = {"sampled": 100.0, "greedy": 100.0} | dict.fromkeys(SHARES, 100.0)
WORDS = {
    "sampled": "accuracy of sampled answers, %",
    "greedy": "accuracy of greedy answers, %",
    "reverse_kl": "KL(student || teacher), nats per token",
    "length": "tokens per answer",
} | SHARES


def results(out: Path) -> list[dict[str, Any]]:
    """Every claim.json below a folder, by method."""
    files = sorted(out.glob("*/claim.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def section(result: Mapping[str, Any]) -> str:
    """One method: claim, the paper's numbers, verdict, a table per case."""
    parts = [
        f"### `{result['method']}`",
        f"**{result['verdict'].capitalize()}**, with {result['seeds']} seed{'s' if result['seeds'] > 1 else ''}.",
        f"*The paper:* {result['says']} {result['numbers']}",
        f"*Here:* {result['here']}",
        f"    opd reproduce {result['method']} --seeds {result['seeds']}",
    ]
    return "\n\n".join(parts + [table(case) for case in result["cases"]]) + "\n"


def table(outcome: Mapping[str, Any]) -> str:
    case = outcome["case"]
    name, scale = WORDS.get(case["measure"], case["measure"].partition(":")[2]), SCALES.get(case["measure"], 1.0)
    title = f"When {case['name']} ({name}, {case['better']} is better; mean and 95 % interval):"
    lines = [title, "", "| | rate | value | the method less this one | |", "|---|---|---|---|---|"]
    standings = {one["other"]: one for one in outcome["standings"]}
    for label, value in outcome["values"].items():
        gap = standings.get(label)
        cells = [f"`{label}`", rate(outcome["rates"][label], case["rates"]), number(value, scale)]
        cells += [number(gap["difference"], scale, signed=True), gap["word"]] if gap else ["", "the method"]
        lines.append(f"| {' | '.join(cells)} |")
    if outcome["broken"]:
        lines += ["", f"Broken: {'; '.join(outcome['broken'])}."]
    return "\n".join(lines)


def rate(chosen: float, grid: Sequence[float]) -> str:
    """The rate that was chosen, and whether a better one may lie outside the grid."""
    ends = {min(grid): "lowest", max(grid): "highest"} if len(grid) > 1 else {}
    return f"{chosen:g} ({ends[chosen]} tried)" if chosen in ends else f"{chosen:g}"


def number(interval: Mapping[str, Any], scale: float, signed: bool = False) -> str:
    digits = 1 if scale > 1 else 3
    sign = "+" if signed else ""
    text = f"{scale * interval['value']:{sign}.{digits}f}"
    if interval["low"] is None:
        return text
    return f"{text} ({scale * interval['low']:{sign}.{digits}f} to {scale * interval['high']:{sign}.{digits}f})"


def document(found: Sequence[Mapping[str, Any]], side_by_side: str, pictures: str) -> str:
    """All sections with their drawings (in folder `pictures`), after the verdicts and a table of all methods."""
    head = "## Claims\n\n| method | its claim | verdict | seeds | for the rate |\n|---|---|---|---|---|\n"
    rows = "".join(
        f"| [`{r['method']}`](#{r['method']}) | {r['says']} | {r['verdict']} | {r['seeds']} "
        f"| {r.get('tuning_seeds', 1)} |\n"
        for r in found
    )
    table = f"## Side by side\n\n{side_by_side}\n" if side_by_side else ""
    drawn = (f"{section(r)}\n![The same numbers, drawn]({pictures}/{r['method']}.svg)\n" for r in found)
    return HEAD + table + head + rows + "\n" + "\n".join(drawn)


def write(out: Path, file: Path) -> None:
    """The page of everything that was tried in `out`, and the drawings in a folder of its name beside it."""
    found, table = results(out), out / "side_by_side.md"
    pictures = file.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    for result in found:
        write_text(pictures / f"{result['method']}.svg", figure(result, SCALES, WORDS))
    write_text(file, document(found, table.read_text(encoding="utf-8") if table.is_file() else "", pictures.name))
