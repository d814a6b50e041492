"""Asks become columns: one pass per reader over all its views, and the decisions it sees are the ones that were taken.

Axes: N rows of the batch, n rows of one rollout.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd.dist import Dist, TopDist
from opd.errors import AlignmentError, DataError, MethodError, TeacherError
from opd.labels import labels
from opd.method import Ask, Method, View, plain
from opd.protocols import Answer, Cast, Want
from opd.rollout import Group, Rollout
from opd.rows import Rows


@dataclass(frozen=True)
class Read:
    """All asks of one reader under one view."""

    who: str
    view: View
    want: Want
    into: tuple[str, ...]
    optional: bool


def reads(asks: Sequence[Ask]) -> list[Read]:
    """The asks fused per (reader, view), those that name ids of an earlier answer last."""
    fused: dict[tuple[str, View, bool], Read] = {}
    for ask in sorted(asks, key=lambda ask: bool(ask.want.gather)):
        key = (ask.who, ask.view, ask.optional)
        before = fused.get(key)
        if before and ask.want.gather.rpartition(".")[0] in before.into:
            raise MethodError(f"ask {ask.into!r} names ids of {before.into} but would be answered in the same pass")
        want, into = (before.want | ask.want, (*before.into, ask.into)) if before else (ask.want, (ask.into,))
        fused[key] = Read(ask.who, ask.view, want, into, ask.optional)
    return sorted(fused.values(), key=lambda read: bool(read.want.gather))


def passes(asks: Sequence[Ask]) -> list[list[Read]]:
    """The reads that one pass answers: those that want the same of one reader, whatever it is shown."""
    together: dict[tuple[str, Want], list[Read]] = {}
    for read in reads(asks):
        together.setdefault((read.who, read.want), []).append(read)
    return list(together.values())


def as_written(asks: Sequence[Ask]) -> list[tuple[str, Want]]:
    """Who will be asked what about rollouts as they were written, where that needs no earlier answer."""
    plainly = [together[0] for together in passes(asks) if any(read.view is plain for read in together)]
    return [(read.who, _passed(read.want)) for read in plainly if not read.want.gather]


def _passed(want: Want) -> Want:
    """What the reader is asked: labels are drawn here, from whole distributions."""
    return replace(want, dist=want.dist or want.label)


def check_capabilities(method: Method, cast: Cast) -> None:
    """Stops before step 1 when somebody is asked for what he can't answer or write, and names both."""
    for who in sorted({*getattr(method.sample, "writers", ())} & {*cast}):
        writes: frozenset[str] = getattr(cast[who], "can", frozenset({"text"}))
        if "text" not in writes:
            raise TeacherError(
                f"{who} ({cast[who].name}) can't write the texts that the method learns from",
                got=f"a teacher that can {sorted(writes)}",
                expected="'text'",
                remedy="Use a local teacher, or a method whose student writes",
            )
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
                remedy=f"Use {_better(missing, can)}, or a method that needs less (see 'opd list')",
            )
        _check_most(ask, reader, "best", "topk", ask.want.topk)
        named = next((one.want.topk for one in method.teach if f"{one.into}.ids" == ask.want.gather), 0)
        _check_most(ask, reader, "named", "gather", named)


def _check_most(ask: Ask, reader: Any, which: str, name: str, k: int) -> None:
    """The reader answers about as many tokens as the ask wants to know of."""
    if k > (most := getattr(reader, "most", {}).get(name, k)):
        raise TeacherError(
            f"{ask.who} ({reader.name}) answers about fewer {which} tokens than ask {ask.into!r} of the method needs",
            got=f"at most K={most}",
            expected=f"K={k}",
            remedy=f"Set --k {most}, or a teacher that gives more",
        )


def _better(missing: Set[str], can: Set[str]) -> str:
    """Who could answer, or by what setting."""
    if missing == {"gather"} and "topk" in can:
        return "a local teacher, opd serve, or --teacher-misses 0.05 to guess what so few of the named tokens are worth"
    return "an environment and --teacher values" if "values" in missing else "a local teacher"


@dataclass(frozen=True)
class Shown:
    """What one read shows of each rollout, in the order of the table; None where it shows nothing.

    unfit: where that is because the reader has no room for it.
    """

    read: Read
    contexts: list[Rollout | None]
    unfit: list[bool]


def teach(asks: Sequence[Ask], groups: Sequence[Group], rows: Rows, cast: Cast) -> Rows:
    """The table with every ask answered; rows that a view left without evidence are masked.unshown."""
    members = [(rollout, group) for group in groups for rollout in group.rollouts if rollout.n]
    for together in passes(asks):
        shown = [_shown(read, members, cast[read.who]) for read in together]
        contexts = [_asked(one, members[0][0], rows) for one in shown]
        who, want = together[0].who, together[0].want
        whole = cast[who].read([context for some in contexts for context in some], _passed(want))
        start = 0
        for one, some in zip(shown, contexts, strict=True):
            end = start + sum(context.n for context in some)
            answer = whole if len(shown) == 1 else whole.index(slice(start, end))
            rows, start = _placed(rows, one, some, answer, [rollout.n for rollout, _ in members]), end
    return rows


