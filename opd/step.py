"""The equation and nothing else: weights over one whole update, then a partition of one sum into passes and chunks.

    loss = sum over terms, sum over rows of  weight[term, n] * loss[term](student[n], row[n])

The result does not depend on the partition.

Axes: N rows of an update, n rows of a chunk, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from opd.dist import GradBuffer, HeadDist
from opd.errors import MethodError
from opd.method import Method, Observe, Term, Updates
from opd.protocols import Cast, Forward, Student
from opd.rollout import Array, Group
from opd.rows import Rows, flatten
from opd.teach import teach

CHUNK_ELEMENTS = 2**22, 2**26  # logits per chunk [n, V] on a processor and on an accelerator: a few live at a time
CHUNK_ROWS = 64  # but at least so many rows, or reading the head takes longer than multiplying with it
OBSERVED_ELEMENTS = 2**22, 2**26  # logits that are measured per update: a mean over some hundred rows is enough
GOLDEN = (5**0.5 - 1) / 2  # multiples of it are spread evenly over [0, 1), whatever the period of what is counted


@dataclass(frozen=True)
class Cut:
    """One sequence up to its last live row: tokens [T], and positions and table numbers [n] of its live rows."""

    tokens: Array
    positions: Array
    rows: Array


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward: sequences cut after their last live row, and the table's numbers of those rows."""

    tokens: list[Array]
    positions: list[Array]
    rows: Tensor  # [n] in the order of tokens, then positions


@dataclass
class Outcome:
    """What one update gave: the loss per term and per row, and measurements per row (nan where none was made)."""

    losses: dict[str, float]
    rows: int
    live: int
    each: Tensor  # [N] scale * loss, summed over terms, before any mean; nan where no loss was computed
    observed: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    passes: int = 0

    @property
    def loss(self) -> float:
        return sum(self.losses.values())


@dataclass
class Held:
    """The rows that are measured [N] bool, and their distributions with their numbers, until all can be looked at.

    Measuring them together takes one product with a teacher's head instead of a thin one per chunk.
    """

    rows: Tensor
    parts: list[tuple[HeadDist, Tensor]] = field(default_factory=list[tuple[HeadDist, Tensor]])


def prepare(groups: Sequence[Group], method: Method, cast: Cast, step: int) -> tuple[Rows, list[Array]]:
    """The table of a batch with evidence and credit, and what the student is fed, [T, ...] for each sequence."""
    student: Student = cast["student"]
    with torch.no_grad():
        rows = Rows.of(groups, step, student.device, student.dtype)
        rows = method.credit(teach(method.teach, groups, rows, cast))
    return rows, [rollout.fed for rollout, _ in flatten(groups)]


def updates(rows: Rows, how: Updates, seed: int) -> Iterator[Rows]:
    """One table per optimizer step: epochs x parts, split by group so that a group is never torn."""
    if how.parts == 1:
        yield from (rows for _ in range(how.epochs))
        return
    groups: Array = np.unique(rows["group"].cpu().numpy())
    for epoch in range(how.epochs):
        order = np.random.Generator(np.random.Philox(key=[seed % 2**64, rows.step * 1000 + epoch])).permutation(groups)
        for part in np.array_split(order, how.parts):
            if len(part):
                yield rows.index(torch.isin(rows["group"], torch.as_tensor(part, device=rows["group"].device)))


