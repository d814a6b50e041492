"""What a run does not learn from, whatever the method: named tokens, stop tokens, the start of an answer."""

from __future__ import annotations

from typing import Any

from opd.errors import SettingError
from opd.method import Credit
from opd.parts.credit import SkipFirst, SkipTokens
from opd.settings import Settings


def masks(settings: Settings, student: Any) -> list[Credit]:
    """Credits that come before the method's own, so that it sees what is kept."""
    found: list[Credit] = []
    if settings.mask:
        ids = dict.fromkeys(token_id(name, student) for name in settings.mask)
        found.append(SkipTokens(tuple(ids), settings.mask_which))
    if settings.stop_token == "mask":
        if not student.stops:
            raise SettingError(f"stop_token=mask: {student.name} has no stop token", remedy="Say stop_token=keep")
        found.append(SkipTokens(tuple(sorted(student.stops)), why="stop"))
    return [*found, SkipFirst(settings.skip_first)] if settings.skip_first else found


def token_id(name: int | str, student: Any) -> int:
    """The id of a token that a user names: by number (on a command line, in digits), as it stands in the vocabulary, or
    by its text.
    """
    if isinstance(name, int) or name.isdecimal():
        return _known(int(name), student)
    vocabulary: dict[str, int] = student.tokenizer.get_vocab()
    if name in vocabulary:
        return _known(vocabulary[name], student)
    ids: list[int] = student.tokenizer.encode(name, add_special_tokens=False)
    if len(ids) != 1:
        pieces = ", ".join(f"{student.decode_token(i)!r} ({i})" for i in ids) or "nothing"
        raise SettingError(
            f"mask {name!r} is not one token of {student.name}",
            got=pieces,
            expected="one token",
            remedy="Name the pieces that should be masked, by text or number",
        )
    return _known(ids[0], student)


def _known(token: int, student: Any) -> int:
    if not 0 <= token < student.vocab:
        what = f"mask: {student.name} has no such token"
        raise SettingError(what, got=token, expected=f"an id from 0 to {student.vocab - 1}")
    return token
