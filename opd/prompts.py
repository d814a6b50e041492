"""In which words a method's readers are told more than the writer knew, and in which version: prompts are data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from opd.errors import SettingError
from opd.method import Method
from opd.parts.views import template

FILE = "prompts.json"


@dataclass(frozen=True)
class Prompt:
    """One template, and the asks whose readers are shown it."""

    name: str  # the file beside the recipes, without .txt; "" for a text of another origin
    version: str  # first digits of the text's SHA-256
    asks: tuple[str, ...]
    text: str


def prompts(method: Method) -> list[Prompt]:
    """The templates of all views that say more than the writer knew, each once."""
    shown: dict[str, list[str]] = {}
    for ask in method.teach:
        for text in dict.fromkeys(_templates(ask.view)):
            shown.setdefault(text, []).append(ask.into)
    known = beside_recipes()
    return [Prompt(known.get(text, ""), version(text), tuple(asks), text) for text, asks in shown.items()]


def beside_recipes() -> dict[str, str]:
    """The text of every template that comes with the package -> its name."""
    files = sorted(file.name for file in resources.files("opd.recipes").iterdir() if file.name.endswith(".txt"))
    return {template(name): name for name in (file.removesuffix(".txt") for file in files)}


def version(text: str) -> str:
    """A text's own version: another text has another one."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def written(found: list[Prompt]) -> str:
    """The prompts as a run folder keeps them."""
    return json.dumps([asdict(prompt) for prompt in found], indent=1, ensure_ascii=False)


def check_unchanged(folder: Path, found: list[Prompt]) -> None:
    """A run goes on in the words that it began in; a run of before these were kept is not asked."""
    file = folder / FILE
    if not file.is_file():
        return
    begun, now = json.loads(file.read_text(encoding="utf-8")), json.loads(written(found))
    if [one["text"] for one in begun] != [one["text"] for one in now]:
        told = lambda some: ", ".join(f"{one['name']} {one['version']}" for one in some) or "none"
        raise SettingError(
            "the prompts of the method are no longer those that the run began with",
            got=told(now),
            expected=told(begun),
            remedy=f"Put the texts in {file} back into opd/recipes, or start a new run",
        )


def _templates(part: Any) -> Iterator[str]:
    """Those of a view, and of the views that it is made of."""
    if isinstance(part, tuple):
        for one in part:
            yield from _templates(one)
    elif is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            value = getattr(part, field.name)
            if field.name == "template":
                yield value
            else:
                yield from _templates(value)
