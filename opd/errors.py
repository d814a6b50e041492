"""Every error a user can meet says what was got, what was expected and what to do.

OpdError
├── SettingError      an option, key or value that cannot be (exit code 2)
├── DataError         a task file or problem that cannot be used
├── ModelError        a model folder, tokenizer or checkpoint that cannot be used
├── TeacherError      a teacher that cannot answer what the method asks
│   └── Unanswered    one elsewhere that did not answer, or not with what can be used; the run can go on later
├── AlignmentError    a view that changed what the student decided
├── MethodError       parts of a method that do not fit together
├── SaveError         a folder that could not be written; what stood there before still stands
└── NonFiniteError    a loss or gradient that is not a number, three times in a row
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OpdError(Exception):
    """The root: `what` happened, with what was `got`, what was `expected` and the `remedy`, as one sentence each."""

    def __init__(self, what: str, *, got: object = None, expected: object = None, remedy: str = "") -> None:
        parts = [what]
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        self.evidence = ": ".join([parts[0], ", ".join(parts[1:])]) if parts[1:] else what
        self.remedy = remedy
        super().__init__(f"{self.evidence}. {remedy}" if remedy else f"{self.evidence}.")


class SettingError(OpdError): ...


class DataError(OpdError): ...


class ModelError(OpdError): ...


class TeacherError(OpdError): ...


class Unanswered(TeacherError): ...


class AlignmentError(OpdError): ...


class MethodError(OpdError): ...


class SaveError(OpdError): ...


class NonFiniteError(OpdError): ...


def nearest(name: str, names: Iterable[str]) -> str:
    """The remedy for a misspelt name: the closest valid one, or the whole list."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Valid names: {', '.join(names)}."


def require(true: bool, what: str, *, got: object, expected: object) -> None:
    """A setting that cannot be is refused where it is first known."""
    if not true:
        raise SettingError(what, got=got, expected=expected)


def one_of(what: str, name: str, names: Iterable[str]) -> None:
    """A name out of a fixed list."""
    if name not in (names := list(names)):
        raise SettingError(what, got=repr(name), remedy=nearest(name, names))
