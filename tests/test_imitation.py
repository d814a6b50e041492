"""What the papers on imitation prove, by enumeration in float64."""

import itertools

import pytest
import torch

from opd import estimators, maths
from opd.dist import TableDist
from opd.parts.credit import Earned, FutureCost, LessMean, ValueGate
from opd.parts.fading import Fading
from opd.parts.losses import Everywhere, ExpectedLoss, Gated, Imitate, MatchValues, PolicyGradient
from opd.parts.selection import MostContested
from opd.rows import Rows

V, T = 3, 3
WRITTEN = list(itertools.product(range(V), repeat=T))
HISTORIES = {h: i for i, h in enumerate(h for t in range(T) for h in itertools.product(range(V), repeat=t))}
WHERE = torch.tensor([[HISTORIES[w[:t]] for t in range(T)] for w in WRITTEN])  # [27, 3]
TOKENS = torch.tensor(WRITTEN)
DIVERGENCES = {"forward_kl": maths.forward_kl, "reverse_kl": maths.reverse_kl}


def tables():
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(len(HISTORIES), V, dtype=torch.float64, generator=generator)
    return draw().requires_grad_(), draw().log_softmax(-1)


def exact(logits, lq, divergence):
    """The gradient of E_y sum_t D(state_t), every text of three words listed."""
    lp = logits.log_softmax(-1)
    chance = lp[WHERE].gather(-1, TOKENS[..., None]).squeeze(-1).sum(-1).exp()
    total = (chance * divergence(lp, lq)[WHERE].sum(-1)).sum()
    return torch.autograd.grad(total, logits)[0]


def surrogate(logits, lq, divergence, future, gamma=1.0):
    """The gradient of the recipe's two terms over the table of all texts, each weighted by its probability."""
    lp = logits.log_softmax(-1)
    here, token = WHERE.reshape(-1), TOKENS.reshape(-1)
    student, teacher = TableDist(lp[here], token), TableDist(lq[here], token)
    n = len(token)
    sequence = torch.arange(n) // T
    own = TableDist(lp.detach()[here], token)
    columns = {"keep": torch.ones(n, dtype=torch.bool), "episode": sequence, "behaviour": own.chosen}
    rows = Rows({**columns, "own": own, "teacher": teacher})
    weight = own.chosen.reshape(-1, T).sum(-1).exp()[sequence]
    loss = weight * Everywhere(divergence)(student, rows)
    if future:
        loss = loss + weight * PolicyGradient()(student, FutureCost(divergence, gamma)(rows))
    return torch.autograd.grad(loss.sum(), logits)[0]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_with_the_future_term_the_update_is_the_exact_gradient(name):
    logits, lq = tables()
    whole = exact(logits, lq, DIVERGENCES[name])
    assert torch.allclose(surrogate(logits, lq, DIVERGENCES[name], future=True), whole, atol=1e-14)
    assert not torch.allclose(surrogate(logits, lq, DIVERGENCES[name], future=False), whole, atol=1e-2)
    assert not torch.allclose(surrogate(logits, lq, DIVERGENCES[name], True, gamma=0.5), whole, atol=1e-3)


def test_without_it_the_update_is_the_gradient_of_nothing():
    """Its Jacobian is not symmetric, so no function has it as a gradient; with the future term it is."""
    logits, lq = tables()

    def jacobian(future):
        step = 1e-5
        columns = []
        for place in range(logits.numel()):
            ends = []
            for sign in (1, -1):
                moved = logits.detach().clone()
                moved.view(-1)[place] += sign * step
                ends.append(surrogate(moved.requires_grad_(), lq, maths.forward_kl, future).flatten())
            columns.append((ends[0] - ends[1]) / (2 * step))
        return torch.stack(columns)

    def skew(matrix):
        return float((matrix - matrix.T).norm() / matrix.norm())

    assert skew(jacobian(True)) < 1e-6
    assert skew(jacobian(False)) > 0.05


