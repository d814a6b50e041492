"""Signals by enumeration, masks and weights by written numbers, and specialists that are routed."""

import math
from dataclasses import replace

import pytest
import torch

from opd import maths
from opd.contract import distance, gradients, toy_groups
from opd.dist import TableDist
from opd.errors import OpdError
from opd.lab.toy import ToyModel
from opd.method import Ask, Method, Term
from opd.parts.losses import Everywhere
from opd.parts.means import Weighted, sequence_mean, token_mean
from opd.parts.sample import OneTurn
from opd.parts.selection import MostContested, Signals, SkipSettled, SurelyWrong
from opd.protocols import Want
from opd.recipes.raps_da import raps_da
from opd.rows import Rows
from opd.step import prepare
from opd.teachers.routed import Routed


def logs(seed, n=4, v=5):
    return torch.randn(n, v, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def table(n=4, **columns):
    base = {
        "keep": torch.ones(n, dtype=torch.bool),
        "sequence": torch.zeros(n, dtype=torch.long),
        "behaviour": torch.zeros(n, dtype=torch.float64),
    }
    return Rows({**base, **columns})


def test_disagreement_is_the_mean_divergence_from_the_mixture():
    lps = [logs(seed) for seed in range(3)]
    mixture = torch.stack([lp.exp() for lp in lps]).mean(0).log()
    by_hand = torch.stack([(lp.exp() * (lp - mixture)).sum(-1) for lp in lps]).mean(0)
    assert torch.allclose(maths.disagreement(lps), by_hand, atol=1e-14)
    assert maths.disagreement([lps[0]] * 3).abs().max() < 1e-14
    apart = [
        torch.full((1, 4), -torch.inf, dtype=torch.float64).index_fill(1, torch.tensor([i]), 0.0) for i in range(3)
    ]
    assert maths.disagreement(apart).item() == pytest.approx(math.log(3))


def test_two_teachers_disagree_by_half_a_jsd():
    lp, lq = logs(0), logs(1)
    assert torch.allclose(maths.disagreement([lp, lq]), maths.jsd(lp, lq, 0.5), atol=1e-14)


def test_signals_are_what_they_say():
    dists = {
        name: TableDist(logs(seed), torch.zeros(4, dtype=torch.long))
        for seed, name in enumerate(("own", "teacher", "a", "b"))
    }
    rows = Signals(("a", "b"))(table(**dists))
    assert torch.allclose(rows["conflict"], maths.jsd(logs(2), logs(3), 0.5))
    assert torch.allclose(rows["gap"], maths.reverse_kl(logs(0), logs(1)))
    assert torch.allclose(rows["unsure"], maths.entropy(logs(0)) / math.log(5))


def test_masks_are_counted_by_their_reason():
    rows = table(
        gap=torch.tensor([0.0, 1.0, 1.0, 1.0]),
        unsure=torch.tensor([0.1, 0.9, 0.9, 0.1]),
        conflict=torch.tensor([1.0, 0.0, 0.5, 0.0]),
    )
    rows = SkipSettled(0.0, 0.5, 0.01)(rows)
    assert rows["masked.settled"].tolist() == [True, False, False, False]
    assert rows["masked.unstable"].tolist() == [False, True, False, False]
    assert rows["keep"].tolist() == [False, False, True, True]


def test_the_most_contested_of_each_answer_remain():
    rows = table(6, conflict=torch.tensor([1.0, 2, 3, 4, 5, 6]), sequence=torch.tensor([0, 0, 0, 0, 1, 1]))
    kept = lambda step, **how: MostContested(**how)(replace(rows, step=step))["keep"].tolist()
    assert kept(0, end=0.5, steps=10) == [True] * 6
    assert kept(5, end=0.5, steps=10) == [False, True, True, True, True, True]  # three quarters, rounded up
    assert kept(10, end=0.5, steps=10) == kept(99, end=0.5, steps=10) == [False, False, True, True, False, True]
    assert kept(99, end=0.01, steps=0) == [False, False, False, True, False, True]
    flat = rows.plus(conflict=torch.zeros(6))
    assert MostContested(0.5, 0)(flat)["keep"].all(), "ties at the edge stay in"


def test_a_sure_and_wrong_token_counts_more():
    rows = table(gap=torch.tensor([1.0, 3.0, 1.0, 3.0]), unsure=torch.tensor([0.0, 0.0, 1.0, 0.5]))
    assert SurelyWrong(2.0)(rows)["weight"].tolist() == [2.0, 4.0, 1.0, 2.5]
    assert SurelyWrong(0.0)(rows)["weight"].tolist() == [1.0] * 4
    assert SurelyWrong(2.0)(rows.plus(gap=torch.zeros(4)))["weight"].tolist() == [1.0] * 4


def test_weights_are_in_the_denominator():
    rows = table(3, weight=torch.tensor([1.0, 3.0, 100.0]), keep=torch.tensor([True, True, False]))
    assert Weighted()(rows).tolist() == [0.25, 0.75, 0.0]
    even = rows.plus(weight=torch.full((3,), 7.0))
    for mean in (token_mean, sequence_mean):
        assert torch.allclose(Weighted(mean)(even), mean(even))


def specialised(names=("a", "b", "a", "b", "a", "b"), **parameters):
    """raps_da with two routed specialists on toy problems of two regimes."""
    method = raps_da(regimes=("a", "b"), **parameters)
    cast = {"student": ToyModel(seed=1), "teacher": Routed({"a": ToyModel(seed=2), "b": ToyModel(seed=3)})}
    groups = [
        replace(
            g, rollouts=tuple(replace(r, problem=replace(r.problem, data={"teacher_id": name})) for r in g.rollouts)
        )
        for g, name in zip(toy_groups(method, cast, len(names)), names, strict=True)
    ]
    return method, cast, groups


def test_every_problem_learns_from_its_own_specialist_and_all_are_heard():
    method, cast, groups = specialised()
    rows, _ = prepare(groups, method, cast, 0)
    for name, member in cast["teacher"].members.items():
        alone = {**cast, "teacher": member}
        read = prepare(groups, replace(method, teach=(method.teach[0], *method.teach[1:])), alone, 0)[0]
        assert torch.equal(rows.dist(f"teacher_{name}").logprobs(), read.dist("teacher").logprobs())
        own = torch.tensor([groups[int(g)].rollouts[0].problem.data["teacher_id"] == name for g in rows["group"]])
        assert torch.equal(rows.dist("teacher").logprobs()[own], read.dist("teacher").logprobs()[own])
    assert rows["conflict"].min() > 0


def test_identical_specialists_without_mask_and_weight_are_plain_reverse_kl():
    method, cast, groups = specialised(unsure=1.0, end=1.0, kappa=0.0, gap=-1.0)
    cast["teacher"] = Routed({name: ToyModel(seed=2) for name in ("a", "b")})
    rows, sequences = prepare(groups, method, cast, 50)
    assert rows["conflict"].abs().max() < 1e-12
    plain = Method(
        sample=OneTurn(), teach=(Ask("teacher", "teacher", Want(dist=True)),),
        terms={"match": Term(Everywhere(maths.reverse_kl), token_mean)},
    )  # fmt: skip
    other = gradients(plain, cast["student"], *prepare(groups, plain, cast, 50))
    assert distance(gradients(method, cast["student"], rows, sequences), other) < 1e-14


def test_the_control_learns_from_all_specialists_alike():
    """Its gradient is the mean of the gradients of two runs in which every problem is one specialist's."""
    off = {"unsure": 1.0, "end": 1.0, "kappa": 0.0, "gap": -1.0}
    found = []
    for names, target in (("aaaaaa", "routed"), ("bbbbbb", "routed"), ("ababab", "averaged")):
        method, cast, groups = specialised(tuple(names), target=target, **off)
        found.append(gradients(method, cast["student"], *prepare(groups, method, cast, 0)))
    one, other, both = found
    mean = {name: (value + other[name]) / 2 for name, value in one.items()}
    assert distance(both, mean) < 1e-14 < distance(one, other)


def test_the_weight_is_held_still():
    """Its own dependence on the student is no part of the gradient: doubled weights, doubled share, nothing else."""
    method, cast, groups = specialised(kappa=3.0)
    rows, sequences = prepare(groups, method, cast, 0)
    assert not rows["weight"].requires_grad
    frozen = rows.plus(weight=rows["weight"] * 2)
    one = gradients(method, cast["student"], rows, sequences)
    assert distance(one, gradients(method, cast["student"], frozen, sequences)) < 1e-14


def test_opposite_regimes_are_both_learned_when_routed_and_pooled_when_not():
    """One prefix, two regimes apart only by a bit of the context: two targets; without it, their normalised product."""
    a, b = logs(5, 1, 4), logs(6, 1, 4)
    routed = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    shared = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([routed, shared], max_iter=200, tolerance_grad=1e-14, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        loss = maths.reverse_kl(routed.log_softmax(-1), torch.cat([a, b])).sum()
        pooled = shared.log_softmax(-1)
        loss = loss + maths.reverse_kl(pooled, a).sum() + maths.reverse_kl(pooled, b).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.allclose(routed.detach().softmax(-1), torch.cat([a, b]).exp(), atol=1e-6)
    assert torch.allclose(shared.detach().softmax(-1), ((a + b) / 2).softmax(-1), atol=1e-6)


@pytest.mark.parametrize("wrong", [{"regimes": ("alone",)}, {"end": 0.0}, {"fade": -1}, {"kappa": -1.0}])
def test_impossible_values_are_refused(wrong):
    with pytest.raises(OpdError):
        raps_da(**wrong)
