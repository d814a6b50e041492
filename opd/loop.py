"""The training loop, as a list of verbs: write, grade, teach, credit, learn, follow, record.

Nothing here knows a method, and no column that a method invented.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from opd import ahead, routes
from opd.budget import Budget
from opd.errors import DataError, NonFiniteError
from opd.meter import count, metered
from opd.method import Method
from opd.protocols import Cast, Student, Task
from opd.rollout import Array, End, Group, Problem, Rollout, Visit
from opd.rows import Rows
from opd.step import Outcome, gradient, prepare, updates

FIT = -3  # the number of the visits of a stage before step 1: training counts from 0
PATIENCE = 3  # updates in a row without a finite gradient before the run stops


@dataclass
class Source:
    """An endless, seeded walk over a task's problems: every epoch its own order, every visit its own number."""

    problems: Sequence[Problem]
    seed: int
    position: int = 0

    def take(self, n: int) -> list[Visit]:
        size = len(self.problems)
        if not size:
            raise DataError("the task has no training problem", expected="at least one")
        places = range(self.position, self.position + n)
        self.position += n
        orders = {epoch: self._order(epoch) for epoch in {place // size for place in places}}
        return [Visit(self.problems[orders[p // size][p % size]], p // size, self.seed) for p in places]

    def _order(self, epoch: int) -> Array:
        return np.random.Generator(np.random.Philox(key=[self.seed % 2**64, epoch])).permutation(len(self.problems))


@dataclass(frozen=True)
class Batch:
    """One finished step: what was written, the table with everything known about it, and numbers about both."""

    step: int
    groups: list[Group]
    rows: Rows
    sequences: list[Array]
    metrics: dict[str, float]


class Optimizer(Protocol):
    def step(self) -> Any: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...
    @property
    def param_groups(self) -> list[dict[str, Any]]: ...


@dataclass
class Training:
    """Everything a loop needs; a run builds it, a checkpoint restores its moving parts."""

    student: Student
    cast: Cast  # the student and everybody who is asked, by name
    task: Task
    method: Method
    optimizer: Optimizer
    rate: Callable[[int], float]  # step -> learning rate
    source: Source
    steps: int
    batch: int  # problems per step
    max_grad_norm: float = 1.0
    micro_tokens: int = 8192
    chunk: int = 0
    step: int = 0  # the next one to do
    failures: int = 0  # updates in a row whose gradient was not finite
    measure: Callable[[Rows], Mapping[str, float]] = field(default=lambda rows: {})  # numbers about a finished table
    on_failure: Callable[[int, Rows], str] = field(default=lambda step, rows: "")  # saves the rows, says where
    budget: Budget | None = None  # what ends the run, where that is not the number of steps

    @property
    def is_done(self) -> bool:
        return self.budget.share >= 1 if self.budget else self.step >= self.steps


def train(training: Training) -> Iterator[Batch]:
    """Runs to the end, giving every batch back as it is done; whoever iterates evaluates, records and saves."""
    fitted = fit_first(training)
    while not training.is_done:
        batch = one_step(training)
        batch.metrics.update(fitted)
        fitted = {}
        yield batch


def fit_first(t: Training) -> dict[str, float]:
    """The method's stage before step 1, unless it is done; its numbers go into the first step's."""
    if t.method.fit is None or t.method.fit.is_fitted or t.is_done:
        return {}
    return dict(t.method.fit.fit(t.cast, lambda n: [Visit(one, FIT, t.source.seed) for one in t.source.problems[:n]]))


def one_step(t: Training) -> Batch:
    """One batch: the student writes, the teacher reads what was written, the student learns from that."""
    clock, cast = Clock(), metered(t.cast)
    visits, heard = t.source.take(t.batch), ahead.overheard(t.method, cast)
    with clock("sample"):
        groups = routes.tagged(grade(t.task, t.method.sample(heard, visits, t.step)), t.cast)
    with clock("teach"):
        rows, sequences = prepare(groups, t.method, cast, t.step)
    fared = routes.Fared(t.cast)
    with clock("learn"):
        done, seen = list[tuple[Outcome, float]](), dict[str, Tensor]()
        for part in updates(rows, t.method.updates, t.source.seed):
            done.append(learn(t, part, sequences))
            fared.add(part, done[-1][0].each)
            collect(seen, rows, part, done[-1][0], len(done) - 1)
        rows = rows.plus(**seen)
        written = rows.written()
        measured = {**means({name: written[name] for name in seen}), **t.measure(written)}
    for name, member in t.cast.items():
        if name != "student":
            member.follow(t.student, t.step + 1)
    numbers = {**summary(groups, written, done), **measured, **fared.metrics(), "teacher_tokens": float(count(cast))}
    metrics = {"lr": t.rate(t.step), **numbers, **ahead.share(heard), **clock.seconds}
    for hook in t.method.hooks:
        metrics |= hook(cast, metrics, t.step)
    batch = Batch(t.step, groups, rows, sequences, metrics)
    t.step += 1
    if t.budget:
        t.budget.spend(metrics)
    return batch


def learn(t: Training, part: Rows, sequences: Sequence[Array]) -> tuple[Outcome, float]:
    """One optimizer step on one part of the batch; a gradient that is not finite is not taken."""
    t.optimizer.zero_grad(set_to_none=True)
    outcome = gradient(t.student, part, sequences, t.method, t.micro_tokens, t.chunk)
    parameters = [p for group in t.optimizer.param_groups for p in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, t.max_grad_norm or float("inf")))
    if not np.isfinite(outcome.loss + norm):
        refuse(t, part, outcome.loss, norm)
        return outcome, norm
    t.failures = 0
    for group in t.optimizer.param_groups:
        group["lr"] = t.rate(t.step) * group.get("rate", 1.0)
    t.optimizer.step()
    return outcome, norm


def refuse(t: Training, part: Rows, loss: float, norm: float) -> None:
    """Counts a failure, saves its rows, and stops the run at the third in a row."""
    t.failures += 1
    where = t.on_failure(t.step, part)
    if t.failures >= PATIENCE:
        raise NonFiniteError(
            f"{t.failures} updates in a row had no finite gradient, the last at step {t.step}",
            got=f"loss {loss}, gradient norm {norm}",
            remedy=f"Look at the rows in {where}: a teacher that gives -inf or nan, or too high a learning rate",
        )


def grade(task: Task, groups: Iterable[Group]) -> list[Group]:
    """The groups with a reward on every rollout that has none, nan where the task can't tell, and what it says."""
    says = getattr(task, "feedback", lambda problem, text: "")

    def one(rollout: Rollout) -> Rollout:
        if "reward" in rollout.tags:
            return rollout
        graded = rollout.tagged(reward=_reward(task, rollout.problem, rollout.text))
        return replace(graded, feedback=says(rollout.problem, rollout.text))

    return [replace(group, rollouts=tuple(map(one, group.rollouts))) for group in groups]


def _reward(task: Task, problem: Problem, text: str) -> float:
    reward = task.grade(problem, text)
    return float("nan") if reward is None else float(reward)


def summary(groups: Sequence[Group], rows: Rows, done: Sequence[tuple[Outcome, float]]) -> dict[str, float]:
    """Numbers about a batch; a mean over nothing is left out, never a zero."""
    rollouts = [rollout for group in groups for rollout in group.rollouts if rollout.written]
    outcomes = [outcome for outcome, _ in done]
    rewards = np.array([rollout.tags["reward"] for rollout in rollouts])
    numbers = {
        "loss": float(np.mean([outcome.loss for outcome in outcomes])),
        "grad_norm": float(np.mean([norm for _, norm in done])),
        "tokens": float(sum(rollout.n for rollout in rollouts)),
        "length": float(np.mean([rollout.n for rollout in rollouts])),
        "truncated": float(np.mean([rollout.end == End.LENGTH for rollout in rollouts])),
        "repetitive": float(np.mean([repetitive(rollout.text) for rollout in rollouts])),
        "kept": float(rows["keep"].double().mean()),
        "empty": float(sum(not outcome.live for outcome in outcomes)),  # updates that had no row to learn from
        "refused": float(sum(not np.isfinite(outcome.loss + norm) for outcome, norm in done)),
    }
    for name, column in rows.narrow().items():
        if name.startswith("masked."):
            numbers[name] = float(column.sum())
    if len(outcomes[0].losses) > 1:
        numbers |= {f"loss.{name}": float(np.mean([o.losses[name] for o in outcomes])) for name in outcomes[0].losses}
    if not np.isnan(rewards).all():
        numbers["reward"] = float(np.nanmean(rewards))
    return numbers


def repetitive(text: str) -> bool:
    """Whether the last ten thousand characters of an answer compress more than tenfold (arXiv 2604.08527: RepRate)."""
    end = text[-10_000:].encode()
    return len(end) > 10 * len(zlib.compress(end))


def collect(seen: dict[str, Tensor], rows: Rows, part: Rows, outcome: Outcome, update: int) -> None:
    """Puts what one update saw of its part into columns of the whole table; the first look at a row counts.

    The column `update` says in which update that was.
    """
    where = torch.searchsorted(rows["sequence"], part["sequence"]) + part["row"]  # the table is in this order
    number = seen.setdefault("update", torch.full_like(rows["row"], -1))
    fresh = number[where] < 0
    for name, values in outcome.observed.items():
        column = seen.setdefault(name, values.new_full((len(rows),), torch.nan))
        column[where[fresh]] = values[fresh]
    number[where[fresh]] = update


def means(seen: Mapping[str, Tensor]) -> dict[str, float]:
    """Means of what was measured in passing, over the rows where it was."""
    measured = {name: values for name, values in seen.items() if values.is_floating_point()}
    return {name: float(values.nanmean()) for name, values in measured.items() if not bool(values.isnan().all())}


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[f"seconds.{phase}"] = time.perf_counter() - start
