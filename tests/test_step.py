"""One sum, any partition: value and gradient against a loop written by hand, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from opd import maths
from opd.contract import distance, gradients, toy_cast, toy_groups
from opd.dist import GradBuffer, HeadDist
from opd.errors import MethodError
from opd.lab.toy import ToyModel
from opd.method import Ask, Method, Term, Updates
from opd.parts.credit import ReturnToGo
from opd.parts.losses import CrossEntropy, Everywhere
from opd.parts.means import sequence_mean, token_mean
from opd.parts.observe import student as observe_student
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Group, Problem, Rollout, Sampling
from opd.rows import Rows
from opd.step import gradient, observed_rows, plan, prepare, updates

BOTH = {
    "match": Term(Everywhere(maths.reverse_kl), token_mean),
    "copy": Term(CrossEntropy(), sequence_mean, 0.3, rows="good"),
}
TEACH = (Ask("teacher", "teacher", Want(dist=True)),)


def mark_good(rows: Rows) -> Rows:
    """The second term learns from rows of even sequences only."""
    return rows.plus(good=rows["sequence"] % 2 == 0, keep=rows["row"] != 1)


METHOD = Method(sample=OneTurn(2), teach=TEACH, credit=mark_good, terms=BOTH)


def written(method=METHOD, n=6):
    cast = toy_cast(method)
    groups = toy_groups(method, cast, n)
    return cast, groups, *prepare(groups, method, cast, 0)


def by_hand(cast, groups, numbers=None):
    """Both terms of METHOD without table, chunk or weight column: plain loops over sequences and positions."""
    student, teacher = cast["student"], cast["teacher"]
    rollouts = [r for g in groups for r in g.rollouts]
    chosen = range(len(rollouts)) if numbers is None else numbers
    match, copied, kept = 0.0, [], 0
    for i in chosen:
        tokens = torch.as_tensor(rollouts[i].tokens).long()[None]
        lp = (student.layers_of(tokens)[-1][0] @ student.head.T).log_softmax(-1)
        lq = (teacher.layers_of(tokens)[-1][0] @ teacher.head.T).log_softmax(-1).detach()
        own = []
        for row, position in enumerate(rollouts[i].positions):
            p, q = lp[position - 1], lq[position - 1]
            if row != 1:
                match, kept = match + (p.exp() * (p - q)).sum(), kept + 1
            own.append(-p[rollouts[i].tokens[position]])
        if i % 2 == 0:
            copied.append(torch.stack(own).mean())
    return match / kept + 0.3 * torch.stack(copied).mean()


def test_two_terms_with_their_own_means_equal_a_loop_by_hand():
    cast, groups, rows, sequences = written()
    student = cast["student"]
    expected = by_hand(cast, groups)
    expected.backward()
    reference = {name: p.grad.clone() for name, p in student.named_parameters()}
    for micro, chunk in [(10**6, 10**6), (1, 1), (17, 2), (40, 7)]:
        student.zero_grad()
        outcome = gradient(student, rows, sequences, METHOD, micro, chunk)
        assert outcome.loss == pytest.approx(float(expected), abs=1e-12)
        ours = {name: p.grad for name, p in student.named_parameters()}
        assert distance(reference, ours) < 1e-12


def test_two_updates_of_unequal_size_equal_a_loop_by_hand():
    """The mean belongs to the update: dividing by the whole batch's rows would be another step length."""
    cast, groups, rows, sequences = written(n=5)
    parts = list(updates(rows, Updates(epochs=2, parts=2), seed=3))
    assert len(parts) == 4 and len(parts[0]) + len(parts[1]) == len(rows) and len(parts[0]) != len(parts[1])
    assert not set(parts[0]["group"].tolist()) & set(parts[1]["group"].tolist()), "a group is never torn"
    for part in parts:
        ours = gradients(METHOD, cast["student"], part, sequences, chunk=3)
        cast["student"].zero_grad()
        by_hand(cast, groups, sorted(set(part["sequence"].tolist()))).backward()
        assert distance(ours, {name: p.grad for name, p in cast["student"].named_parameters()}) < 1e-12


