"""The settings of a run as a reader wants them: what was chosen first, with the default beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from opd import recipes
from opd.errors import OpdError
from opd.prompts import beside_recipes, version
from opd.report.reading import Folder
from opd.report.result import worded
from opd.settings import Settings

APART = {"method", "parameters", "versions", "git", "out"}  # shown in places of their own


@dataclass(frozen=True)
class Choice:
    name: str
    value: str
    default: str | None  # None where there is none, or where it was kept
    help: str = ""


@dataclass(frozen=True)
class Wording:
    """What a reader was told beside the question, as the run recorded it."""

    about: str  # the asks
    name: str
    version: str
    text: str
    now: str  # the version that this opd has under that name, where it is another


@dataclass(frozen=True)
class Choices:
    parameters: list[Choice]
    untried: list[str]  # sentences about parameters beyond what the paper tried
    settings: list[Choice]
    made_with: list[Choice]
    summary: str  # of the method, from its recipe
    equation: str
    paper: str
    prompts: list[Wording]


def choices(run: Folder) -> Choices:
    """All settings as resolved; those that differ from a default carry it."""
    method = described(run.method)
    known = {p.name: (p.default, p.help) for p in method.parameters} if method else {}
    fields = {name: (field.default, field.description or "") for name, field in Settings.model_fields.items()}
    parameters = run.settings.get("parameters") or {}
    settings = {name: value for name, value in run.settings.items() if name not in APART}
    return Choices(
        parameters=[_choice(name, value, known) for name, value in parameters.items()],
        untried=recipes.untried(method.name, parameters) if method else [],
        settings=[_choice(name, value, fields) for name, value in settings.items()],
        made_with=_made_with(run),
        summary=method.summary if method else "",
        equation=method.equation if method else "",
        paper=method.paper if method else "",
        prompts=_wordings(run),
    )


def _wordings(run: Folder) -> list[Wording]:
    """The recorded texts, whatever has become of their files."""
    known = {name: version(text) for text, name in beside_recipes().items()}
    found = list[Wording]()
    for one in run.prompts:
        name, recorded = str(one.get("name") or ""), str(one.get("version") or "")
        now = known.get(name, recorded)
        asks = ", ".join(str(ask) for ask in one.get("asks") or ())
        found.append(Wording(asks, name, recorded, str(one.get("text") or ""), "" if now == recorded else now))
    return found


def described(method: str) -> recipes.Description | None:
    """What the recipe says of itself; None for a method that this version of opd does not have."""
    try:
        return recipes.describe(method)
    except OpdError:
        return None


def _choice(name: str, value: Any, known: dict[str, tuple[Any, str]]) -> Choice:
    if name not in known:
        return Choice(name, worded(value), None)
    default, help = known[name]
    plain = list(default) if isinstance(default, tuple) else default
    return Choice(name, worded(value), None if plain == value else worded(default), help)


def _made_with(run: Folder) -> list[Choice]:
    """Versions, and the commit that the run was started from."""
    found = [Choice(name, str(value), None) for name, value in (run.settings.get("versions") or {}).items()]
    if commit := (run.settings.get("git") or {}).get("commit"):
        changed = ", with changes that were not committed" if run.settings["git"].get("changed") else ""
        found.append(Choice("git commit", f"{str(commit)[:12]}{changed}", None))
    return found
