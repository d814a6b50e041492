"""Plain text beside the problems: what keeps a student a language model while it learns something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opd import maths
from opd.errors import DataError, MethodError, require
from opd.jsonlines import lines, type_of
from opd.method import Mean, Term
from opd.parts.losses import CrossEntropy, Everywhere
from opd.parts.sample import writers_of
from opd.protocols import Cast, Sample, Spelling
from opd.rollout import DATA, GIVEN, Array, Group, Problem, Rollout, Sampling, Visit
from opd.rows import Rows

PLAIN = "plain"  # the column of its rows
EXAMPLE = '{"text": "..."}'
STREAM = 0xC0  # of the random numbers that choose windows; the coins of a batch have another


@dataclass
class WithCorpus:
    """What `fresh` writes, and after it one window of a corpus per problem: texts of DATA that nobody graded.

    file: JSON lines with a column `text`, or any other file as one text (UTF-8). Texts are written one after the other,
    each ended as the student ends its own, and cut into windows of `window` tokens, the first of which is given. A
    batch draws its windows by the run's seed and its own number; no window is twice in a batch that has fewer.
    """

    file: str
    window: int
    fresh: Sample = field(kw_only=True)

    def __post_init__(self) -> None:
        require(self.window >= 2, "tokens of a window of the corpus", got=self.window, expected="at least 2")
        self._windows: Array | None = None  # [W, window], once there is somebody who spells

    @property
    def writers(self) -> tuple[str, ...]:
        return writers_of([self.fresh])

    def check(self, cast: Cast) -> None:
        """The file can be read, and holds at least one window that fits the student."""
        if check := getattr(self.fresh, "check", None):
            check(cast)
        student = cast["student"]
        if not hasattr(student, "encode"):
            got = f"a {type(student).__name__} as student"
            raise MethodError(f"{student.name} cannot read a corpus", got=got, expected="a language model")
        if self.window > getattr(student, "context", self.window):
            what, expected = f"a window of the corpus does not fit {student.name}", f"at most {student.context} tokens"
            raise DataError(what, got=self.window, expected=expected, remedy="Lower --window")
        self.windows(student)

    def windows(self, student: Spelling) -> Array:
        """[W, window] ids of the whole corpus; what is left at its end is dropped."""
        if self._windows is None:
            ids = np.concatenate([np.empty(0, np.int32), *(student.encode(text) for text in texts(Path(self.file)))])
            if len(ids) < self.window:
                expected = f"at least one window of {self.window}"
                raise DataError(f"corpus {self.file} is too short", got=f"{len(ids)} tokens", expected=expected)
            self._windows = ids[: len(ids) // self.window * self.window].reshape(-1, self.window)
        return self._windows

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        student = cast["student"]
        windows = self.windows(student)
        rng = np.random.Generator(np.random.Philox(key=[visits[0].run_seed % 2**64, step], counter=[0, 0, 0, STREAM]))
        chosen = rng.choice(len(windows), len(visits), replace=len(windows) < len(visits))
        written = self.fresh(cast, visits, step)
        labelled = any("label" in rollout.columns for group in written for rollout in group.rollouts)
        return [*written, *(_group(student, windows[i], int(i), labelled) for i in chosen)]


def _group(student: Any, ids: Array, number: int, labelled: bool) -> Group:
    problem = Problem(f"corpus/{number}", "")
    author = np.full(len(ids), DATA, np.int8)
    author[0] = GIVEN
    n = len(ids) - 1
    columns = {"behaviour": np.zeros(n), "untruncated": np.full(n, np.nan)}
    if labelled:  # all texts of a batch have one set of columns; what should be said here is the text itself
        columns["label"] = ids[1:].astype(np.int64)
    tags, text = {"reward": np.nan}, student.decode(ids[1:])
    return Group(
        problem, (Rollout(ids, author, problem, Sampling(), columns=columns, tags=tags, text=text),), student.render
    )


def texts(path: Path) -> Iterator[str]:
    """The texts of a corpus, none of them empty."""
    try:
        if path.suffix in (".jsonl", ".json"):
            yield from (_text(row, where) for where, row in lines(path, EXAMPLE) if row.get("text") != "")
        else:
            yield path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the corpus {path} cannot be read", got=str(error), expected="a text file, or JSON lines"
        ) from error


def _text(row: dict[str, Any], where: str) -> str:
    if not isinstance(text := row.get("text"), str):
        raise DataError(f"{where} has no text", got=type_of(text), expected=EXAMPLE)
    return text


@dataclass(frozen=True)
class Aside:
    """The column `plain` marks the kept rows of texts that came along, which `keep` then leaves out.

    No credit, and no mean over the kept rows, is about them; a term with rows="plain" is.
    """

    def __call__(self, rows: Rows) -> Rows:
        came_along = rows["keep"] & (rows["author"] == DATA)
        return rows.plus(**{PLAIN: came_along, "keep": rows["keep"] & ~came_along})


def on_corpus(distilled: float, mean: Mean, teacher: str = "teacher") -> dict[str, Term]:
    """What the rows of a corpus teach: `distilled` times the cross-entropy to the teacher, the rest to the text."""
    require(0 <= distilled <= 1, "the teacher's share of what a corpus teaches", got=distilled, expected="0 to 1")
    found = {
        "plain": Term(CrossEntropy(), mean, 1 - distilled, rows=PLAIN),
        "soft": Term(Everywhere(maths.cross_entropy, teacher), mean, distilled, rows=PLAIN),
    }
    return {name: term for name, term in found.items() if term.scale}
