"""The parts of a method as a reader wants them: what differs from a part's own defaults, and no memory addresses."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from opd.method import Ask, Chain, Method, plain, unchanged
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


def needed(method: Method, passes: Mapping[str, int]) -> list[str]:
    """What a method takes beside a student and problems, a few words each; `passes` as contract.anatomy saw them."""
    copies = {who for who, player in method.casting.items() if player.startswith("self")}
    found = [text for ask in method.teach for text in read_by(ask, ask.who in copies)]
    writers = {name.partition(" ")[0] for name in passes if name.endswith(" writes")} - copies - {"student"}
    found += [f"the {who}'s text" for who in sorted(writers)]
    has_read = any(hasattr(ask.view, "check") for ask in method.teach) or hasattr(method.sample, "check_problem")
    found += ["references"] if has_read else []
    found += ["a verifier"] if method.needs_reward else []
    return list(dict.fromkeys(found))


def read_by(ask: Ask, is_copy: bool) -> list[str]:
    """What somebody must be able to say about a text; the student can say everything about its own."""
    if ask.who == "student" or is_copy:
        return ["a copy of the student"] if is_copy else []
    words = {
        "chosen": "log-probs",
        "topk": "best K",
        "gather": "log-probs of named tokens",
        "dist": "distribution",
        "inner": "hidden states",
        "values": "values",
    }
    return [f"the {ask.who}'s {text}" for name, text in words.items() if name in ask.want.needs]
