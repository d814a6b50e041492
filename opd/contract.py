"""What every method must keep, tried on a toy in float64 within seconds: the anatomy of a method and its contract.

The same code answers `opd show` (what a method reads, writes and costs), `opd check`, and the test over all recipes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from opd.dist import Dist
from opd.errors import MethodError
from opd.lab.toy import ToyModel, problems
from opd.method import Method, Observe
from opd.parts.observe import measured
from opd.protocols import Cast
from opd.rollout import Array, Group, Visit
from opd.rows import BUILT_IN, Rows
from opd.step import gradient, prepare, updates
from opd.teach import check_capabilities

Build = Callable[[], Method]


@dataclass(frozen=True)
class Watched(Rows):
    """A table that remembers which columns were read."""

    seen: set[str] = field(default_factory=set[str])

    def _get(self, name: str) -> Tensor | Dist:
        self.seen.add(name)
        return super()._get(name)


@dataclass(frozen=True)
class Anatomy:
    """Columns that one batch of a run reads, writes and measures beside the built-in ones, and its model passes."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    measures: tuple[str, ...]
    passes: dict[str, int]  # "student writes", "teacher reads", "student learns", ...


def toy_cast(method: Method) -> dict[str, ToyModel]:
    """A student, and a model of its own for every role."""
    others = ["teacher", *sorted({*method.roles} - {"student", "teacher"})]
    return {"student": ToyModel(seed=1), **{who: ToyModel(seed, name=who) for seed, who in enumerate(others, 2)}}


def toy_groups(method: Method, cast: Cast, n: int = 6, step: int = 0) -> list[Group]:
    visits = [Visit(problem, 0, 5) for problem in problems(n)]
    groups = method.sample(cast, visits, step)
    return [replace(g, rollouts=tuple(r.tagged(reward=float(i % 2)) for i, r in enumerate(g.rollouts))) for g in groups]


def anatomy(build: Build) -> Anatomy:
    """One batch on the toy, watched."""
    plain = build()
    cast = toy_cast(plain)
    method = _unwatched(measured(plain, cast))
    check_capabilities(method, cast)
    groups = toy_groups(method, cast)
    watched, credit = list[Watched](), method.credit

    def watch(rows: Rows) -> Rows:
        watched.append(Watched(rows.columns, rows.step))
        return credit(watched[0])

    rows, sequences = prepare(groups, replace(method, credit=watch), cast, 0)
    seen = set[str]()
    for part in updates(rows, method.updates, seed=0):
        seen |= gradient(cast["student"], part, sequences, method, micro_tokens=10**6).observed.keys()
    brought = {"behaviour", "untruncated", "reward"}
    writes = set(rows.columns) - {*BUILT_IN, *brought}
    names = {"write": "writes", "read": "reads", "learn": "learns"}
    passes = {f"{who} {names[kind]}": n for who, model in cast.items() for kind, n in sorted(model.calls.items())}
    reads = watched[0].seen - {*BUILT_IN}
    return Anatomy(tuple(sorted(reads)), tuple(sorted(writes)), tuple(sorted(seen)), passes)


def _unwatched(method: Method) -> Method:
    """The method whose observers leave no trace: what they read is no need of the method."""

    def blind(observe: Observe) -> Observe:
        return lambda dist, rows: observe(dist, Rows(rows.columns, rows.step))

    return replace(method, observe=tuple(map(blind, method.observe)), lookup=tuple(map(blind, method.lookup)))


def gradients(
    method: Method, student: ToyModel, rows: Rows, sequences: list[Array], micro_tokens: int = 10**6, chunk: int = 10**6
) -> dict[str, Tensor]:
    """The gradient of one update, by parameter; zeros where the method does not reach."""
    student.zero_grad()
    gradient(student, rows, sequences, method, micro_tokens, chunk)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in student.named_parameters()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def check(build: Build) -> Iterator[tuple[str, str]]:
    """Runs the contract; yields (what was tried, what was seen) and raises MethodError at the first breach."""
    seen = anatomy(build)
    yield "columns that are read exist", ", ".join(seen.reads) or "none beside the built-in ones"
    yield "model passes per batch", ", ".join(f"{who} x {n}" for who, n in seen.passes.items())
    method = build()
    cast = toy_cast(method)
    groups = toy_groups(method, cast)
    rows, sequences = prepare(groups, method, cast, 0)
    student = cast["student"]
    whole = gradients(method, student, rows, sequences)
    size = max(float(g.abs().max()) for g in whole.values())
    _demand(np.isfinite(size) and size > 0, "the gradient is finite and not zero", size)
    yield "the gradient is finite and not zero", f"largest entry {size:.3g}"
    yield _same(
        "chunks of 1, 3 and 5 rows", whole, [gradients(method, student, rows, sequences, chunk=c) for c in (1, 3, 5)]
    )
    yield _same(
        "passes of one and of two sequences", whole, [gradients(method, student, rows, sequences, t) for t in (1, 20)]
    )
    yield _same("any order of rows", whole, [gradients(method, student, rows.index(_shuffled(len(rows))), sequences)])
    yield _same("a nan in a row that is not kept", *_with_a_dropped_row(method, student, rows, sequences))
    yield "learning lowers the loss", _learns(build)


def _demand(true: bool | np.bool_, what: str, got: object) -> None:
    if not true:
        raise MethodError(f"contract broken: {what}", got=got)


def _same(what: str, whole: dict[str, Tensor], others: list[dict[str, Tensor]]) -> tuple[str, str]:
    worst = max(distance(whole, other) for other in others)
    _demand(worst < 1e-12, f"the gradient does not depend on {what}", f"a difference of {worst:.3g}")
    return f"the gradient does not depend on {what}", f"largest difference {worst:.1g}"


def _shuffled(n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _with_a_dropped_row(
    method: Method, student: ToyModel, rows: Rows, sequences: list[Array]
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The gradient without one row, and the same with every number of that row poisoned."""
    keep = rows["keep"].clone()
    keep[len(rows) // 2] = False
    marks = {name: rows[name] & keep for name in {"keep", *(term.rows for term in method.terms.values())}}
    dropped = rows.plus(**marks)
    poisoned = {k: torch.where(keep, v, torch.nan) for k, v in dropped.narrow().items() if v.is_floating_point()}
    clean = gradients(method, student, dropped, sequences, chunk=3)
    return clean, [gradients(method, student, dropped.plus(**poisoned), sequences, chunk=3)]


def _learns(build: Build, steps: int = 8) -> str:
    """A few small steps along the gradient of a batch lower the loss of that batch."""
    method = build()
    cast = toy_cast(method)
    student = copy.deepcopy(cast["student"])
    rows, sequences = prepare(toy_groups(method, cast), method, cast, 0)
    losses = list[float]()
    for _ in range(steps):
        student.zero_grad()
        losses.append(gradient(student, rows, sequences, method).loss)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        with torch.no_grad():
            for p in student.parameters():
                if p.grad is not None:
                    p -= 0.01 * p.grad
    _demand(
        losses[-1] < losses[0], "small steps along the gradient lower the loss", f"{losses[0]:.6g} -> {losses[-1]:.6g}"
    )
    return f"{losses[0]:.4f} -> {losses[-1]:.4f} in {steps} steps"