def test_a_mean_over_the_batch_would_be_told_apart():
    cast, _, rows, sequences = written(n=5)
    part = next(updates(rows, Updates(parts=2), seed=3))
    right = gradients(METHOD, cast["student"], part, sequences)
    wrong_mean = lambda table: table["keep"].double() / float(rows["keep"].sum())
    wrong = replace(METHOD, terms={**BOTH, "match": Term(Everywhere(maths.reverse_kl), wrong_mean)})
    assert distance(right, gradients(wrong, cast["student"], part, sequences)) > 1e-3


def test_nan_everywhere_in_a_row_without_weight_harms_nothing():
    cast, _, rows, sequences = written()
    dead = rows["sequence"] == 3
    keep, good = rows["keep"] & ~dead, rows["good"] & ~dead
    clean = gradients(METHOD, cast["student"], rows.plus(keep=keep, good=good), sequences, chunk=2)
    dist = rows.dist("teacher")
    hidden = torch.where(dead[:, None], torch.nan, dist.hidden)
    poisoned = rows.plus(
        keep=keep, good=good, teacher=replace(dist, hidden=hidden), behaviour=torch.full((len(rows),), torch.nan)
    )
    assert distance(clean, gradients(METHOD, cast["student"], poisoned, sequences, chunk=2)) == 0


def test_weights_that_are_not_numbers_stop():
    cast, _, rows, sequences = written()
    broken = replace(
        METHOD, terms={"match": Term(Everywhere(maths.reverse_kl), lambda rows: rows["keep"] / torch.tensor(0.0))}
    )
    with pytest.raises(MethodError, match="match"):
        gradient(cast["student"], rows, sequences, broken)


def test_no_live_row_is_no_pass():
    cast, _, rows, sequences = written()
    nothing = torch.zeros(len(rows), dtype=torch.bool)
    outcome = gradient(cast["student"], rows.plus(keep=nothing, good=nothing), sequences, METHOD)
    assert (outcome.passes, outcome.live, outcome.loss) == (0, 0, 0.0)


def test_plan_cuts_after_the_last_live_row_and_keeps_the_budget():
    _, _, rows, sequences = written()
    live = rows["row"] < 2
    for micro in (1, 30, 10**6):
        batches = plan(rows, live, sequences, micro, after=False)
        assert sorted(torch.cat([b.rows for b in batches]).tolist()) == live.nonzero().squeeze(-1).tolist()
        for batch in batches:
            assert max(map(len, batch.tokens)) * len(batch.tokens) <= micro or len(batch.tokens) == 1
            for tokens, positions in zip(batch.tokens, batch.positions, strict=True):
                assert len(tokens) == positions[-1], "the last row's own token is not fed"
    after = plan(rows, live, sequences, 10**6, after=True)
    assert all(len(t) == p[-1] + 1 for b in after for t, p in zip(b.tokens, b.positions, strict=True))


def conversation() -> Rollout:
    """Question, two tokens by the student, three by a tool, one by the student, one by the tool, two by the student."""
    author = np.array([0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 1], np.int8)
    tokens = np.array([2, 3, 4, 5, 2, 2, 3, 6, 4, 5, 3], np.int32)
    columns = {"turn": np.array([0, 0, 1, 2, 2]), "behaviour": np.zeros(5), "untruncated": np.zeros(5)}
    return Rollout(tokens, author, Problem("talk", "ab"), Sampling(), columns=columns)