def gradient(
    student: Student, rows: Rows, sequences: Sequence[Array], method: Method, micro_tokens: int = 8192, chunk: int = 0
) -> Outcome:
    """Adds the gradient of one update to the parameters' .grad.

    micro_tokens bounds the padded tokens of a pass; chunk the rows of a piece of logits (0: by the vocabulary's size).
    """
    weights = {name: _weights(name, term, rows) for name, term in method.terms.items()}
    live = torch.stack(list(weights.values())).ne(0).any(0)
    each = torch.full((len(rows),), torch.nan, dtype=student.dtype, device=live.device)
    outcome = Outcome(dict.fromkeys(weights, 0.0), len(rows), int(live.sum()), each)
    accelerated = student.device.type != "cpu"
    chunk = chunk or max(CHUNK_ROWS, CHUNK_ELEMENTS[accelerated] // student.vocab)
    held = Held(observed_rows(live & rows.are_written, OBSERVED_ELEMENTS[accelerated] // student.vocab))
    for batch in plan(rows, live, sequences, micro_tokens, bool(method.layers)):
        _backward(student, batch, rows, method, weights, held, chunk, outcome)
        outcome.passes += 1
    _observe(rows, method, held, outcome)
    return outcome


def observed_rows(live: Tensor, n: int) -> Tensor:
    """[N] bool: about n of the live rows, or all where there are not more; chosen by their number alone."""
    share = max(n, 1) / max(int(live.sum()), 1)
    if share >= 1:
        return live
    numbers = torch.arange(len(live), dtype=torch.float64, device=live.device)
    return live & ((numbers * GOLDEN) % 1 < share)


def _weights(name: str, term: Term, rows: Rows) -> Tensor:
    """[N] final weights of one term over the whole update; a row that is not kept has none."""
    kept = rows[term.rows]
    weights = term.mean(rows.plus(keep=kept)) * term.scaled(rows.step)
    if not bool(torch.isfinite(weights[kept]).all()):
        raise MethodError(f"the mean of term {name!r} gave weights that are not numbers")
    return torch.where(kept, weights, 0.0).to(torch.float64)


def plan(rows: Rows, live: Tensor, sequences: Sequence[Array], micro_tokens: int, after: bool) -> list[MicroBatch]:
    """Live rows only, every sequence cut after its last one, sequences of like length together.

    after: the state after the last token is needed too (hidden-state losses), not only the one that predicts it.
    """
    piles: list[list[Cut]] = []
    for cut in sorted(_cuts(rows, live, sequences, after), key=lambda cut: -len(cut.tokens)):
        if piles and (len(piles[-1]) + 1) * len(piles[-1][0].tokens) <= micro_tokens:
            piles[-1].append(cut)
        else:
            piles.append([cut])
    return [
        MicroBatch(
            [cut.tokens for cut in pile],
            [cut.positions for cut in pile],
            torch.as_tensor(np.concatenate([cut.rows for cut in pile]), device=live.device),
        )
        for pile in piles
    ]


def _cuts(rows: Rows, live: Tensor, sequences: Sequence[Array], after: bool) -> Iterator[Cut]:
    """Every sequence that has a live row, without what comes after the last one."""
    numbers: Array = live.nonzero().squeeze(-1).cpu().numpy()
    owner: Array = rows["sequence"].cpu().numpy()[numbers]
    position: Array = rows["position"].cpu().numpy()[numbers]
    order = np.lexsort((position, owner))
    for part in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
        if len(part):
            tokens = sequences[int(owner[part[0]])]
            yield Cut(tokens[: int(position[part[-1]]) + after], position[part], numbers[part])


def _backward(
    student: Student,
    batch: MicroBatch,
    rows: Rows,
    method: Method,
    weights: dict[str, Tensor],
    held: Held,
    chunk: int,
    outcome: Outcome,
) -> None:
    """One pass: chunks see detached leaves, their gradients are gathered, and one backward starts from all roots."""
    forward = student.trunk(batch.tokens, batch.positions, method.layers)
    hidden = torch.zeros_like(forward.hidden)
    states = {layer: torch.zeros_like(state) for layer, state in forward.states.items()}
    head = GradBuffer(forward.head) if forward.head.requires_grad else None
    part = rows.index(batch.rows)
    shares = [Share.of(name, term, weights[name][batch.rows], rows.step) for name, term in method.terms.items()]
    each = torch.zeros(len(batch.rows), dtype=outcome.each.dtype, device=batch.rows.device)
    for start in range(0, len(batch.rows), chunk):
        here = slice(start, min(start + chunk, len(batch.rows)))
        dist = _leaves(forward, part["token"], head, student.vocab, here)
        slices = part.index(here)
        total = _chunk_loss(dist, slices, shares, here, each[here])
        if total.requires_grad:
            total.backward()  # pyright: ignore[reportUnknownMemberType]
        _look(dist, slices, method, batch.rows[here], held, outcome)
        _collect(dist, hidden, states, here)
    outcome.each[batch.rows] = each
    for share in shares:
        outcome.losses[share.name] += float(share.sum)
    roots = [forward.hidden, forward.head, *forward.states.values()]
    grads = [hidden, head and head.gradient(), *states.values()]
    if forward.aux is not None:
        roots, grads = [*roots, forward.aux], [*grads, torch.ones_like(forward.aux)]
    pairs = [(root, grad) for root, grad in zip(roots, grads, strict=True) if root.requires_grad and grad is not None]
    torch.autograd.backward([root for root, _ in pairs], [grad for _, grad in pairs])


def _leaves(forward: Forward, tokens: Tensor, head: GradBuffer | None, vocab: int, here: slice) -> HeadDist:
    """The student's distributions of one chunk on leaves of their own: a slice of one big leaf costs quadratic time."""
    states = {layer: state[here].detach().requires_grad_() for layer, state in forward.states.items()}
    hidden = forward.hidden[here].detach().requires_grad_()
    return HeadDist(hidden, forward.head.detach(), tokens[here], vocab, states=states, grad_head=head)


@dataclass
class Share:
    """What one term takes of a pass: its weights [n], where they are not 0, and the sum of its losses so far."""

    name: str
    term: Term
    weight: Tensor
    live: Tensor  # [n] on the processor, so that no chunk waits for the device to hear what it holds
    scale: float
    sum: Tensor

    @classmethod
    def of(cls, name: str, term: Term, weight: Tensor, step: int) -> Share:
        return cls(name, term, weight, weight.ne(0).cpu(), term.scaled(step), weight.new_zeros(()))


def _chunk_loss(dist: HeadDist, rows: Rows, shares: Sequence[Share], here: slice, each: Tensor) -> Tensor:
    """Sum over terms and rows of weight * loss; adds the loss of every row to each [n].

    A row without weight never reaches a loss, where a nan would spread.
    """
    total = torch.zeros((), dtype=torch.float64, device=dist.tokens.device)
    for share in shares:
        weight, live = share.weight[here], share.live[here]
        if not bool(live.any()):
            continue
        if bool(live.all()):
            loss = share.term.loss(dist, rows)
            each += share.scale * loss.detach()
        else:
            some = live.nonzero().squeeze(-1).to(weight.device)
            loss, weight = share.term.loss(dist.index(some), rows.index(some)), weight[some]
            each[some] += (share.scale * loss.detach()).to(each.dtype)
        weighted = (loss * weight.to(loss.dtype)).sum()
        share.sum += weighted.detach()
        total = total + weighted
    return total


def _look(dist: HeadDist, rows: Rows, method: Method, numbers: Tensor, held: Held, outcome: Outcome) -> None:
    """Looks up what a loss has made for every row of a chunk, and holds the rows that are to be measured."""
    with torch.no_grad():
        dist = dist.detached()
        _note(method.lookup, dist, rows, numbers, outcome)
        here = held.rows[numbers]
        if method.observe and bool(here.any()):
            held.parts.append((dist.index(here.nonzero().squeeze(-1)), numbers[here]))


def _observe(rows: Rows, method: Method, held: Held, outcome: Outcome) -> None:
    if held.parts:
        numbers = torch.cat([numbers for _, numbers in held.parts])
        with torch.no_grad():
            dist = HeadDist.cat([dist for dist, _ in held.parts])
            _note(method.observe, dist, rows.index(numbers), numbers, outcome)


def _note(observers: Sequence[Observe], dist: HeadDist, rows: Rows, numbers: Tensor, outcome: Outcome) -> None:
    for observe in observers:
        for name, values in observe(dist, rows).items():
            outcome.observed.setdefault(name, values.new_full((outcome.rows,), torch.nan))[numbers] = values


def _collect(dist: HeadDist, hidden: Tensor, states: dict[int, Tensor], here: slice) -> None:
    if dist.hidden.grad is not None:
        hidden[here] = dist.hidden.grad
    for layer, state in dist.states.items():
        if state.grad is not None:
            states[layer][here] = state.grad
