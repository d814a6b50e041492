"""The marked-up drafts as a small table that the page draws: every word once, numbers short, only what fits.

    words      every token's text, once
    measure    "kl", or "ratio" where a teacher gave one number per token
    problems   [{id, prompt, expected, sides: [before, after]}], a side is null or
               {reward, end, tokens: [[word, student, teacher, objection, [word, share, ...], [word, share, ...]]]}

Student and teacher are log-probs of the word; the objection is the reverse KL at its position, or how much likelier
the student found it than the teacher did. None stands for an infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opd.report.reading import Folder, Table

MOST_TOKENS = 24_000  # of all drafts together: about two megabytes of page
STRONG = 1.0  # nats: from here on the teacher objects


@dataclass(frozen=True)
class Marks:
    """What the page shows of the drafts, and what it says about them."""

    data: Table
    steps: list[int]
    shown: int  # problems
    written: int  # problems
    objected: list[tuple[int, int]]  # per step: tokens with a strong objection, all tokens

    @property
    def is_distribution(self) -> bool:
        return self.data["measure"] == "kl"


def marks(run: Folder) -> Marks | None:
    """The first and the last drafts of a run, problem by problem; None when there are none."""
    kept = run.drafts[:1] + run.drafts[1:][-1:]
    by_step = [{str(draft.get("id")): draft for draft in drafts if draft.get("tokens")} for _, drafts in kept]
    names = list(dict.fromkeys(name for drafts in by_step for name in drafts))
    if not names:
        return None
    shown = _fitting(names, by_step)
    words = Words()
    measure = "kl" if any("kl" in t for drafts in by_step for d in drafts.values() for t in d["tokens"]) else "ratio"
    problems = [_problem([drafts.get(name) for drafts in by_step], words, measure) for name in shown]
    objected = [_objected([problem["sides"][side] for problem in problems]) for side in range(len(kept))]
    data = {"words": list(words.places), "measure": measure, "steps": [step for step, _ in kept], "problems": problems}
    return Marks(data, data["steps"], len(shown), len(names), objected)


class Words:
    """Texts by number, each of them kept once."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def __call__(self, text: Any) -> int:
        return self.places.setdefault(str(text), len(self.places))


def _fitting(names: Sequence[str], by_step: Sequence[dict[str, Table]]) -> list[str]:
    """As many problems, from the first on, as a page can hold; at least one."""
    room, kept = MOST_TOKENS, list[str]()
    for name in names:
        room -= sum(len(drafts[name]["tokens"]) for drafts in by_step if name in drafts)
        if room < 0 and kept:
            break
        kept.append(name)
    return kept


def _problem(sides: Sequence[Table | None], words: Words, measure: str) -> Table:
    one = next(side for side in sides if side)
    return {
        "id": str(one.get("id")),
        "prompt": _plain(one.get("prompt")),
        "expected": None if one.get("expected") is None else str(one["expected"]),
        "sides": [_side(side, words, measure) if side else None for side in sides],
    }


def _plain(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "" if prompt is None else str(prompt)


def _side(draft: Table, words: Words, measure: str) -> Table:
    tokens = [
        [
            words(token.get("text", "")),
            token.get("student"),
            token.get("teacher"),
            _objection(token, measure),
            *([_list(token[name], words) for name in ("top", "own")] if token.get("top") and token.get("own") else []),
        ]
        for token in draft["tokens"]
    ]
    return {"reward": draft.get("reward"), "end": str(draft.get("end", "")), "tokens": tokens}


def _objection(token: Table, measure: str) -> float | None:
    if measure == "kl":
        return token.get("kl")
    ours, theirs = token.get("student"), token.get("teacher")
    return None if ours is None or theirs is None else round(max(0.0, ours - theirs), 4)


def _list(pairs: Sequence[Sequence[Any]], words: Words) -> list[Any]:
    return [value for word, share in pairs for value in (words(word), share or 0)]


def _objected(sides: Sequence[Table | None]) -> tuple[int, int]:
    numbers = [token[3] for side in sides if side for token in side["tokens"]]
    return sum(number is None or number >= STRONG for number in numbers), len(numbers)
