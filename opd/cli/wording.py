"""The parts of a method as a reader wants them: what differs from a part's own defaults, and no memory addresses."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from opd.method import Ask, Chain, plain, unchanged
from opd.protocols import Want

LONG = 48


def worded(value: Any) -> str:
    """A part as it could be written: OneTurn(n=4, sampling=Sampling(top_p=0.9))."""
    if value is unchanged or value == Chain(()):
        return "none"
    if isinstance(value, Chain):
        return ", then ".join(worded(part) for part in value.parts)
    if isinstance(value, functools.partial):
        return _called(value.func.__name__, {**dict(enumerate(value.args)), **value.keywords})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _called(type(value).__name__, _differing(value))
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        return "a function" if name == "<lambda>" else name
    if isinstance(value, str):
        line = " ".join(value.split())
        return repr(line if len(line) <= LONG else f"{line[: LONG - 1]}…")
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {worded(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple) and value:
        return f"({', '.join(worded(item) for item in value)})"
    return repr(value)


def _differing(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their default."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.repr and (default is dataclasses.MISSING or (own is not default and own != default)):
            found[field.name] = own
    return found


def _called(name: str, arguments: dict[Any, Any]) -> str:
    inside = ", ".join(worded(v) if isinstance(k, int) else f"{k}={worded(v)}" for k, v in arguments.items())
    return f"{name}({inside})" if inside else name


def asked(ask: Ask) -> str:
    """A question to a reader, in words."""
    view = "" if ask.view is plain else f", shown {worded(ask.view)}"
    into = "" if ask.into == ask.who else f", into {ask.into!r}"
    return f"{ask.who}: {wanted(ask.want)}{view}{into}"


def wanted(want: Want) -> str:
    parts = {
        "log-prob of the decided token": want.chosen,
        f"its {want.topk} most probable tokens": want.topk,
        f"log-probs of the ids in {want.gather!r}": want.gather,
        "the whole distribution": want.dist,
        "a token drawn from its distribution": want.label,
        "what each token is worth": want.values,
        f"hidden states of {'every layer' if want.layers == (0,) else f'layers {list(want.layers)}'}": want.layers,
    }
    return ", ".join(text for text, true in parts.items() if true)
