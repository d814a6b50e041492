"""Offline distillation: at its start it is the online method, and what it drifts by is what the weights correct."""

from dataclasses import replace

import pytest
import torch

from opd import maths
from opd.contract import distance, gradients, toy_groups
from opd.dist import TableDist
from opd.lab.toy import ToyModel
from opd.parts.losses import TowardsTeacher
from opd.recipes import load
from opd.rollout import Visit
from opd.rows import Rows
from opd.step import prepare

V = 6


def world(seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(V, dtype=torch.float64, generator=generator)
    return draw(), draw(), draw()  # logits of the student as it was, of the way it goes, of the teacher


def expected_gradient(logits, old, lq, weighted):
    """Of the loss over all words, each as often as the student of before wrote it."""
    logits = logits.clone().requires_grad_()
    token = torch.arange(V)
    rows = Rows({"keep": torch.ones(V, dtype=torch.bool), "behaviour": old, "teacher.chosen": lq})
    each = TowardsTeacher("behaviour" if weighted else "")(TableDist(logits.log_softmax(-1).expand(V, V), token), rows)
    loss = (old.exp() * each).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    return float(loss), gradient


def reverse_kl(logits, lq):
    logits = logits.clone().requires_grad_()
    loss = maths.reverse_kl(logits.log_softmax(-1)[None], lq[None]).sum()
    return float(loss), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("seed", range(3))
def test_the_drift_grows_with_the_distance_from_the_student_that_wrote(seed):
    start, way, teacher = world(seed)
    old, lq = start.log_softmax(-1), teacher.log_softmax(-1)
    errors = []
    for far in (0.0, 0.1, 0.3, 1.0):
        logits = start + far * way
        _, online = reverse_kl(logits, lq)
        _, offline = expected_gradient(logits, old, lq, weighted=False)
        errors.append(float((offline - online).norm()))
    assert errors[0] < 1e-14 < errors[1] < errors[2] < errors[3]


@pytest.mark.parametrize("far", [0.0, 0.5, 3.0])
def test_weighted_it_is_the_reverse_kl_and_its_gradient_wherever_the_student_goes(far):
    start, way, teacher = world(1)
    old, lq, logits = start.log_softmax(-1), teacher.log_softmax(-1), start + far * way
    value, gradient = expected_gradient(logits, old, lq, weighted=True)
    exact, online = reverse_kl(logits, lq)
    assert value == pytest.approx(exact, abs=1e-14)
    assert torch.allclose(gradient, online, atol=1e-14)


def test_the_gradient_is_the_surrogate_of_the_paper():
    """-A pi/sg[pi] with A = sg[log q - log pi], written out; and with the stored log-probs of the student of before."""
    start, way, teacher = world(2)
    old, lq = start.log_softmax(-1), teacher.log_softmax(-1)
    logits = (start + way).requires_grad_()
    lp = logits.log_softmax(-1)
    advantage = (lq - lp).detach()
    for weighted, ratio in ((False, (lp - lp.detach()).exp()), (True, (lp - old).exp())):
        (paper,) = torch.autograd.grad((-old.exp() * advantage * ratio).sum(), logits, retain_graph=True)
        assert torch.allclose(expected_gradient(logits.detach(), old, lq, weighted)[1], paper, atol=1e-14)


def batch(method, cast):
    return prepare(toy_groups(method, cast), method, cast, 0)


def test_at_the_start_its_gradient_is_that_of_the_online_method():
    cast = {"student": ToyModel(seed=1), "reference": ToyModel(seed=1), "teacher": ToyModel(seed=2)}
    online, offline = load("sampled_token")(n=1), load("lightning")()
    rows, sequences = batch(online, cast)
    exact = gradients(online, cast["student"], rows, sequences)
    for method in (offline, load("lightning")(weighted=True)):
        ours, written = batch(method, cast)
        assert [text.tolist() for text in written] == [text.tolist() for text in sequences], "the same texts"
        assert distance(gradients(method, cast["student"], ours, written), exact) < 1e-14


def test_later_it_is_neither_the_online_method_nor_sampled_token_on_old_texts():
    cast = {"student": ToyModel(seed=1), "reference": ToyModel(seed=1), "teacher": ToyModel(seed=2)}
    offline = load("lightning")()
    rows, sequences = batch(offline, cast)
    with torch.no_grad():
        cast["student"].first += 0.1
    again, written = batch(offline, cast)
    assert [text.tolist() for text in written] == [text.tolist() for text in sequences], "nothing new is written"
    ours = gradients(offline, cast["student"], again, written)
    stale = load("sampled_token")(n=1)  # its advantage is what the student of before thought
    credited = stale.credit(rows)
    assert distance(ours, gradients(stale, cast["student"], credited, written)) > 1e-3
    assert distance(ours, gradients(load("lightning")(weighted=True), cast["student"], again, written)) > 1e-3
    fresh, new = batch(stale, cast)
    assert distance(ours, gradients(stale, cast["student"], fresh, new)) > 1e-3


def test_a_student_that_agrees_with_its_teacher_stays():
    """On texts of anybody: here those of a third model."""
    cast = {"student": ToyModel(seed=1), "reference": ToyModel(seed=5), "teacher": ToyModel(seed=1)}
    method = load("lightning")()
    gradient = gradients(method, cast["student"], *batch(method, cast))
    assert max(float(g.abs().max()) for g in gradient.values()) < 1e-14


def test_the_texts_are_those_of_the_first_visit_and_travel_with_a_checkpoint():
    cast = {"student": ToyModel(seed=1), "reference": ToyModel(seed=1), "teacher": ToyModel(seed=2)}
    method = load("lightning")()
    groups = toy_groups(method, cast)
    visits = [Visit(group.problem, 3, 5) for group in groups]
    other = load("lightning")()
    other.state["traces"].load_state_dict(method.state["traces"].state_dict())
    later = other.sample({**cast, "reference": None}, visits, 9)
    tokens = lambda found: [r.tokens.tolist() for group in found for r in group.rollouts]
    assert tokens(later) == tokens(groups)
    assert replace(method).roles == ["reference", "teacher"]
