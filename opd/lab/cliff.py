"""How far beyond its teacher a student can be sent before the other words of a nearly certain format are out of reach.

A format of certain and free positions, each with a row of logits of its own. The student starts at the base and follows
the exact mean of the update of the recipe `extrapolated`, over every word that it may write, with the recipe's own
credit, loss and cap. Two findings: from which lambda on the words other than the right one are rarer than the teacher's
by the cap c or more, beside the closed form lambda*; and what the guard at every position (limit=cap) does to that.
Theory: arXiv 2605.08737; world, learner and what counts as the edge are ours.

Axes: P kinds of positions, V words; rows are all pairs of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from opd import estimators, maths
from opd.dist import TableDist
from opd.errors import SettingError
from opd.lab.drawing import Line, Panel
from opd.lab.study import Result, Table
from opd.method import Method
from opd.recipes.extrapolated import extrapolated
from opd.rows import Rows

WORDS = 4
CERTAIN = ((0.99, 0.9), (0.99, 0.5), (0.999, 0.99))  # what teacher and base give the right word
FREE = (0.4, 0.25)  # the same where no word is wrong
REPEATED = 4  # positions of either kind in a text of the format
FOUND = ("format kept", "others rarer, times", "free: best word")
STEP = 0.05  # of lambda
BATCHES, RATE = 40, 0.5  # the student's distance to where it ends halves in every batch


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    caps: tuple[float, ...] = Field((2.0, 5.0), min_length=1, max_length=2, description="c, one or two, above 1")
    most: float = Field(2.5, gt=1, description="the largest lambda")
    updates: int = Field(4, ge=1, description="steps per batch")
    out: str = Field("runs/lab-cliff", description="new folder for the tables, the numbers and the picture")


@dataclass(frozen=True)
class End:
    """Where a student has ended, at one lambda."""

    lam: float
    right: list[float]  # [P] the probability of the right word, of the teacher's best where none is wrong
    rarer: list[float]  # [P] how many times rarer all other words are than the teacher's
    beyond: list[float]  # [P] tail.saturated: the share of the student's other words with q/pi >= c
    largest: float  # importance weight pi/mu in a loss, before the cap


def check(options: Options) -> None:
    """Every cap leaves a limit above 1."""
    if min(options.caps) <= 1:
        raise SettingError("the caps", got=str(options.caps), expected="above 1", remedy="For example --caps 2,5")


def run(options: Options, say: Callable[[str], None]) -> Result:
    lams = [1 + STEP * i for i in range(round((options.most - 1) / STEP) + 1)]
    found: dict[float, dict[str, list[End]]] = {}
    for c in options.caps:
        found[c] = {}
        for limit in ("watch", "cap"):
            say(f"c = {c:g}, limit={limit}")
            found[c][limit] = [ended(lam, c, limit, options.updates) for lam in lams]
    tables = [_edges(found), _ends(found)]
    raw = {
        "options": options.model_dump(),
        "limits": {c: [limits(*kind, c) for kind in CERTAIN] for c in options.caps},
        "ends": {c: {how: [asdict(end) for end in ends] for how, ends in row.items()} for c, row in found.items()},
    }
    return Result(tables, raw, [_panel_rarer(found), _panel_broken(found)])


def summary(raw: dict[str, Any]) -> str:
    """One sentence on what was found."""
    ends = [end for row in raw["ends"].values() for end in row["watch"]]
    kept, most = min(end["right"][0] ** REPEATED for end in ends), max(end["largest"] for end in ends)
    return (
        "Beyond lambda* the other words are rarer than the teacher's by c or more. The exact update keeps the format "
        f"all the same, in {kept:.1%} of texts or more at every lambda; the largest weight in a loss was {most:.2f}."
    )


# ---- the student


def kinds() -> tuple[Tensor, Tensor]:
    """Log-probs [P, V] of teacher and base; the first word is the right one, the others are alike."""
    share = lambda u: [u, *[(1 - u) / (WORDS - 1)] * (WORDS - 1)]
    both = torch.tensor([[share(u) for u in pair] for pair in (*CERTAIN, FREE)], dtype=torch.float64).log()
    return both[:, 0], both[:, 1]


def ended(lam: float, c: float, limit: Literal["watch", "cap"], updates: int) -> End:
    """The student after BATCHES batches of `updates` steps from the base.

    A step moves every logit by the exact mean gradient divided by the word's probability (mirror descent), so that rare
    words come as fast as others.
    """
    method = extrapolated(lam=lam, c=c, limit=limit, updates=updates)
    lq, lb = kinds()
    logits, largest = lb.clone(), 1.0
    for _ in range(BATCHES):
        rows = _written(method, logits, lq, lb)
        for _ in range(updates):
            largest = max(largest, float((maths.log_softmax(logits).flatten() - rows["behaviour"]).exp().max()))
            logits = logits - RATE / updates * _slope(method, rows, logits) / logits.softmax(-1)
    lp = maths.log_softmax(logits)
    rare, tail = _written(method, logits, lq, lb)["tail.saturated"].view_as(lp)[:, 1:], lp[:, 1:].exp()
    rarer = lq[:, 1:].exp().sum(1) / tail.sum(1)
    return End(lam, lp[:, 0].exp().tolist(), rarer.tolist(), ((tail * rare).sum(1) / tail.sum(1)).tolist(), largest)


def _written(method: Method, logits: Tensor, lq: Tensor, lb: Tensor) -> Rows:
    """Every word at every position once, with the method's credit."""
    places, words = logits.shape
    token, where = torch.arange(words).repeat(places), torch.arange(places).repeat_interleave(words)
    teacher, own = TableDist(lq[where], token), maths.log_softmax(logits).flatten()
    best = lq.argmax(1)[where, None]
    columns = {
        "keep": torch.ones_like(token, dtype=torch.bool), "token": token, "untruncated": own, "behaviour": own,
        "teacher": teacher, "teacher.chosen": lq.flatten(), "teacher.ids": best,
        "reference.chosen": lb.flatten(), "reference.gathered": lb[where].gather(1, best),
    }  # fmt: skip
    return method.credit(Rows(columns))


