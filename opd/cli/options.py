"""No option is declared twice: they are the fields of Settings and the parameters of a recipe, read where they stand.

A value stays the text that was typed; whoever owns the option brings it to its type, so that a command line and a TOML
file are checked by the same code and fail with the same sentence.
"""

from __future__ import annotations

import shutil
import textwrap
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from opd import recipes
from opd.errors import SettingError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

WIDEST = 30  # characters of the left column of a help page
QUOTES = "'\""
METAVARS = {"int": "N", "float": "X", "str": "TEXT", "Path": "FOLDER"}
GROUPS = {  # the first field of Settings in each group of the help page
    "student": "Who and what",
    "steps": "Learning",
    "dtype": "The machine",
    "eval_every": "Examining, recording, saving",
}


@dataclass(frozen=True)
class Option:
    """One `--name`; `kind` is its type as it is written in the source."""

    name: str
    kind: str
    default: Any
    help: str
    group: str = "Options"
    tried: str = ""  # what the method's paper tried of it

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        return self.kind == "bool"

    @property
    def is_list(self) -> bool:
        return self.kind.startswith(("tuple", "list", "Sequence"))

    @property
    def choices(self) -> list[str]:
        kind, _, inside = self.kind.rstrip("]").partition("[")
        return [part.strip().strip(QUOTES) for part in inside.split(",")] if kind == "Literal" else []

    @property
    def usage(self) -> str:
        if self.is_switch:
            return f"--no-{self.flag[2:]}" if self.default is True else self.flag
        if self.is_list:
            one = METAVARS.get(self.kind.partition("[")[2].split(",")[0].rstrip("]"), "TEXT")
            return f"{self.flag} {one},{one}"
        return f"{self.flag} {'NAME' if self.choices else METAVARS.get(self.kind.split(' |')[0], 'TEXT')}"

    @property
    def explained(self) -> str:
        help = f"{self.help}: {', '.join(self.choices[:-1])} or {self.choices[-1]}" if self.choices else self.help
        if self.is_switch or self.default in (None, "", ()):
            return help
        text = ",".join(map(str, self.default)) if isinstance(self.default, tuple | list) else str(self.default)
        tried = f"; the paper tried {self.tried}" if self.tried else ""
        return f"{help} [{text.replace('e-0', 'e-')}{tried}]"


def of_settings() -> list[Option]:
    """The fields of Settings, but for the method and its parameters."""
    from opd.settings import Settings

    return [option for option in of_fields(Settings) if option.name not in ("method", "parameters")]


def of_fields(kind: type[BaseModel]) -> list[Option]:
    options, group = list[Option](), "Options"
    for name, field in kind.model_fields.items():
        group = GROUPS.get(name, group)
        options.append(Option(name, _written(field.annotation), field.default, field.description or "", group))
    return options


def _written(annotation: Any) -> str:
    """A type as it would be written in the source."""
    if typing.get_origin(annotation) is Literal:
        return f"Literal[{', '.join(map(repr, typing.get_args(annotation)))}]"
    return annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)


def of_method(name: str) -> list[Option]:
    """The parameters of a recipe, from its source."""
    found, group = recipes.describe(name).parameters, f"Parameters of {name}"
    return [Option(p.name, p.kind, p.default, p.help, group, p.tried.text if p.tried else "") for p in found]


def parse(words: Sequence[str], options: Sequence[Option], command: str) -> tuple[list[str], dict[str, Any]]:
    """The words that are no option, and the values that were given, by name; dashes and underscores are the same."""
    known = {option.name: option for option in options}
    places, values = list[str](), dict[str, Any]()
    rest = iter(words)
    for word in rest:
        if not _is_option(word):
            places.append(word)
            continue
        typed, equals, value = word.partition("=")
        name = typed.lstrip("-").replace("-", "_")
        off = name.removeprefix("no_")
        if name in known and known[name].is_switch:
            values[name] = value if equals else True
        elif name in known:
            values[name] = _value(known[name], value if equals else next(rest, None))
        elif off != name and off in known and known[off].is_switch and not equals:
            values[off] = False
        else:
            remedy = _closest(typed, known.values(), command)
            raise SettingError(f"opd {command} has no option {typed!r}", remedy=remedy)
    return places, values


def _is_option(word: str) -> bool:
    return word.startswith("-") and not word.lstrip("-")[:1].isdigit() and word != "-"


def _value(option: Option, text: str | None) -> str | list[str]:
    if text is None or text.startswith("--"):
        raise SettingError(f"{option.flag} needs a value", got=text and repr(text), remedy=f"Write {option.usage}")
    return [part.strip() for part in text.split(",") if part.strip()] if option.is_list else text


def _closest(typed: str, options: typing.Iterable[Option], command: str) -> str:
    close = nearest(typed.replace("_", "-"), [option.flag for option in options])
    return close if close.startswith("Did you mean") else f"See opd {command} --help."


def target_of(words: Sequence[str]) -> str:
    """The method or TOML file among the words, which decides what options there are: the first word, if it can be."""
    if words and not _is_option(words[0]):
        return words[0]
    return next((word for word in words if word in recipes.names() or word.endswith(".toml")), "")


def one_place(places: Sequence[str], what: str, command: str) -> str:
    """The single word that a command wants beside its options."""
    if len(places) != 1:
        got = f"{len(places)} words: {' '.join(places)}" if places else "none"
        raise SettingError(f"opd {command} needs one {what}", got=got, remedy=f"See opd {command} --help")
    return places[0]


def no_places(places: Sequence[str], command: str) -> None:
    if places:
        raise SettingError(f"opd {command} takes no word beside its options", got=" ".join(places))


def asks_help(words: Sequence[str]) -> bool:
    return "--help" in words or "-h" in words


def page(usage: Sequence[str], text: str, options: Sequence[Option] = (), after: str = "") -> str:
    """A help page: how it is called, what it does, then the options group by group."""
    calls = [f"{'      ' if i else 'usage:'} {line}" for i, line in enumerate(usage)]
    about = [textwrap.fill(part, _width()) for part in text.split("\n")]
    return "\n".join([*calls, "", *about, *([listed(options)] if options else []), *(["", after] if after else [])])


def listed(options: Sequence[Option]) -> str:
    """Options in two columns, an empty line and a heading before every group."""
    left = min(max((len(option.usage) for option in options), default=0), WIDEST) + 4
    lines, group = list[str](), ""
    for option in options:
        if option.group != group:
            group = option.group
            lines += ["", group]
        lines += columns(option.usage, option.explained, left)
    return "\n".join(lines)


def columns(head: str, text: str, left: int) -> list[str]:
    """A head, and a text wrapped to its right; a head that is too long stands on a line of its own."""
    first, *others = textwrap.wrap(text, max(_width() - left, 30)) or [""]
    start = [f"  {head:<{left - 2}}{first}"] if len(head) <= left - 4 else [f"  {head}", " " * left + first]
    return [line.rstrip() for line in [*start, *(" " * left + line for line in others)]]


def _width() -> int:
    return min(shutil.get_terminal_size((110, 24)).columns, 120)
