"""A method says who writes, who reads, how answers become credit, what is differentiated, and what is averaged.

loss = sum over terms, sum over rows of  weight[term, n] * loss[term](student[n], row[n])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from opd.dist import Dist
from opd.errors import MethodError
from opd.protocols import Cast, Fit, Sample, Stateful, Want
from opd.rollout import Group, Rollout
from opd.rows import Rows

View = Callable[[Rollout, Group], list[Rollout]]  # what the reader is shown: no context, or one
Credit = Callable[[Rows], Rows]  # narrow columns, whole batch, no gradient
Loss = Callable[[Dist, Rows], Tensor]  # [n]; may be an nn.Module with parameters of its own
Mean = Callable[[Rows], Tensor]  # [N] weights over one update
Observe = Callable[[Dist, Rows], dict[str, Tensor]]  # named [n] measurements, no gradient, same chunk
Schedule = Callable[[int], float]  # step -> value
Hook = Callable[[Cast, Mapping[str, float], int], Mapping[str, float]]  # a finished batch, its step -> more metrics


def plain(rollout: Rollout, group: Group) -> list[Rollout]:
    """The view that shows the reader exactly what the writer had before it."""
    return [rollout]


def unchanged(rows: Rows) -> Rows:
    """The credit that leaves the table as it is."""
    return rows


@dataclass(frozen=True)
class Ask:
    """One question to one reader about every row, under one view; its answer becomes the column `into`.

    `into` holds the distributions, as far as they were asked for: whole, the best tokens, or those that were named;
    `into.chosen`, `into.gathered` and `into.label` what was asked for by row; `into.values` [N, V] and `into.value` [N]
    what the teacher expects to be earned. `into.guessed` [N, K] marks the named tokens of which it said nothing.

    Rows that the view shows nothing of lose `keep`; where the ask is `optional` they keep it, the boolean column
    `into.shown` is false there, numbers are nan and distributions mean nothing. What a view shows that does not fit the
    reader's context is not shown by an optional ask (`into.unfit` is true), and an error by another.
    """

    into: str
    who: str
    want: Want
    view: View = plain
    optional: bool = False


@dataclass(frozen=True)
class Chain:
    """Credits one after the other: the one place where parts compose, because there the type closes."""

    parts: tuple[Credit, ...]

    def __call__(self, rows: Rows) -> Rows:
        for part in self.parts:
            rows = part(rows)
        return rows


def chain(*parts: Credit) -> Chain:
    return Chain(parts)


def parts(credit: Credit) -> Iterator[Credit]:
    """A credit's links, chains within chains included."""
    if isinstance(credit, Chain):
        for link in credit.parts:
            yield from parts(link)
    else:
        yield credit


@dataclass(frozen=True)
class Term:
    """One summand of the loss, with its own mean over the rows that its boolean column `rows` marks."""

    loss: Loss
    mean: Mean
    scale: float | Schedule = 1.0
    rows: str = "keep"

    def scaled(self, step: int) -> float:
        return self.scale(step) if callable(self.scale) else self.scale


@dataclass(frozen=True)
class Updates:
    """How many optimizer steps a batch is used for: `epochs` passes, each split by group into `parts`."""

    epochs: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.parts < 1:
            raise MethodError(
                "updates of a batch", got=f"epochs={self.epochs}, parts={self.parts}", expected="at least 1 each"
            )


@dataclass(frozen=True, kw_only=True)
class Method:
    """A published method, said in the five slots."""

    sample: Sample
    teach: tuple[Ask, ...] = ()
    credit: Credit = unchanged
    terms: dict[str, Term]
    updates: Updates = Updates()
    observe: tuple[Observe, ...] = ()  # on a bounded number of rows of every update
    lookup: tuple[Observe, ...] = ()  # on every row, so they may only look up what a loss has made
    hooks: tuple[Hook, ...] = ()  # told about every finished batch; what they remember belongs into `state`
    state: dict[str, Stateful] = field(default_factory=dict[str, Stateful])
    fit: Fit | None = None  # a stage before step 1; it is a state too
    casting: dict[str, str] = field(default_factory=dict[str, str])  # who plays a role when the user does not say

    @property
    def layers(self) -> tuple[int, ...]:
        """The student's own layers whose states some loss differentiates."""
        return tuple(sorted({layer for term in self.terms.values() for layer in getattr(term.loss, "layers", ())}))

    @property
    def support(self) -> int:
        """The largest K that any part asks for."""
        asked = [ask.want.topk for ask in self.teach]
        return max(asked + [getattr(term.loss, "k", 0) for term in self.terms.values()], default=0)

    @property
    def roles(self) -> Sequence[str]:
        """Everybody who is asked about text, or writes it (`writers` of the sample)."""
        return sorted({ask.who for ask in self.teach} | {*getattr(self.sample, "writers", ())})

    @property
    def needs_reward(self) -> bool:
        """Whether some part can't do without a grade for every answer."""
        return any(
            getattr(part, "needs_reward", False) for part in (*parts(self.credit), *(a.view for a in self.teach))
        )