def _asked(shown: Shown, stand_in: Rollout, rows: Rows) -> list[Rollout]:
    """The contexts that the reader gets; an optional ask that shows nothing at all asks about a rollout as it is."""
    places = shown.contexts
    if all(place is None for place in places):
        if not shown.read.optional:
            raise MethodError(f"the view of {shown.read.into} showed {shown.read.who} nothing in the whole batch")
        places = [stand_in, *places[1:]]  # the first of the table, whose named ids it gets
    contexts = [context for context in places if context is not None]
    return _with_ids(contexts, places, shown.read.want.gather, rows) if shown.read.want.gather else contexts


def _placed(rows: Rows, shown: Shown, contexts: Sequence[Rollout], answer: Answer, sizes: Sequence[int]) -> Rows:
    """The table with the answers to one read."""
    want = shown.read.want
    drawn = labels(answer.dist, contexts) if want.label and answer.dist is not None else None
    if drawn is not None and not (want.dist or want.topk or want.layers):
        answer = replace(answer, dist=None)  # it was only there to be drawn from
    return _place(rows, shown, answer, drawn, sizes)


def _shown(read: Read, members: Sequence[tuple[Rollout, Group]], reader: Any) -> Shown:
    """What a reader is shown, as far as it is known to have room: what is longer than it takes is not shown at all."""
    contexts = [_context(read, rollout, group) for rollout, group in members]
    room: int = getattr(reader, "context", sys.maxsize)
    unfit = [
        context is not None and context is not rollout and len(context.tokens) > room
        for context, (rollout, _) in zip(contexts, members, strict=True)
    ]
    if any(unfit) and not read.optional:
        worst = max(len(context.tokens) for context in contexts if context is not None)
        raise DataError(
            f"what {read.who} is shown of problem {members[unfit.index(True)][0].problem.id} and the answer do not fit "
            f"the context of {reader.name}",
            got=f"up to {worst} tokens",
            expected=f"at most {room}",
            remedy="Lower --max-new, or shorten what is shown",
        )
    return Shown(read, [None if out else one for one, out in zip(contexts, unfit, strict=True)], unfit)


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


def _place(rows: Rows, shown: Shown, answer: Answer, drawn: Tensor | None, sizes: Sequence[int]) -> Rows:
    device, read = rows["keep"].device, shown.read
    present = [context is not None for context in shown.contexts]
    has, unfit = (torch.from_numpy(np.repeat(np.asarray(one), sizes)).to(device) for one in (present, shown.unfit))
    # rows without evidence point at any answer: they lose `keep`
    where = None if all(present) else (has.long().cumsum(0) - 1).clamp(min=0)
    columns: dict[str, Tensor | Dist] = {}
    dist = answer.dist.to(device) if answer.dist is not None else None  # a teacher may sit elsewhere
    if dist is not None and where is not None:
        dist = dist.index(where)
    chosen = None if answer.chosen is None else _spread(answer.chosen, rows, where, has)
    gathered = None if answer.gathered is None else _spread(answer.gathered, rows, where, has)
    if dist is None and gathered is not None:  # of which these tokens are known
        dist = TopDist(rows[read.want.gather], gathered, rows["token"], chosen)
    for into in read.into:
        if dist is not None:
            columns[into] = dist
        if chosen is not None:
            columns[f"{into}.chosen"] = chosen
        if gathered is not None:
            columns[f"{into}.gathered"] = gathered
        if answer.guessed is not None:
            guessed = answer.guessed.to(device)
            columns[f"{into}.guessed"] = guessed if where is None else guessed[where] & has[:, None]
        if drawn is not None:
            columns[f"{into}.label"] = drawn.to(device) if where is None else drawn.to(device)[where]
        if answer.values is not None and answer.value is not None:
            columns[f"{into}.values"] = _spread(answer.values, rows, where, has)
            columns[f"{into}.value"] = _spread(answer.value, rows, where, has)
        if read.want.topk and dist is not None:
            columns[f"{into}.ids"] = dist.top(read.want.topk)
        if read.optional:
            columns[f"{into}.shown"], columns[f"{into}.unfit"] = has, unfit
    rows = rows.plus(**columns)
    return rows if where is None or read.optional else rows.masked("unshown", ~has)


def _spread(values: Tensor, rows: Rows, where: Tensor | None, has: Tensor) -> Tensor:
    values = values.to(has.device)
    if where is None:
        return values
    mask = has if values.ndim == 1 else has[:, None]
    return torch.where(mask, values[where], torch.nan)