def test_expected_loss_is_the_gradient_of_the_expected_value():
    logits, lq = tables()
    values = torch.randn(lq.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    lp = logits.log_softmax(-1)
    rows = Rows({"keep": torch.ones(len(lp), dtype=torch.bool), "teacher.values": values})
    student = TableDist(lp, torch.zeros(len(lp), dtype=torch.long))
    ours = torch.autograd.grad(ExpectedLoss()(student, rows).sum(), logits, retain_graph=True)[0]
    plain = torch.autograd.grad(-(lp.exp() * values).sum(), logits, retain_graph=True)[0]
    assert torch.allclose(ours, plain, atol=1e-14)
    # with the teacher's log-probs as values, and the entropy added, it is the immediate reverse KL
    loss = ExpectedLoss()(student, rows.plus(**{"teacher.values": lq})) - maths.entropy(lp)
    reverse = maths.reverse_kl(lp, lq)
    assert torch.allclose(loss - reverse, lq.amax(-1), atol=1e-12)
    best = torch.full_like(lp, -torch.inf).scatter(-1, values.argmax(-1, keepdim=True), 0.0)
    assert ExpectedLoss()(TableDist(best, student.tokens), rows).abs().max() == 0


def test_values_stand_for_a_policy():
    values = torch.tensor([[1.0, 1.02, 0.9]], dtype=torch.float64)
    assert torch.allclose(maths.value_policy(values, 1.0), values.log_softmax(-1))
    assert maths.value_policy(values, 0.01).exp()[0, 1] == pytest.approx(1 / (1 + torch.e**-2), abs=1e-5)
    with pytest.raises(ValueError, match="above 0"):
        maths.value_policy(values, 0.0)
    same = TableDist(maths.value_policy(values, 0.3), torch.zeros(1, dtype=torch.long))
    rows = Rows({"keep": torch.ones(1, dtype=torch.bool), "teacher.values": values})
    assert MatchValues(0.3)(same, rows).abs().max() < 1e-15 < MatchValues(0.2)(same, rows).min()


def columns(**more):
    """Two episodes of two and three decisions."""
    own = {"row": [0, 1, 0, 1, 2], "length": [2, 2, 3, 3, 3], "episode": [0, 0, 1, 1, 1]}
    n = len(own["row"])
    tensors = {name: torch.tensor(values) for name, values in {**own, **more}.items()}
    return Rows({"keep": torch.ones(n, dtype=torch.bool), **tensors})


def test_what_is_earned_and_its_baseline():
    rows = columns(earned=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert Earned(2.0)(rows)["advantage"].tolist() == [2.0, 4.0, 6.0, 8.0, 10.0]
    text = columns(reward=[1.0, 1.0, 0.5, 0.5, 0.5])
    assert Earned()(text)["advantage"].tolist() == [0.0, 1.0, 0.0, 0.0, 0.5]
    assert LessMean()(Earned()(rows))["advantage"].tolist() == [-1.0, -1.0, 1.0, 1.0, 0.0]


def test_the_gate_opens_where_the_teacher_expects_more_than_the_student_earns():
    known = {"earned": [0.0, 1.0, 0.0, 0.0, 0.0], "teacher.value": [0.4, 0.9, 0.4, 0.1, 0.0]}
    assert ValueGate(1.0)(columns(**known))["gate"].tolist() == [False, False, True, True, False]
    # rows 0 and 2 stand in one state, where the student earns .5 on average; rows 1 and 3 in another
    states = columns(**known, state=[7, 8, 7, 8, 9])
    assert ValueGate(1.0)(states)["gate"].tolist() == [False, True, False, False, False]
    assert ValueGate(0.5)(states)["gate"].tolist() == [True, True, True, False, False]


def test_behind_a_closed_gate_nothing_is_learned():
    lp = torch.randn(3, V, dtype=torch.float64, requires_grad=True)
    rows = Rows({"keep": torch.ones(3, dtype=torch.bool), "label": torch.tensor([0, 1, 2])})
    rows = rows.plus(gate=torch.tensor([True, False, True]))
    student = TableDist(lp.log_softmax(-1), torch.zeros(3, dtype=torch.long))
    loss = Gated(Imitate())(student, rows)
    assert loss[1] == 0 and torch.equal(loss[::2], Imitate()(student, rows)[::2])
    (gradient,) = torch.autograd.grad(loss.sum(), lp)
    assert gradient[1].abs().max() == 0 < gradient[::2].abs().min()


def test_a_fading_weight():
    assert [Fading(2.0, 4)(step) for step in (0, 1, 4, 9)] == [2.0, 1.5, 0.0, 0.0]
    assert [Fading(1.0, 1)(step) for step in (0, 1)] == [1.0, 0.0]
    assert Fading(1.0, 0)(0) == 0.0
    shares = [MostContested(0.25, steps).share(step) for steps, step in ((4, 0), (4, 2), (4, 9), (0, 0))]
    assert shares == [1.0, 0.625, 0.25, 0.25], "the same line, from 1 to an end of its own"


def test_mean_of_rows_with_one_key():
    found = estimators.mean_of(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([5, 1, 5]))
    assert found.tolist() == [2.5, 2.0, 2.5]
