"""What a teacher was asked before anybody needed to know: kept by text and question, and taken once.

Axes: n rows of one text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from opd.protocols import Want
from opd.rollout import GIVEN, Rollout

Key = tuple[bytes, bytes]  # the tokens of a text, and which of them are asked about
Columns = Mapping[str, Any]  # [n, ...] what is said of one text, by name
Read = Callable[[Any], Sequence[Columns]]  # answers as they arrived -> what they say of every text


def key_of(text: Rollout) -> Key:
    return text.tokens.tobytes(), (text.author > GIVEN).tobytes()


@dataclass(frozen=True, eq=False)
class Asked:
    """One question about some texts, and the answers on their way."""

    want: Want
    keys: Sequence[Key]
    answers: Future[Any]
    read: Read


@dataclass
class Early:
    """Questions whose answers nobody has taken yet; `vain` counts texts that nobody wanted to know of in the end."""

    waiting: list[Asked] = field(default_factory=list[Asked])
    vain: int = 0

    def unasked(self, texts: Sequence[Rollout], want: Want) -> list[Rollout]:
        """Those of the texts that the question was not put about yet, each of them once."""
        known = {key for asked in self.waiting if asked.want == want for key in asked.keys}
        different = {key_of(text): text for text in texts}
        return [text for key, text in different.items() if key not in known]

    def add(self, texts: Sequence[Rollout], want: Want, answers: Future[Any], read: Read) -> None:
        self.waiting.append(Asked(want, [key_of(text) for text in texts], answers, read))

    def take(self, texts: Sequence[Rollout], want: Want, wait: Callable[[Future[Any]], Any]) -> dict[int, Columns]:
        """What was asked ahead of these texts, by their numbers; answers about none of them are not waited for.

        The question is then forgotten. Raises what went wrong when it was asked.
        """
        keys, found = [key_of(text) for text in texts], dict[Key, Columns]()
        needed = {*keys}
        try:
            for asked in self.waiting:
                if asked.want == want and not needed.isdisjoint(asked.keys):
                    found.update(zip(asked.keys, asked.read(wait(asked.answers)), strict=True))
        except BaseException:
            self.forget(self.waiting)
            raise
        self.forget([asked for asked in self.waiting if asked.want == want], needed)
        return {i: found[key] for i, key in enumerate(keys) if key in found}

    def forget(self, dropped: Sequence[Asked], taken: Set[Key] = frozenset()) -> None:
        """What of it is still on its way is called back, and what was not taken was asked in vain."""
        for asked in dropped:
            asked.answers.cancel()
            self.vain += len({*asked.keys} - taken)
        self.waiting = [asked for asked in self.waiting if asked not in dropped]

    def tell(self) -> dict[str, float]:
        """How much was asked for nothing since this was last told."""
        told, self.vain = self.vain, 0
        return {"served.vain": float(told)}
