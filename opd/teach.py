"""Asks become columns: one read per reader and view, and a reader must have been shown the very same decisions.

Axes: N rows of the batch, n rows of one rollout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from opd.dist import Dist
from opd.errors import AlignmentError, MethodError, TeacherError
from opd.labels import labels
from opd.method import Ask, Method, View
from opd.protocols import Answer, Cast, Want
from opd.rollout import Group, Rollout
from opd.rows import Rows


@dataclass(frozen=True)
class Read:
    """All asks of one reader under one view, answered by a single pass."""

    who: str
    view: View
    want: Want
    into: tuple[str, ...]


def reads(asks: Sequence[Ask]) -> list[Read]:
    """The asks fused per (reader, view), those that name ids of an earlier answer last."""
    fused: dict[tuple[str, View], Read] = {}
    for ask in sorted(asks, key=lambda ask: bool(ask.want.gather)):
        before = fused.get((ask.who, ask.view))
        if before and ask.want.gather.rpartition(".")[0] in before.into:
            raise MethodError(f"ask {ask.into!r} names ids of {before.into} but would be answered in the same pass")
        want, into = (before.want | ask.want, (*before.into, ask.into)) if before else (ask.want, (ask.into,))
        fused[ask.who, ask.view] = Read(ask.who, ask.view, want, into)
    return sorted(fused.values(), key=lambda read: bool(read.want.gather))


def check_capabilities(method: Method, cast: Cast) -> None:
    """Stops before step 1 when somebody is asked for what he can't answer, and names both."""
    for ask in method.teach:
        if ask.who not in cast:
            raise MethodError(
                f"ask {ask.into!r} goes to {ask.who!r}", got=f"a cast of {sorted(cast)}", remedy="Give that model"
            )
        reader = cast[ask.who]
        can: frozenset[str] = getattr(reader, "can", frozenset({"chosen", "topk", "gather", "dist", "inner"}))
        if missing := ask.want.needs - can:
            raise TeacherError(
                f"{ask.who} ({reader.name}) can't answer {sorted(missing)}, which ask {ask.into!r} of the method needs",
                got=f"a teacher that can {sorted(can)}",
                expected=sorted(ask.want.needs),
                remedy=f"Use {_better(missing)}, or a method that needs less (see 'opd list')",
            )


def _better(missing: Set[str]) -> str:
    """Who could answer."""
    return "an environment and --teacher values" if "values" in missing else "a local teacher"


def teach(asks: Sequence[Ask], groups: Sequence[Group], rows: Rows, cast: Cast) -> Rows:
    """The table with every ask answered; rows that a view left without evidence lose `keep`."""
    members = [(rollout, group) for group in groups for rollout in group.rollouts if rollout.n]
    for read in reads(asks):
        shown = [_context(read, rollout, group) for rollout, group in members]
        contexts = [context for context in shown if context is not None]
        if not contexts:
            raise MethodError(f"the view of {read.into} showed {read.who} nothing in the whole batch")
        if read.want.gather:
            contexts = _with_ids(contexts, shown, read.want.gather, rows)
        answer = cast[read.who].read(contexts, replace(read.want, dist=read.want.dist or read.want.label))
        present = [context is not None for context in shown]
        drawn = labels(answer.dist, contexts) if read.want.label and answer.dist is not None else None
        if drawn is not None and not (read.want.dist or read.want.topk or read.want.layers):
            answer = replace(answer, dist=None)  # it was only there to be drawn from
        rows = _place(rows, read, answer, drawn, present, [rollout.n for rollout, _ in members])
    return rows


def _context(read: Read, rollout: Rollout, group: Group) -> Rollout | None:
    contexts = read.view(rollout, group)
    if len(contexts) > 1:
        raise MethodError(f"a view of {read.into} gave {len(contexts)} contexts", expected="none or one")
    for context in contexts:
        check_aligned(rollout, context, read.into)
    return contexts[0] if contexts else None


def check_aligned(rollout: Rollout, context: Rollout, into: Iterable[str]) -> None:
    """The decisions that the reader sees are the decisions that were taken, one by one."""
    if context is rollout:
        return
    ours, theirs = rollout.decisions, context.decisions
    n = min(len(ours), len(theirs))
    different = np.flatnonzero(ours[:n] != theirs[:n])
    if len(different) == 0 and len(ours) == len(theirs):
        return
    at = int(different[0]) if len(different) else n
    got = int(theirs[at]) if at < len(theirs) else "nothing"
    expected = int(ours[at]) if at < len(ours) else "nothing"
    where = int(rollout.positions[at]) if at < len(ours) else len(rollout.tokens)
    raise AlignmentError(
        f"the view of {tuple(into)} changed rollout {rollout.problem.id} at decision {at} (token position {where})",
        got=f"token {got}",
        expected=f"token {expected}",
        remedy="A view may change what stands before and between the decisions, never the decisions",
    )


def _with_ids(contexts: list[Rollout], shown: Sequence[Rollout | None], name: str, rows: Rows) -> list[Rollout]:
    ids, sequence = rows[name].cpu().numpy(), rows["sequence"].cpu().numpy()
    numbers = [number for number, context in enumerate(shown) if context is not None]
    return [
        context.with_columns(**{name: ids[sequence == number]})
        for context, number in zip(contexts, numbers, strict=True)
    ]


def _place(
    rows: Rows, read: Read, answer: Answer, drawn: Tensor | None, present: Sequence[bool], sizes: Sequence[int]
) -> Rows:
    device = rows["keep"].device
    has = torch.from_numpy(np.repeat(np.asarray(present), sizes)).to(device)
    # rows without evidence point at any answer: they lose `keep`
    where = None if all(present) else (has.long().cumsum(0) - 1).clamp(min=0)
    columns: dict[str, Tensor | Dist] = {}
    dist = answer.dist.to(device) if answer.dist is not None else None  # a teacher may sit elsewhere
    if dist is not None and where is not None:
        dist = dist.index(where)
    for into in read.into:
        if dist is not None:
            columns[into] = dist
        if answer.chosen is not None:
            columns[f"{into}.chosen"] = _spread(answer.chosen, rows, where, has)
        if answer.gathered is not None:
            columns[f"{into}.gathered"] = _spread(answer.gathered, rows, where, has)
        if drawn is not None:
            columns[f"{into}.label"] = drawn.to(device) if where is None else drawn.to(device)[where]
        if answer.values is not None and answer.value is not None:
            columns[f"{into}.values"] = _spread(answer.values, rows, where, has)
            columns[f"{into}.value"] = _spread(answer.value, rows, where, has)
        if read.want.topk and dist is not None:
            columns[f"{into}.ids"] = dist.top(read.want.topk)
    return rows.plus(**columns) if where is None else rows.plus(**columns, keep=rows["keep"] & has)


def _spread(values: Tensor, rows: Rows, where: Tensor | None, has: Tensor) -> Tensor:
    values = values.to(has.device)
    if where is None:
        return values
    mask = has if values.ndim == 1 else has[:, None]
    return torch.where(mask, values[where], torch.nan)