def test_many_turns_give_rows_for_the_sampled_tokens_alone():
    rollout = conversation()
    group = Group(rollout.problem, (rollout,), ToyModel().render)
    method = Method(sample=OneTurn(), teach=TEACH, terms={"copy": Term(CrossEntropy(), token_mean)})
    cast = toy_cast(method)
    rows, sequences = prepare([group], method, cast, 0)
    assert rows["position"].tolist() == [2, 3, 7, 9, 10]
    assert rows["token"].tolist() == [4, 5, 6, 5, 3]
    student = cast["student"]
    gradient(student, rows, sequences, method, chunk=2)
    ours = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    lp = (student.layers_of(torch.as_tensor(rollout.tokens).long()[None])[-1][0] @ student.head.T).log_softmax(-1)
    (-sum(lp[p - 1, rollout.tokens[p]] for p in rollout.positions) / 5).backward()
    assert distance(ours, {name: p.grad for name, p in student.named_parameters()}) < 1e-14


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("rows", [1 + 0.5 + 0.25 + 0.125 + 0.0625, 1 + 0.5 + 0.25 + 0.125, 1 + 0.5 + 0.25, 1.5, 1]),
        ("tokens", [1 + 0.5 + 2**-5 + 2**-7 + 2**-8, 1 + 2**-4 + 2**-6 + 2**-7, 1 + 0.25 + 0.125, 1.5, 1]),
        ("turns", [2 + 0.5 + 2 * 0.25, 1 + 0.5 + 2 * 0.25, 1 + 2 * 0.5, 2, 1]),
    ],
)
def test_return_to_go_counts_rows_tokens_or_turns(unit, expected):
    rollout = conversation()
    rows = Rows.of([Group(rollout.problem, (rollout,), ToyModel().render)], dtype=torch.float64)
    credited = ReturnToGo(0.5, unit)(rows.plus(advantage=torch.ones(5, dtype=torch.float64)))
    assert credited["advantage"].tolist() == pytest.approx(expected, abs=1e-14)


def test_head_gradient_in_bfloat16_does_not_depend_on_the_partition():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(256, 16, generator=generator).bfloat16()
    head = torch.randn(32, 16, generator=generator).bfloat16()
    tokens = torch.randint(32, (256,), generator=generator)

    def summed(chunk):
        buffer = GradBuffer(head)
        for start in range(0, 256, chunk):
            here = slice(start, start + chunk)
            HeadDist(
                hidden[here].clone().requires_grad_(), head, tokens[here], 32, grad_head=buffer
            ).chosen.sum().backward()
        return buffer.sum

    whole, split = summed(256), summed(1)
    assert whole.dtype == torch.float32
    assert float((whole - split).norm() / whole.norm()) < 4e-3, "no more than bfloat16's own rounding"


class Scaled(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, student, rows):
        return -student.chosen * self.log_scale.exp()


def test_a_loss_may_be_a_module_that_learns():
    loss = Scaled()
    method = Method(sample=OneTurn(), terms={"own": Term(loss, token_mean)})
    cast = toy_cast(method)
    rows, sequences = prepare(toy_groups(method, cast), method, cast, 0)
    outcome = gradient(cast["student"], rows, sequences, method, chunk=3)
    assert float(loss.log_scale.grad) == pytest.approx(outcome.loss, abs=1e-12)


def test_a_bounded_number_of_rows_is_measured_whatever_the_period_of_the_table():
    live = torch.ones(10_000, dtype=torch.bool)
    seen = observed_rows(live, 500)
    assert abs(int(seen.sum()) - 500) <= 2
    for period in (2, 16, 64):  # sequences of equal length: every position is met equally often
        by_position = torch.bincount(seen.nonzero().squeeze(1) % period, minlength=period).float()
        assert float(by_position.min()) > 0.6 * 500 / period
    assert bool((observed_rows(live, 10_000) == live).all())
    assert not bool(observed_rows(torch.zeros(5, dtype=torch.bool), 3).any())


def test_measurements_do_not_depend_on_the_partition(monkeypatch):
    monkeypatch.setattr("opd.step.OBSERVED_ELEMENTS", (7 * 12, 7 * 12))  # 12 rows of the toy's 7 words
    cast, _, rows, sequences = written(replace(METHOD, observe=(observe_student,)))
    how = [{}, {"chunk": 1}, {"chunk": 5, "micro_tokens": 1}]
    found = [
        gradient(cast["student"], rows, sequences, replace(METHOD, observe=(observe_student,)), **one).observed
        for one in how
    ]
    assert 0 < int(found[0]["student.entropy"].isfinite().sum()) < len(rows)
    for other in found[1:]:
        for name, column in found[0].items():
            torch.testing.assert_close(other[name], column, equal_nan=True, rtol=1e-12, atol=1e-12)
