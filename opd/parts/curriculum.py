"""What a run does next follows from what it has measured: more of its own text, or longer answers.

Rising and Ladder are hooks that are told about every finished batch, and states of a checkpoint; the samples Replay and
Climbing ask them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from opd.errors import MethodError, require
from opd.parts.memory import Memory, packed, unpacked
from opd.parts.sample import OneTurn, writers_of
from opd.protocols import Cast, Sample, Student, Want
from opd.rollout import Group, Visit

ENTROPY = "student.entropy"


@dataclass
class Rising:
    """A chance that goes up by `by` when the student's loss on held-back texts is `tolerance` above the last such loss.

    The texts are what `texts` writes for `prompts` problems before step 1, and are never learned from. Their loss is
    minus the mean log-prob, looked at after every `every` batches (DistiLLM, arXiv 2402.03898, and its code).
    """

    texts: Sample
    value: float = 0.0
    every: int = 10
    prompts: int = 64
    by: float = 0.1
    tolerance: float = 0.1
    before: float = field(default=0.0, init=False, repr=False)
    held: list[Group] = field(default_factory=list[Group], init=False, repr=False)

    def __post_init__(self) -> None:
        require(0 <= self.value <= 1, "the chance at the start", got=self.value, expected="a number in [0, 1]")
        require(self.every >= 1, "batches between two looks (every)", got=self.every, expected="at least 1")
        require(self.prompts >= 1, "held-back texts", got=self.prompts, expected="at least 1")
        require(self.by >= 0, "what the chance rises by", got=self.by, expected="at least 0")

    @property
    def is_fitted(self) -> bool:
        return bool(self.held)

    def fit(self, cast: Cast, take: Callable[[int], list[Visit]]) -> Mapping[str, float]:
        """Writes the texts, and looks at the untaught student."""
        self.held = self.texts(cast, take(self.prompts), 0)
        self.before = self._loss(cast)
        return {}

    def __call__(self, cast: Cast, metrics: Mapping[str, float], step: int) -> Mapping[str, float]:
        numbers = {"written.chance": self.value}  # of the batch that is done
        if (step + 1) % self.every == 0:
            numbers["held_back.loss"] = loss = self._loss(cast)
            if loss >= self.before + self.tolerance:
                self.value, self.before = min(1.0, self.value + self.by), loss
        return numbers

    def _loss(self, cast: Cast) -> float:
        student: Student = cast["student"]
        chosen = student.read([one for group in self.held for one in group.rollouts], Want(chosen=True)).chosen
        if chosen is None:
            raise MethodError("a loss on held-back texts", got="none that were written", remedy="Fit before step 1")
        return -float(chosen.double().mean())

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "before": self.before, "held": packed(self.held)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value, self.before, self.held = state["value"], state["before"], unpacked(state["held"])


@dataclass(frozen=True)
class Replay:
    """A batch of `data`, or with the chance `rising.value` of the student's text: new, or drawn from `memory`.

    Of the student's batches the share new(step) is written anew, and every one until memory is full; new text is
    learned from and joins the memory (DistiLLM, arXiv 2402.03898, as its code has it).
    """

    data: Sample
    fresh: Sample
    memory: Memory
    rising: Rising
    new: Callable[[int], float]

    @property
    def writers(self) -> tuple[str, ...]:
        return writers_of([self.data, self.fresh])

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        chance = np.random.Generator(np.random.Philox(key=[visits[0].run_seed % 2**64, step]))
        coin, own = chance.random(), self.rising.value
        if coin >= own:
            return self.data(cast, visits, step)
        if self.memory.is_full and coin >= own * self.new(step):
            return self.memory.draw(len(visits), chance, cast["student"].render)
        groups = self.fresh(cast, visits, step)
        self.memory.add(groups)
        return groups


@dataclass
class Ladder:
    """Lengths of answers, climbed while the student stays undecided enough.

    After every `every` batches the mean of their entropies (nats per token, before each was learned from) is held
    against `floor`: at or above it the next length follows, below it the ladder goes back to the last length that
    was stable and stays there (arXiv 2605.16826).
    """

    lengths: tuple[int, ...]
    floor: float
    every: int
    rung: int = field(default=0, init=False, repr=False)
    stopped: bool = field(default=False, init=False, repr=False)
    seen: list[float] = field(default_factory=list[float], init=False, repr=False)

    def __post_init__(self) -> None:
        climbs = all(low < high for low, high in pairwise(self.lengths))
        require(
            len(self.lengths) > 0 and self.lengths[0] >= 1 and climbs, "a ladder of lengths", got=self.lengths,
            expected="whole numbers from 1, each above the one before",
        )  # fmt: skip
        require(self.every >= 1, "batches on every rung", got=self.every, expected="at least 1")

    @property
    def length(self) -> int:
        return self.lengths[self.rung]

    def __call__(self, cast: Cast, metrics: Mapping[str, float], step: int) -> Mapping[str, float]:
        numbers = {"ladder.length": float(self.length)}  # of the batch that is done
        if self.stopped:
            return numbers
        if ENTROPY not in metrics:
            raise MethodError("a ladder of lengths needs the student's entropy", got=f"no metric {ENTROPY!r}")
        self.seen.append(metrics[ENTROPY])
        if len(self.seen) == self.every:
            numbers["ladder.entropy"] = entropy = sum(self.seen) / self.every
            self.seen = []
            self._step(entropy)
        return numbers

    def _step(self, entropy: float) -> None:
        if entropy < self.floor:
            self.stopped, self.rung = True, max(0, self.rung - 1)
        elif self.rung + 1 < len(self.lengths):
            self.rung += 1

    def state_dict(self) -> dict[str, Any]:
        return {"rung": self.rung, "stopped": self.stopped, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rung, self.stopped, self.seen = state["rung"], state["stopped"], list(state["seen"])


@dataclass(frozen=True)
class Climbing:
    """`turn` with answers as long as the ladder allows at the moment."""

    turn: OneTurn
    ladder: Ladder

    @property
    def writers(self) -> tuple[str, ...]:
        return self.turn.writers

    def check(self, cast: Cast) -> None:
        """A rung above the run's own limit would be climbed in vain."""
        most, longest = getattr(cast["student"], "max_new", None), self.ladder.lengths[-1]
        if most is not None and most < longest:
            raise MethodError(
                "the ladder of lengths is higher than an answer may be", got=f"{longest} tokens",
                expected=f"at most {most}", remedy=f"Say --max-new {longest}",
            )  # fmt: skip

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        sampling = replace(self.turn.sampling, max_new=self.ladder.length)
        return replace(self.turn, sampling=sampling)(cast, visits, step)
