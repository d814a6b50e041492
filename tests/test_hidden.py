"""Hidden states that are matched: what no output loss sees, what is summed with one, and what the release does."""

import pytest
import torch

from opd import maths
from opd.contract import anatomy, check, distance, gradients, toy_groups
from opd.dist import HeadDist
from opd.lab.toy import ToyModel
from opd.parts.hidden import StateDistance
from opd.parts.losses import Everywhere, PolicyGradient
from opd.recipes.representation import representation
from opd.recipes.sampled_token import sampled_token
from opd.rows import Rows
from opd.step import prepare

N, V, D = 5, 4, 6


def drawn(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unseen_by_the_head(head):
    """[D] a direction that moves every logit by the same amount, so that no probability moves."""
    return torch.linalg.svd(head - head.mean(0)).Vh[-1]


def slopes(hidden):
    """Loss and gradient in the last hidden state of a distance between states, and of two losses on the output."""
    head, token = drawn(0, V, D), torch.arange(N) % V
    states = drawn(2, N, D)
    teacher = HeadDist(states, head, token, V, states={-1: states})
    rows = Rows({
        "keep": torch.ones(N, dtype=torch.bool), "token": token, "teacher": teacher,
        "behaviour": torch.full((N,), -1.0).double(), "advantage": drawn(3, N),
    })  # fmt: skip
    found = {}
    for name, loss in {
        "states": StateDistance((-1,)),
        "full": Everywhere(maths.reverse_kl),
        "drawn": PolicyGradient(),
    }.items():
        leaf = hidden.clone().requires_grad_()
        value = loss(HeadDist(leaf, head, token, V, states={-1: leaf}), rows)
        found[name] = value.detach(), torch.autograd.grad(value.sum(), leaf)[0]
    return found


def test_what_the_head_does_not_see_moves_the_distance_and_no_output_loss():
    hidden = drawn(1, N, D)
    shift = 3.0 * unseen_by_the_head(drawn(0, V, D))
    before, after = slopes(hidden), slopes(hidden + shift)
    for name in ("full", "drawn"):
        assert all(torch.allclose(a, b, atol=1e-13, rtol=0) for a, b in zip(before[name], after[name], strict=True)), (
            name
        )
    (loss, slope), (other, its) = before["states"], after["states"]
    assert (other - loss).abs().min() > 0.1
    assert torch.allclose(its - slope, (2 / D * shift).expand(N, D), atol=1e-13)
    assert (slopes(hidden + drawn(4, D))["full"][0] - before["full"][0]).abs().min() > 1e-3, "another one is seen"


def test_both_sides_of_length_1_by_hand():
    ours, theirs = torch.tensor([[3.0, 4.0]]).double(), torch.tensor([[0.0, 2.0]]).double()
    token = torch.zeros(1, dtype=torch.long)
    dist = lambda state: HeadDist(state, drawn(0, V, 2), token, V, states={1: state})
    rows = Rows({"keep": token == 0, "teacher": dist(theirs)})
    assert StateDistance((1,))(dist(ours), rows).tolist() == pytest.approx([(3**2 + 2**2) / 2])
    assert StateDistance((1,), normalised=True)(dist(ours), rows).tolist() == pytest.approx([(0.6**2 + 0.2**2) / 2])


def batch(method):
    """A student that stops where it likes: its answers are of 1 to 5 tokens."""
    cast = {"student": ToyModel(seed=5), "teacher": ToyModel(seed=2)}
    return cast["student"], *prepare(toy_groups(method, cast), method, cast, 0)


def slope_of(method):
    return gradients(method, *batch(method))


def test_paper_and_release_differ_where_answers_are_of_unequal_length():
    paper = representation()
    assert len(set(batch(paper)[1]["length"].tolist())) == 4
    released = {"mean": "token_mean"}, {"normalised": True}, {"mean": "token_mean", "normalised": True}
    slopes = [slope_of(method) for method in (paper, *(representation(**options) for options in released))]
    assert min(distance(one, other) for i, one in enumerate(slopes) for other in slopes[:i]) > 1e-3


@pytest.mark.parametrize("mu", [1.0, 10.0])
def test_the_sum_is_the_policy_gradient_and_mu_times_the_states(mu):
    parts = sampled_token(n=2, mean="sequence_mean"), representation(last=2)
    both = representation(mu=mu, last=2)
    one, other, whole = (slope_of(method) for method in (*parts, both))
    assert distance({name: one[name] + mu * other[name] for name in one}, whole) < 1e-12
    assert not other["head"].any() and whole["head"].any(), "the head learns by the policy gradient alone"
    learned = {name: int(batch(both)[1][term.rows].sum()) for name, term in both.terms.items()}
    assert learned == {"states": int(batch(parts[1])[1]["keep"].sum()), "advantage": len(batch(both)[1])}
    assert learned["states"] < learned["advantage"]


def test_the_sum_asks_for_one_number_more_in_the_same_pass_and_keeps_the_contract():
    build = lambda **more: representation(mu=1.0, last=2, **more)
    assert anatomy(build).passes == anatomy(representation).passes
    assert len(list(check(build))) == 8
    assert len(list(check(lambda: representation(normalised=True)))) == 8
    ask = representation(bridge=4, mu=1.0).teach[0].want
    assert ask.chosen and ask.layers
