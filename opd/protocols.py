"""Who takes part in a run: writers write, teachers read, the student does both and learns.

Axes: N rows, n rows of one context, D width, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from opd.dist import Dist
from opd.errors import ModelError
from opd.rollout import Array, Group, Message, Piece, Problem, Rollout, Sampling, Visit

EVERY_LAYER = 0
Cast = Mapping[str, Any]  # who takes part, by name: "student", "teacher", ...
Ended = Callable[[Sequence[tuple[int, Array]]], None]  # told of texts: the number of each one's prompt, its tokens [n]
Hear = Callable[[Sequence[Rollout]], None]  # takes texts and does not wait for what is said of them
CAPABILITIES = ("chosen", "topk", "gather", "dist", "inner", "values", "text")


@dataclass(frozen=True)
class Want:
    """What is asked of a teacher about every row: one pass answers all of it."""

    chosen: bool = False  # log-prob of the decided token
    topk: int = 0  # the K most probable tokens
    gather: str = ""  # log-probs of the ids in this column [N, K]
    dist: bool = False  # the whole distribution, as hidden state and head
    label: bool = False  # the token that the teacher would have taken, drawn once per row from its distribution
    layers: tuple[int, ...] = ()  # states after the decided token: blocks 1..L, -1 the last one, 0 every one
    values: bool = False  # what each token is worth: the return that the teacher expects after it

    @property
    def needs(self) -> frozenset[str]:
        asked = {
            "chosen": self.chosen,
            "topk": self.topk,
            "gather": self.gather,
            "dist": self.dist or self.label,
            "inner": self.layers,
            "values": self.values,
        }
        return frozenset(name for name, value in asked.items() if value)

    def __or__(self, other: Want) -> Want:
        """Both questions in one pass."""
        return Want(
            self.chosen or other.chosen,
            max(self.topk, other.topk),
            self.gather or other.gather,
            self.dist or other.dist,
            self.label or other.label,
            tuple(sorted({*self.layers, *other.layers})),
            self.values or other.values,
        )


def depth_of(member: Any) -> int | None:
    """The transformer blocks of a model, or of a teacher that has or knows one; None where nobody tells."""
    engine = getattr(member, "engine", member)
    return len(engine.blocks) if hasattr(engine, "blocks") else getattr(engine, "depth", None)


def resolve_layers(asked: Sequence[int], depth: int, name: str) -> dict[int, int]:
    """The key under which a state is given -> the block 1..L that it comes from; 0 stands for every block."""
    if EVERY_LAYER in asked:
        asked = range(1, depth + 1)
    blocks = {layer: layer + depth + 1 if layer < 0 else layer for layer in asked}
    if wrong := [layer for layer, block in blocks.items() if not 1 <= block <= depth]:
        raise ModelError(
            f"{name} has no such layer", got=wrong, expected=f"1 to {depth}, -1 for the last, 0 for every one"
        )
    return blocks


@dataclass(frozen=True)
class Answer:
    """A teacher's answers about N rows, in the order of the contexts and of the decisions in them.

    dist answers whatever was asked about probabilities (a HeadDist, TopDist or TableDist, with `inner` states);
    chosen and gathered are narrow copies that credit may read. guessed marks what in `gathered` the teacher never said.
    """

    dist: Dist | None = None
    chosen: Tensor | None = None  # [N]
    gathered: Tensor | None = None  # [N, K]
    values: Tensor | None = None  # [N, V] expected return after each token (Q)
    value: Tensor | None = None  # [N] expected return of the teacher's own way of going on (V)
    guessed: Tensor | None = None  # [N, K] bool

    def index(self, rows: slice) -> Answer:
        """The answers about these rows."""

        def pick(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[rows]

        dist = None if self.dist is None else self.dist.index(rows)
        numbers = self.chosen, self.gathered, self.values, self.value, self.guessed
        return Answer(dist, *map(pick, numbers))


class Teacher(Protocol):
    """Local model, server, store, copy of the student, fake: one noun. They differ in `can`, `live` and `follow`."""

    @property
    def name(self) -> str: ...
    @property
    def can(self) -> frozenset[str]: ...
    @property
    def live(self) -> bool: ...  # its answers change as the student learns
    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer: ...
    def follow(self, student: Student, step: int) -> None: ...  # `step` batches are done


class Writer(Protocol):
    """The student, and every teacher that can write."""

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        """For prompt i one piece per seed in seeds[i]; the prompt is computed once. Same seed, same piece."""
        ...

    def render(self, messages: Sequence[Message]) -> Array: ...  # [T] ids, ready to be continued
    def decode(self, tokens: Array) -> str: ...


class Listener(Teacher, Protocol):
    """A teacher that can be asked about texts while others are still being written."""

    def hearing(self, want: Want) -> Hear | None:
        """Begins a batch: `read` with this `want` need not ask again about texts that the result has taken."""
        ...


class Narrator(Writer, Protocol):
    """A writer that tells of texts as they end."""

    def write_aloud(
        self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]], ended: Ended | None
    ) -> list[list[Piece]]:
        """As `write`; `ended` is told of every text, once, at a moment that follows from the texts alone."""
        ...


def write_for(
    writer: Writer,
    problems: Sequence[Problem],
    prompts: Sequence[Array],
    sampling: Sampling,
    seeds: Sequence[Sequence[int]],
) -> list[list[Piece]]:
    """What `writer` writes after the prompts of these problems; a writer that is several chooses by the problem."""
    if own := getattr(writer, "write_for", None):
        return own(problems, prompts, sampling, seeds)
    return writer.write(prompts, sampling, seeds)


class Partner(Writer, Protocol):
    """A student with whom a teacher can take turns, decision by decision."""

    def take_turns(
        self, teacher: Any, share: float, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Piece]]:
        """As `write`, but before every decision a coin gives it to the teacher with probability `share`.

        Whoever decides, the column `label` holds what the teacher would have done there.
        """
        ...


@dataclass
class Forward:
    """What a differentiable pass gives; hidden, head, states and aux are all roots of ONE backward."""

    hidden: Tensor  # [N, D] state from which each row's token is predicted
    head: Tensor  # [V, D]
    states: dict[int, Tensor] = field(default_factory=dict[int, Tensor])  # layer -> [N, D], after the row's token
    aux: Tensor | None = None  # a scalar that belongs to no row (a router's balancing loss)


class Stateful(Protocol):
    """Anything a checkpoint must hold: tensors and plain JSON values only."""

    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> Any: ...


class Fit(Stateful, Protocol):
    """A stage before step 1, in which nobody learns but the part itself."""

    @property
    def is_fitted(self) -> bool: ...
    def fit(self, cast: Cast, take: Callable[[int], list[Visit]]) -> Mapping[str, float]:
        """Fits on visits of problems that are its own; gives numbers to be recorded with the first step."""
        ...


class Student(Writer, Stateful, Protocol):
    """The model that learns."""

    @property
    def name(self) -> str: ...
    @property
    def vocab(self) -> int: ...  # real tokens; the head may be padded
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...  # in which columns are kept: float32, or float64 for a float64 model

    def trunk(self, tokens: Sequence[Array], positions: Sequence[Array], layers: tuple[int, ...]) -> Forward:
        """One pass over sequences [T_i] of ids, or [T_i, ...] of observations (Rollout.fed).

        Rows are the decided positions [n_i] of each, concatenated.
        """
        ...

    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer: ...
    def decode_token(self, token: int) -> str: ...  # one token as a person should see it
    def parameters(self) -> Iterable[torch.nn.Parameter]: ...
    def save(self, folder: Path) -> None: ...  # as a folder that other tools load


class Spelling(Student, Protocol):
    """A student that knows how it would have written a text."""

    def encode(self, text: str) -> Array: ...  # [n] ids of a whole answer, its end of text included


class Task(Protocol):
    """Problems to learn from, others to be examined on, and a grade in [0, 1] for an answer."""

    @property
    def name(self) -> str: ...
    @property
    def train(self) -> Sequence[Problem]: ...
    @property
    def held_out(self) -> Sequence[Problem]: ...

    def grade(self, problem: Problem, text: str) -> float | None: ...  # None: this task can't tell


class Sample(Protocol):
    """Who writes, and where: visits of problems -> groups of rollouts."""

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]: ...
