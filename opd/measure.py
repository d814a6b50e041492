"""Numbers about a whole batch, from columns that are there anyway: no model is asked again.

Everything here reads narrow columns and works on any table, inside a run or outside; what can't be measured is absent.
Logs are natural, "student" is the log-prob of the model itself at temperature 1.

Axes: N rows, B sequences.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from opd.protocols import Student
from opd.rollout import STUDENT, Array
from opd.rows import Rows

Numbers = dict[str, float]

KINDS = ("digits", "words", "punctuation", "space", "special")
LOOP_TIMES, LOOP_ROWS, LOOP_PERIOD = 3, 8, 128
FEWEST = 3  # samples that have an order worth a correlation
NAMED = re.compile(r"<[^\s<>]+>")  # <think> is no special token for every tokenizer, but it is one for a reader


@dataclass
class Kinds:
    """What sort of text a token is, one of KINDS; every id is decoded once."""

    student: Student
    known: dict[int, int] = field(default_factory=dict[int, int])

    def __call__(self, tokens: Array) -> Array:
        """[N] ids -> [N] numbers in KINDS."""
        ids, where = np.unique(tokens, return_inverse=True)
        for token in map(int, ids):
            if token not in self.known:
                shown = self.student.decode_token(token)
                dropped = bool(shown) and not self.student.decode(np.array([token]))
                self.known[token] = KINDS.index("special" if dropped else kind(shown))
        return np.array([self.known[int(token)] for token in ids])[where]


def kind(text: str) -> str:
    """One of KINDS. Digits may stand beside punctuation, and letters make a word of anything."""
    if NAMED.fullmatch(text.strip()):
        return "special"
    if any(c.isalpha() for c in text):
        return "words"
    if any(c.isdigit() for c in text):
        return "digits"
    return "punctuation" if text.strip() else "space"


@dataclass
class Measures:
    """All numbers of this file about one table. `teacher` is the column that the method's first question fills."""

    kinds: Kinds | None = None
    teacher: str = "teacher"

    def __call__(self, rows: Rows) -> Numbers:
        table = {name: column.cpu().numpy() for name, column in rows.narrow().items()}
        student, teacher = student_logprob(table), table.get(f"{self.teacher}.chosen")
        sequence, looping = table["sequence"], loops(table["token"], table["sequence"], table["row"])
        numbers = {"length.max": float(table["length"].max()), "loops": float(looping.mean())}
        numbers |= inside_and_outside("loops.student", student, looping)
        kinds = self.kinds(table["token"]) if self.kinds else None
        numbers |= trivial_groups(table)
        numbers |= {} if kinds is None else {f"kinds.{KINDS[k]}": float((kinds == k).mean()) for k in np.unique(kinds)}
        if teacher is not None:
            ratio = teacher - student
            numbers |= _means({"teacher.chosen": teacher, "ratio": ratio})
            numbers |= inside_and_outside("loops.teacher", teacher, looping)
            numbers |= by_position(ratio, table["row"])
            numbers |= {} if kinds is None else by_kind(ratio, kinds)
            numbers |= ranks(teacher, table["reward"], sequence) if "reward" in table else {}
            numbers |= concentration(table.get("advantage", ratio)[table["keep"]])
        elif "advantage" in table:
            numbers |= concentration(table["advantage"][table["keep"]])
        return numbers | engine_gap(table)


def student_logprob(table: Mapping[str, Array]) -> Array:
    """[N] what the student gave the decided token: when it wrote it, else when it learned from it, else nan."""
    learned = table.get("student.chosen", np.full(len(table["keep"]), np.nan))
    return np.where(table["author"] == STUDENT, table.get("untruncated", learned), learned)


