"""What a whole answer is credited with, and the two controls, against enumeration of a tiny policy in float64."""

import math

import pytest
import torch

from opd.dist import TableDist
from opd.parts.credit import ReturnToGo, Shuffled
from opd.recipes import load
from opd.rows import Rows

V, STOP, LONGEST = 3, 0, 3


def answers(prefix=()):
    """Every answer of at most three tokens; token 0 ends it."""
    if len(prefix) == LONGEST or (prefix and prefix[-1] == STOP):
        return [prefix]
    return [answer for token in range(V) for answer in answers((*prefix, token))]


def draw(seed):
    return torch.randn(LONGEST, V, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def enumerated(logits, lq):
    """The table of all answers, the student's distributions, and the log-prob of each answer under both [B]."""
    sequences = answers()
    sequence = torch.tensor([b for b, y in enumerate(sequences) for _ in y])
    row = torch.tensor([t for y in sequences for t in range(len(y))])
    token = torch.tensor([token for y in sequences for token in y])
    before = torch.tensor([y[t - 1] if t else STOP for y in sequences for t in range(len(y))])
    student = TableDist(logits.log_softmax(-1)[row, before], token)
    teacher = TableDist(lq[row, before], token)
    own = student.chosen.detach()
    columns = {"sequence": sequence, "episode": sequence, "row": row, "token": token, "untruncated": own}
    columns |= {"keep": torch.ones(len(row), dtype=torch.bool), "behaviour": own, "teacher.chosen": teacher.chosen}
    sums = [
        torch.zeros(len(sequences), dtype=torch.float64).index_add(0, sequence, d.chosen) for d in (student, teacher)
    ]
    return Rows(columns), student, *sums


def mean_gradient(method, logits, lq):
    """The gradient of one update on average over answers drawn from the student."""
    rows, student, log_p, _ = enumerated(logits, lq)
    rows = method.credit(rows)
    term = method.terms["advantage"]
    drawn = (log_p.exp() * len(log_p)).detach()[rows["sequence"]]  # each answer stands once in the table
    loss = (term.mean(rows) * drawn * term.loss(student, rows)).sum()
    return torch.autograd.grad(loss, logits)[0]


def test_sequence_kl_has_the_gradient_of_reverse_kl_between_whole_answers():
    logits, lq = draw(0).requires_grad_(), draw(1).log_softmax(-1)
    _, _, log_p, log_q = enumerated(logits, lq)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-14)
    (exact,) = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), logits)
    assert (mean_gradient(load("sequence_kl")(), logits, lq) - exact).abs().max() < 1e-14
    immediate = mean_gradient(load("sampled_token")(mean="sequence_sum"), logits, lq)
    assert (immediate - exact).abs().max() > 1e-2, "the token level drops the coupling to the future"
    through = mean_gradient(load("sampled_token")(gamma=1.0, mean="sequence_sum"), logits, lq)
    assert torch.equal(through, mean_gradient(load("sequence_kl")(), logits, lq))


def test_returns_leave_out_what_is_not_learned_from():
    rows = Rows(
        {
            "keep": torch.tensor([True, False, True, False]),
            "episode": torch.tensor([0, 0, 0, 0]),
            "row": torch.arange(4),
            "advantage": torch.tensor([1.0, -58.0, 2.0, math.nan]),
        }
    )
    assert ReturnToGo(1.0)(rows)["advantage"][rows["keep"]].tolist() == [3.0, 2.0]


def test_a_constant_negative_advantage_lowers_the_mass_of_unlikely_tokens():
    logits, lq = draw(2).requires_grad_(), draw(3).log_softmax(-1)
    slope = mean_gradient(load("constant_negative")(threshold=0.25, size=2.0, mean="sequence_sum"), logits, lq)
    rows, _, log_p, _ = enumerated(logits, lq)
    p = logits.softmax(-1)
    mass = (p * (p < 0.25)).sum(-1)  # per state
    start = rows["row"] == 0
    visited = torch.zeros(LONGEST, V, dtype=torch.float64)  # how often the student comes to each state
    before = torch.cat([rows["token"].new_zeros(1), rows["token"][:-1]]).masked_fill(start, STOP)
    visited.index_put_((rows["row"], before), log_p.detach().exp()[rows["sequence"]], accumulate=True)
    (exact,) = torch.autograd.grad(2.0 * (visited * mass).sum(), logits)
    assert 0 < int((p < 0.25).sum()) < p.numel()
    assert (slope - exact).abs().max() < 1e-14


def shuffle_table(order=None, step=0):
    generator = torch.Generator().manual_seed(0)
    n = 60
    columns = {name: torch.randn(n, dtype=torch.float64, generator=generator) for name in ("advantage", "untruncated")}
    columns |= {"token": torch.arange(n) % 7, "position": torch.arange(n) % 12 + 3, "row": torch.arange(n) % 12}
    columns |= {"keep": torch.arange(n) % 5 != 0, "number": torch.arange(n)}
    columns["advantage"][0] = torch.nan
    rows = Rows(columns, step)
    return rows if order is None else rows.index(order)


def test_shuffled_deals_the_same_numbers_to_other_tokens():
    rows = shuffle_table()
    done, keep = Shuffled()(rows), rows["keep"]
    before, after = rows["advantage"][keep], done["advantage"][keep]
    assert sorted(before.tolist()) == sorted(after.tolist())
    assert (before == after).double().mean() < 0.1
    assert torch.equal(rows["advantage"][~keep].isnan(), done["advantage"][~keep].isnan())
    assert not torch.equal(Shuffled()(shuffle_table(step=1))["advantage"][keep], after), "every step its own deal"


def test_the_deal_does_not_depend_on_the_order_of_the_table():
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    one, other = Shuffled()(shuffle_table()), Shuffled()(shuffle_table(order))
    assert torch.equal(one["advantage"][order][other["keep"]], other["advantage"][other["keep"]])


def test_shuffled_with_nothing_kept():
    rows = shuffle_table()
    none = rows.plus(keep=torch.zeros_like(rows["keep"]))
    assert torch.equal(Shuffled()(none)["advantage"].isnan(), rows["advantage"].isnan())
