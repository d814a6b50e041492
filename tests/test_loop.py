"""The loop: every problem in its turn, measured steps, and no step along a gradient that is not a number."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from opd.contract import toy_cast
from opd.errors import DataError, NonFiniteError
from opd.lab.toy import problems
from opd.loop import Source, Training, one_step, train
from opd.measure import Kinds, Measures
from opd.method import Method, Term, Updates
from opd.parts.losses import CrossEntropy
from opd.parts.means import token_mean
from opd.parts.observe import measured
from opd.parts.sample import OneTurn
from opd.recipes import load


class ToyTask:
    name = "toy"

    def __init__(self, n=6):
        self.train = self.held_out = problems(n)

    def grade(self, problem, text):
        return float("2" in text.split())


def training(method, steps=4, **options):
    cast = toy_cast(method)
    method = measured(method, cast)
    optimizer = torch.optim.AdamW(cast["student"].parameters(), lr=1e-2)
    task = ToyTask()
    return Training(
        cast["student"], cast, task, method, optimizer, lambda step: 1e-2, Source(task.train, 3), steps, 4,
        measure=Measures(Kinds(cast["student"])), **options,
    )  # fmt: skip


def test_every_problem_once_per_epoch_in_another_order():
    source = Source(problems(7), seed=1)
    visits = source.take(5) + source.take(9) + source.take(7)
    epochs = [[v.problem.id for v in visits[i : i + 7]] for i in (0, 7, 14)]
    assert all(Counter(epoch) == Counter(p.id for p in problems(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [v.number for v in visits] == [0] * 7 + [1] * 7 + [2] * 7
    assert len({v.seed(s) for v in visits for s in range(3)}) == 63, "no two samples of a run share a seed"


def test_the_walk_goes_on_where_it_stood():
    whole, torn = Source(problems(5), seed=1), Source(problems(5), seed=1)
    expected = [v.problem.id for v in whole.take(20)]
    first = [v.problem.id for v in torn.take(7)]
    again = Source(problems(5), seed=1, position=torn.position)
    assert first + [v.problem.id for v in again.take(13)] == expected


def test_a_task_without_problems_is_named():
    with pytest.raises(DataError):
        Source([], seed=0).take(1)


def test_a_seed_fixes_everything():
    def run():
        t = training(load("gkd")(lam=0.5))
        return [b.metrics["loss"] for b in train(t)], [p.detach().clone() for p in t.student.parameters()]

    (a, p), (b, q) = run(), run()
    assert a == b and all(torch.equal(x, y) for x, y in zip(p, q, strict=True))


def test_a_batch_says_what_it_measured():
    batch = one_step(training(load("gkd")(lam=1.0)))
    assert {"loss", "grad_norm", "tokens", "length", "truncated", "kept", "reward", "reverse_kl"} <= set(batch.metrics)
    assert batch.metrics["tokens"] == len(batch.rows)
    assert batch.metrics["reverse_kl"] == pytest.approx(float(batch.rows["reverse_kl"].mean()), abs=1e-12)
    assert set(batch.rows["reward"].tolist()) <= {0.0, 1.0}


def broken(after: int) -> Method:
    """Gives nan from its `after`-th call on."""
    calls = Counter()

    def loss(student, rows):
        calls["n"] += 1
        return CrossEntropy()(student, rows) * (float("nan") if calls["n"] > after else 1.0)

    return Method(sample=OneTurn(), terms={"broken": Term(loss, token_mean)})


def test_three_updates_without_a_finite_gradient_stop_the_run_and_change_nothing():
    saved = []
    t = training(broken(after=1), on_failure=lambda step, rows: saved.append((step, len(rows))) or "there")
    one_step(t)
    before = [p.detach().clone() for p in t.student.parameters()]
    assert one_step(t).metrics["refused"] == 1.0
    one_step(t)
    with pytest.raises(NonFiniteError, match=r"3 updates in a row.*step 3.*there"):
        one_step(t)
    assert [step for step, _ in saved] == [1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(before, t.student.parameters(), strict=True))


def test_a_finite_update_forgives():
    t = training(broken(after=10**6))
    t.failures = 2
    one_step(t)
    assert t.failures == 0


def test_what_the_updates_of_a_batch_saw_is_put_together():
    """Two updates see half of the groups each; the second look of a later epoch does not count."""
    t = training(replace(load("local_support")(k=3), updates=Updates(epochs=2, parts=2)))
    batch = one_step(t)
    groups = {u: {int(g) for g in batch.rows["group"][batch.rows["update"] == u]} for u in (0, 1)}
    assert [len(g) for g in groups.values()] == [2, 2] and not groups[0] & groups[1]
    assert set(batch.rows["update"].tolist()) == {0, 1}
    assert not bool(batch.rows["student.chosen"].isnan().any())
    gap = (batch.rows["student.chosen"] - batch.rows["untruncated"]).abs()
    first = batch.rows["update"] == 0
    assert float(gap[first].max()) < 1e-12 < float(gap[~first].min())
    assert batch.metrics["engine.gap.max"] == pytest.approx(float(gap[first].max()), abs=1e-15)


def test_each_update_of_a_batch_is_a_step():
    method = replace(load("local_support")(k=3), updates=Updates(epochs=2, parts=2))
    t = training(method)
    one_step(t)
    assert {int(state["step"]) for state in t.optimizer.state.values()} == {4}
