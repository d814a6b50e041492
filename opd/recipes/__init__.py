"""One published method per file: file name = function name = method name, found by import, with no registry.

`names` and `describe` read a recipe's source without importing it, so that help and lists need no torch.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from opd.errors import SettingError, nearest
from opd.tried import Tried, parted


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str  # the annotation as it is written
    default: Any
    help: str
    tried: Tried | None = None  # by the paper, where its range is known


@dataclass(frozen=True)
class Description:
    """What a recipe's source says of itself: first sentence, paper, when to use it, equation, whole docstring."""

    name: str
    summary: str
    paper: str
    when: str
    equation: str
    text: str
    parameters: tuple[Parameter, ...]


@cache
def names() -> tuple[str, ...]:
    """All methods, in alphabetical order."""
    here = resources.files("opd.recipes")
    return tuple(sorted(f.name[:-3] for f in here.iterdir() if f.name.endswith(".py") and not f.name.startswith("_")))


def load(name: str) -> Callable[..., Any]:
    """The recipe: a function from its parameters to a Method."""
    check_name(name)
    return getattr(importlib.import_module(f"opd.recipes.{name}"), name)


def check_name(name: str) -> None:
    if name not in names():
        raise SettingError("unknown method", got=repr(name), remedy=nearest(name, names()))


@cache
def describe(name: str) -> Description:
    check_name(name)
    tree = ast.parse(resources.files("opd.recipes").joinpath(f"{name}.py").read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    text = ast.get_docstring(tree) or ""
    paper, when, equation = (_tagged(text, tag) for tag in ("Paper", "When", "Equation"))
    return Description(name, text.split("\n")[0], paper, when, equation, text, _parameters(function))


def untried(name: str, values: Mapping[str, Any]) -> list[str]:
    """A sentence for every number that lies outside what the method's paper tried of its parameter."""
    ranges = {p.name: p.tried for p in describe(name).parameters if p.tried}
    return [
        f"{name}={value:.12g} is outside the range that its paper tried, {ranges[name].text}: "
        "allowed, but the paper does not say how that goes"
        for name, value in values.items()
        if name in ranges and isinstance(value, int | float) and value not in ranges[name]
    ]


def _tagged(text: str, tag: str) -> str:
    """The paragraph of a docstring that starts with `tag:`."""
    for paragraph in text.split("\n\n"):
        if paragraph.strip().startswith(f"{tag}:"):
            return " ".join(line.strip() for line in paragraph.strip()[len(tag) + 1 :].splitlines()).strip()
    return ""


def _parameters(function: ast.FunctionDef) -> tuple[Parameter, ...]:
    """The keyword parameters; the line of help of each stands in the function's own docstring as `name: help`.

    The line may end in what the paper tried, `[paper: 1 to 10]`.
    """
    lines = (ast.get_docstring(function) or "").splitlines()
    helps = {head.strip(): rest.strip() for head, colon, rest in (line.partition(":") for line in lines) if colon}
    pairs = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return tuple(
        Parameter(
            a.arg,
            ast.unparse(a.annotation) if a.annotation else "str",
            ast.literal_eval(d) if d else None,
            *parted(helps.get(a.arg, "")),
        )
        for a, d in pairs
    )
