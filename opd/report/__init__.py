"""The page of a run: one HTML file that opens from disk, asks the network for nothing and can be sent to somebody.

    reading    the run folder, with gaps where a run has written nothing
    result     before, after, baselines, teacher, and what may be concluded
    acting     the student in its environment, in pictures
    marks      what the student wrote, marked by the teacher
    figures    curves, and where the time went
    inside     what was measured in passing, with what is healthy
    choices    settings as resolved
    frame.html  page.html  style.css  curves.js  drafts.js  vendor/uplot

Whatever a model wrote is data: it travels as escaped JSON and becomes text nodes. A content security policy in the page
allows no script but its own, by hash, and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from opd.checkpoint import write_text
from opd.report import acting, choices, figures, inside, marks, result
from opd.report.reading import Folder, labelled, read
from opd.words import replacements, said

SCRIPTS = ("vendor/uplot/uPlot.iife.min.js", "curves.js", "drafts.js")
STYLES = ("vendor/uplot/uPlot.min.css", "style.css")


def write(folder: Path, baselines: Sequence[Path] = ()) -> Path:
    """Writes FOLDER/report.html, with other runs beside it for comparison, and gives its path."""
    run, *others = labelled([read(Path(each)) for each in (folder, *baselines)])
    file = run.path / "report.html"
    write_text(file, render(run, others))
    return file


def render(run: Folder, others: Sequence[Folder] = ()) -> str:
    """The page as text."""
    found, drawn = result.rows(run, others), marks.marks(run)
    tell = lambda text: said(text, run.task)
    curves = {
        "exams": told(figures.examinations(run, others), tell),
        "batches": told(figures.training(run), tell),
        "further": told(figures.further(run), tell),
        "inside": told(inside.curves(run), tell),
    }
    return filled(
        _resource("page.html"),
        {"marks": drawn.data if drawn else None, "figures": curves, "said": replacements(run.task)},
        SCRIPTS,
        run=run,
        rows=found,
        measured=result.measured(found),
        headline=result.headline(found),
        sentences=result.sentences(found),
        unlike=result.unlike(run, others),
        marks=drawn,
        acting=acting.acting(run),
        said=tell,
        curves=curves,
        bars=inside.bars(run),
        times=figures.times([run, *others]),
        choices=choices.choices(run),
        notes=_notes(run.notes),
    )


def told(found: Sequence[figures.Figure], tell: Callable[[str], str]) -> list[figures.Figure]:
    """Figures in the words of the task; a figure that is called by a metric's name keeps it."""
    return [
        replace(each, title=tell(each.title), unit=tell(each.unit), spoken=tell(each.spoken), about=tell(each.about))
        for each in found
    ]


def filled(html: str, data: Any, scripts: Sequence[str], style: str = "", **values: Any) -> str:
    """A page from its template: `scripts` may run in it and nothing else, `data` is what they draw."""
    script = "\n".join(_resource(name) for name in scripts)
    text = (
        _environment()
        .from_string(html)
        .render(
            **values,
            style=Markup("\n".join([*(_resource(name) for name in STYLES), style])),
            script=Markup(script),
            digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            data=embedded(data),
        )
    )
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text


def embedded(value: Any) -> Markup:
    """JSON that may stand inside a script element, whatever the texts in it say."""
    text = json.dumps(value, default=lambda figure: figure.to_json(), separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


@cache
def _resource(name: str) -> str:
    return resources.files("opd.report").joinpath(name).read_text(encoding="utf-8")


def _environment() -> Environment:
    found = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(_resource),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "percent": result.percent,
        "duration": result.duration,
        "rounded": result.rounded,
        "worded": result.worded,
    }
    return found


def _notes(notes: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """Notes as a title, paragraphs and a table, or as a text with Markdown; HTML and images in it stay text."""
    if isinstance(notes, str):
        reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
        return {"title": "Notes", "html": Markup(reader.render(notes))}
    return notes
