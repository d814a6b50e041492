"""What things are called: sentences speak of texts, and where the student acts in an environment they are told anew.

A text is written in tokens, and an answer is right; an episode is played in decisions, and it is a success.
"""

from __future__ import annotations

import re

ACTING = {
    "a word": "an action",
    "a draft": "an episode",
    "a problem": "an episode",
    "accuracy": "success",
    "answer": "episode",
    "draft": "episode",
    "problem": "episode",
    "question": "episode",
    "token": "decision",
    "word": "action",
    "right": "success",
    "wrong": "failure",
    "write": "do",
    "writes": "acts",
    "writing": "acting",
    "written": "done",
    "wrote": "did",
}  # and their plurals in -s


def acts(task: str) -> bool:
    """The task is an environment, in which a policy acts."""
    return task.startswith("gymnasium:")


def replacements(task: str) -> dict[str, str]:
    """Which words are said otherwise; none for a task of texts."""
    if not acts(task):
        return {}
    plural = {f"{word}s": f"{other}s" for word, other in ACTING.items() if f"{word}s" not in ACTING and word[0] != "w"}
    return ACTING | plural | {"words": "actions"}


def said(text: str, task: str) -> str:
    """One of our own sentences as it fits the task; names of options (--drafts) stay."""
    table = replacements(task)
    if not table:
        return text
    longest_first = sorted(table, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])({'|'.join(longest_first)})(?![\w-])", re.IGNORECASE)
    return pattern.sub(lambda found: like(found[0], table[found[0].lower()]), text)


def like(before: str, word: str) -> str:
    """The word with a capital where there was one."""
    return word[0].upper() + word[1:] if before[0].isupper() else word
