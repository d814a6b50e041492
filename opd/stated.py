"""What a text says its final answer is, in any of the ways in which models mark one."""

from __future__ import annotations

import re

TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
HASHES = re.compile(r"####\s*(.+)")
SENTENCE = re.compile(r"\banswer\s*(?:is|:|=)[\s:*]*(.+?)[\s*.]*$", re.IGNORECASE)


def final_answer(text: str) -> str:
    """What a text finally says: its marked answer, else what its last line calls the answer, else its last line."""
    text = text.rpartition("</think>")[2].strip()
    line = text.rpartition("\n")[2].strip()
    sentence = SENTENCE.search(line)
    return marked(text) or (sentence[1] if sentence else line)


def marked(text: str) -> str | None:
    """The last <answer>..</answer>, else the last \\boxed{..}, else what follows the last ####."""
    if tags := TAG.findall(text):
        return tags[-1].strip()
    if (inside := boxed(text)) is not None:
        return inside
    hashes = HASHES.findall(text)
    return hashes[-1].strip() if hashes else None


def boxed(text: str) -> str | None:
    """The content of the last \\boxed{..}, braces inside included; None if it never closes."""
    _, found, rest = text.rpartition("\\boxed{")
    depth = 1
    for place, letter in enumerate(rest if found else ""):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[:place].strip()
    return None