def _slope(method: Method, rows: Rows, logits: Tensor) -> Tensor:
    """[P, V] the gradient of the method's loss, every word as often as the student wrote it."""
    leaf = logits.detach().requires_grad_()
    where = torch.arange(len(leaf)).repeat_interleave(leaf.shape[1])
    student = TableDist(maths.log_softmax(leaf)[where], rows["token"])
    loss = torch.stack([(rows["behaviour"].exp() * term.loss(student, rows)).sum() for term in method.terms.values()])
    return torch.autograd.grad(loss.sum(), leaf)[0]


# ---- the edge


def limits(q: float, b: float, c: float) -> float:
    """lambda* in closed form."""
    lq, lb = torch.tensor([q, b], dtype=torch.float64).log()
    return float(estimators.extrapolation_limit(lq, lb, c))


def edge(ends: Sequence[End], kind: int) -> float:
    """The least lambda of the sweep at which most of the student's other words are rarer by c or more; inf for none."""
    return next((end.lam for end in ends if end.beyond[kind] > 0.5), math.inf)


def _edges(found: dict[float, dict[str, list[End]]]) -> Table:
    lines = [
        [f"{c:g}", f"{q:g}", f"{b:g}", f"{limits(q, b, c):.4f}", *(_at(edge(row[how], kind)) for how in row)]
        for c, row in found.items()
        for kind, (q, b) in enumerate(CERTAIN)
    ]
    title = f"From which lambda on the words other than the right one are too rare, in steps of {STEP:g}"
    return Table(title, ["c", "teacher", "base", "lambda*", "without the guard", "with the guard"], lines)


def _at(lam: float) -> str:
    return f"{lam:.2f}" if math.isfinite(lam) else "never"


def _ends(found: dict[float, dict[str, list[End]]]) -> Table:
    lines = list[list[str]]()
    for c, row in found.items():
        for pair in list(zip(row["watch"], row["cap"], strict=True))[::5]:
            kept = [f"{end.right[0] ** REPEATED:.4f}" for end in pair]
            rarer = [f"{end.rarer[0]:.2f}" for end in pair]
            best = [f"{end.right[-1]:.3f}" for end in pair]
            lines.append([f"{c:g}", f"{pair[0].lam:.2f}", *kept, *rarer, *best])
    head = ["c", "lambda", *(f"{what}{how}" for what in FOUND for how in ("", ", guard"))]
    certain, free = ("({:g}, {:g})".format(*kind) for kind in (CERTAIN[0], FREE))
    title = f"Texts of {REPEATED} certain {certain} and {REPEATED} free positions {free} at the end"
    return Table(title, head, lines)


def _panel_rarer(found: dict[float, dict[str, list[End]]]) -> Panel:
    lines, reach = _lines(found, lambda end: end.rarer[0]), [end.lam for end in next(iter(found.values()))["watch"]]
    lines += [Line(f"the cap {c:g}, lambda* = {limits(*CERTAIN[0], c):.2f}", reach, [c] * len(reach)) for c in found]
    title = "A certain position (teacher {:g}, base {:g})".format(*CERTAIN[0])
    return Panel(title, "lambda", "other words rarer than the teacher's, times", lines, log_y=True)


def _panel_broken(found: dict[float, dict[str, list[End]]]) -> Panel:
    lines = _lines(found, lambda end: 1 - end.right[0] ** REPEATED)
    return Panel(f"Texts with {REPEATED} such positions", "lambda", "share with a broken format", lines, log_y=True)


def _lines(found: dict[float, dict[str, list[End]]], value: Callable[[End], float]) -> list[Line]:
    return [
        Line(f"c = {c:g}{', guard' if how == 'cap' else ''}", [end.lam for end in ends], [value(end) for end in ends])
        for c, row in found.items()
        for how, ends in row.items()
    ]