def concentration(advantage: Array) -> Numbers:
    """Share of negative advantages, and how much of their absolute sum the greatest 1 % and 10 % (rounded up) carry."""
    known = advantage[~np.isnan(advantage)]
    size = np.sort(np.abs(known))[::-1]
    if not len(size):
        return {}
    numbers = {"advantage.negative": float((known < 0).mean())}
    if 0 < size.sum() < np.inf:
        for percent in (1, 10):
            most = -(-len(size) * percent // 100)
            numbers[f"advantage.top{percent}"] = float(size[:most].sum() / size.sum())
    return numbers


def trivial_groups(table: Mapping[str, Array]) -> Numbers:
    """groups.trivial: share of the groups of several graded answers whose rewards are all the same."""
    if "reward" not in table:
        return {}
    first = np.unique(table["sequence"], return_index=True)[1]
    first = first[~np.isnan(table["reward"][first])]
    group, reward = table["group"][first], table["reward"][first]
    several = [reward[group == one] for one in np.unique(group) if (group == one).sum() > 1]
    return {"groups.trivial": float(np.mean([np.ptp(rewards) == 0 for rewards in several]))} if several else {}


def by_position(ratio: Array, row: Array) -> Numbers:
    """Means over the rows 1, 2 to 3, 4 to 7, ... of an answer, each called by its first row."""
    bucket = np.frexp(row + 1)[1] - 1  # the whole part of log2
    return _means({f"ratio.at.{2**b}": ratio[bucket == b] for b in np.unique(bucket)})


def by_kind(ratio: Array, kinds: Array) -> Numbers:
    return _means({f"ratio.on.{KINDS[k]}": ratio[kinds == k] for k in np.unique(kinds)})


def loops(token: Array, sequence: Array, row: Array) -> Array:
    """[N] bool: the row lies in a stretch that repeats itself.

    That is a stretch of one sequence with a period of at most LOOP_PERIOD rows, at least LOOP_TIMES periods and at
    least LOOP_ROWS rows long; its first period counts too. One pass over the table for every period.
    """
    order = np.lexsort((row, sequence))
    token, sequence = token[order], sequence[order]
    found = np.zeros(len(token), bool)
    longest = int(np.unique(sequence, return_counts=True)[1].max(initial=0))
    for period in range(1, min(LOOP_PERIOD, longest // LOOP_TIMES) + 1):
        same = (token[period:] == token[:-period]) & (sequence[period:] == sequence[:-period])
        needed = max(LOOP_TIMES * period, LOOP_ROWS) - period
        if same.sum() < needed:
            continue
        edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8))).reshape(-1, 2)
        for start, end in edges[edges[:, 1] - edges[:, 0] >= needed]:
            found[start : end + period] = True
    back = np.empty_like(found)
    back[order] = found
    return back


def inside_and_outside(name: str, logprob: Array, looping: Array) -> Numbers:
    """Mean log-prob in loops and elsewhere, where there are loops."""
    if not looping.any():
        return {}
    return _means({f"{name}.inside": logprob[looping], f"{name}.outside": logprob[~looping]})


def ranks(teacher: Array, reward: Array, sequence: Array) -> Numbers:
    """Spearman's correlation of the teacher's mean log-prob of an answer with its reward, over all graded answers."""
    known = ~np.isnan(teacher) & ~np.isnan(reward)
    if not known.any():
        return {}
    _, first, where = np.unique(sequence[known], return_index=True, return_inverse=True)
    means = np.bincount(where, teacher[known]) / np.bincount(where)
    correlation = spearman(means, reward[known][first])
    return {} if correlation is None else {"reward.rank": correlation}


def spearman(a: Array, b: Array) -> float | None:
    """The correlation of ranks, ties averaged; None for fewer than FEWEST pairs or a side that is constant."""
    if len(a) < FEWEST or len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return None
    return float(np.corrcoef(rank(a), rank(b))[0, 1])


def rank(values: Array) -> Array:
    """Ranks from 1, equal values share the mean of theirs."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]


def engine_gap(table: Mapping[str, Array]) -> Numbers:
    """|log-prob when learning - log-prob when writing| of the student's own tokens, before any optimizer step.

    `update` is the number of the update in which a row was seen.
    """
    if "student.chosen" not in table or "untruncated" not in table:
        return {}
    fresh = (table["author"] == STUDENT) & (table.get("update", np.zeros(len(table["keep"]))) == 0)
    gap = np.abs(table["student.chosen"] - table["untruncated"])[fresh]
    gap = gap[~np.isnan(gap)]
    return {"engine.gap": float(gap.mean()), "engine.gap.max": float(gap.max())} if len(gap) else {}


def _means(columns: Mapping[str, Array]) -> Numbers:
    """Means over what is known; of nothing there is none."""
    known = {name: column[~np.isnan(column)] for name, column in columns.items()}
    return {name: float(column.mean(dtype=np.float64)) for name, column in known.items() if len(column)}
