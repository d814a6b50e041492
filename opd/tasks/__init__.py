"""A task is problems to learn from, other problems to be examined on, and a grade for an answer.

    sums                          the embedded default
    jsonl:FILE  parquet:FILE      your own problems
    reasoning_gym:NAME            a generator of the reasoning_gym package
    gymnasium:NAME                an environment with discrete actions; its own options follow

Options follow as `,key=value`: train, held_out, seed, grader, and whatever the kind itself takes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from opd.errors import SettingError, nearest

if TYPE_CHECKING:
    from opd.protocols import Task

KINDS = {  # kind -> module and function; imported when asked for
    "sums": ("opd.tasks.embedded", "sums"),
    "jsonl": ("opd.tasks.files", "jsonl"),
    "parquet": ("opd.tasks.files", "parquet"),
    "reasoning_gym": ("opd.tasks.reasoning_gym", "load"),
    "gymnasium": ("opd.tasks.gymnasium", "load"),
}


def load_task(spec: str, **options: Any) -> Task:
    """The task that `spec` names; options given as keywords win over those in the text."""
    kind, target, written = parse(spec)
    if kind not in KINDS:
        ending = spec.partition(",")[0].rpartition(".")[2]
        is_path = not target and ending in ("jsonl", "parquet")
        remedy = f"Did you mean '{ending}:{spec}'?" if is_path else nearest(kind, KINDS)
        raise SettingError(f"unknown kind of task {kind!r}", remedy=remedy)
    module, name = KINDS[kind]
    load: Callable[..., Task] = getattr(import_module(module), name)
    options = written | options
    check(kind, load, options)
    return load(target, **options)


def parse(spec: str) -> tuple[str, str, dict[str, Any]]:
    """'kind:target,key=value' as its three parts; a comma that starts no option belongs to the target."""
    head, *pairs = re.split(r",(?=\w+=)", spec)
    kind, _, target = head.partition(":")
    options: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key in options:
            raise SettingError(f"option {key!r} is given twice", got=spec)
        options[key] = typed(value)
    return kind, target, options


def typed(text: str) -> int | float | bool | str:
    """The int, float or truth value that a text spells, else the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def check(kind: str, load: Callable[..., Task], options: Mapping[str, Any]) -> None:
    """Stops at an option that the kind does not know and at a count that is none."""
    parameters = inspect.signature(load).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name, value in options.items():
        if name not in known and not is_open:
            raise SettingError(f"task {kind!r} has no option {name!r}", remedy=nearest(name, known))
        counts = name in ("train", "seed") or (name == "held_out" and not isinstance(value, str))
        if counts and value is not None and (type(value) is not int or value < 0):
            raise SettingError(f"option {name!r} of task {kind!r}", got=repr(value), expected="a whole number from 0")
