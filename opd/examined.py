"""Which held-out problems a run is examined on, when some are set aside to choose settings with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opd.errors import SettingError
from opd.rollout import Problem


def split(held_out: Sequence[Problem], tuning: int) -> tuple[list[Problem], list[Problem]]:
    """`tuning` problems, drawn with a fixed seed, and all others; each part in the order of the task."""
    if tuning and not tuning < len(held_out):
        got, expected = f"tuning_problems={tuning}", f"fewer than the {len(held_out)} held-out problems"
        raise SettingError("no problem would be left to be examined on", got=got, expected=expected)
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(held_out))
    chosen = set(order[:tuning].tolist())
    parts = [p for i, p in enumerate(held_out) if i in chosen], [p for i, p in enumerate(held_out) if i not in chosen]
    return parts


def examined(held_out: Sequence[Problem], tuning: int, part: str, most: int) -> list[Problem]:
    """At most `most` problems of the part that is "tuning" or "reported"."""
    aside, reported = split(held_out, tuning)
    problems = aside if part == "tuning" else reported
    if not problems:
        raise SettingError("there are no tuning problems", got="tuning_problems=0", expected="at least 1")
    return problems[:most]
