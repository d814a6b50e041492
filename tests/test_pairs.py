"""Preferring one answer to another: the true loss's gradient, and where the objective comes to rest, by enumeration."""

import pytest
import torch

from opd import estimators
from opd.cast import specs
from opd.contract import distance, gradients, toy_cast, toy_groups
from opd.dist import HeadDist
from opd.errors import TeacherError
from opd.parts.pairs import Preferred
from opd.recipes import load
from opd.rollout import OTHER, TEACHER
from opd.rows import Rows, flatten
from opd.settings import Settings
from opd.step import prepare
from opd.teach import check_capabilities

V = 8


def draw(seed):
    return torch.randn(V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(**parameters):
    method = load("pbsd")(**parameters)
    cast = toy_cast(method)
    groups = toy_groups(method, cast)
    return method, cast, groups, prepare(groups, method, cast, 0)


def true_loss(student, groups, rows, sequences, beta, win):
    """The mean over pairs of the logistic loss, differentiable, from the models' log-probs of whole answers."""
    positions = [rollout.positions for rollout, _ in flatten(groups)]
    forward = student.trunk(sequences, positions, ())
    now = HeadDist(forward.hidden, forward.head, rows["token"], student.vocab).chosen
    per = torch.zeros(len(positions), dtype=torch.float64)
    ratio = per.index_add(0, rows["sequence"], now - rows["teacher.chosen"]).view(-1, 2, 2)  # group, side, pair
    margin = beta * (ratio[:, 0] - ratio[:, 1]).reshape(-1)
    return estimators.preference(margin, torch.full_like(margin, 1.0) if win is None else win).mean(), margin


@pytest.mark.parametrize("source", ["current", "frozen"])
@pytest.mark.parametrize("label", ["teacher_wins", "reward"])
def test_the_credit_gives_the_gradient_of_the_true_loss(source, label):
    method, cast, groups, (rows, sequences) = batch(beta=0.3, n=2, negative_source=source, pair_label=label)
    ours = gradients(method, cast["student"], rows, sequences)
    reward = torch.tensor([r.tags["reward"] for g in groups for r in g.rollouts]).double().view(-1, 2, 2)
    win = (reward[:, 0] - reward[:, 1]).sigmoid().reshape(-1) if label == "reward" else None
    cast["student"].zero_grad()
    loss, margin = true_loss(cast["student"], groups, rows, sequences, 0.3, win)
    loss.backward()
    theirs = {name: p.grad for name, p in cast["student"].named_parameters()}
    assert distance(ours, theirs) < 1e-12
    assert rows["pair.loss"].nanmean().item() == pytest.approx(loss.item())
    assert rows["pair.margin"][~rows["pair.margin"].isnan()].tolist() == pytest.approx(margin.tolist())


def test_a_student_that_is_its_teacher_stands_at_log_2_and_stays_on_average():
    method = load("pbsd")()
    lp = draw(0).log_softmax(-1)
    rows = every_pair(lp, lp)
    credited = method.credit(rows)
    assert credited["pair.loss"][credited["side"] > 0].tolist() == pytest.approx([0.6931471805599453] * V * V)
    assert pull(lp, lp, lp, 0.1).abs().max() < 1e-16


def every_pair(log_s, log_t):
    """All V x V pairs of one-token answers, winner and loser in turn."""
    token = torch.cartesian_prod(torch.arange(V), torch.arange(V)).reshape(-1)
    pair = torch.arange(V * V).repeat_interleave(2)
    return Rows(
        {
            "token": token,
            "group": torch.zeros_like(token),
            "pair": pair.double(),
            "side": torch.tensor([1.0, -1.0]).double().repeat(V * V),
            "row": torch.zeros_like(token),
            "keep": torch.ones_like(token, dtype=torch.bool),
            "own.chosen": log_s.detach()[token],
            "teacher.chosen": log_t[token],
        }
    )


def pull(log_s, log_t, log_negative, beta, reward=None):
    """[V] the expected gradient on the logits of S, winners drawn from T and losers from `log_negative`."""
    logits = log_s.clone().requires_grad_()
    rows = every_pair(log_s, log_t)
    if reward is not None:
        rows = rows.plus(reward=reward[rows["token"]])
    advantage = Preferred(beta, "teacher_wins" if reward is None else "reward")(rows)["advantage"]
    first, second = rows["token"].view(-1, 2).T
    weight = (log_t[first] + log_negative[second]).exp().repeat_interleave(2)
    loss = -(weight * advantage * logits.log_softmax(-1)[rows["token"]]).sum()
    return torch.autograd.grad(loss, logits)[0]


def rest(log_t, negative=None, reward=None, steps=60):
    """Where descent from a random student comes to rest at beta 1; steps are scaled by how often a token is seen."""
    now = draw(7).log_softmax(-1)
    for _ in range(steps):
        losers = now if negative is None else negative
        now = (now - 3 * pull(now, log_t, losers, 1.0, reward) / (log_t.exp() + losers.exp())).log_softmax(-1)
    return now


def test_fresh_negatives_end_at_the_teacher_without_any_gain():
    log_t = draw(1).log_softmax(-1)
    assert (rest(log_t) - log_t).abs().max() < 1e-10


def test_frozen_negatives_extrapolate_beyond_the_teacher():
    """S = T (T / S_0)^(1/beta) normalised; T^2 / S_0 at beta 1, and T itself as beta grows."""
    log_t, log_0 = draw(1).log_softmax(-1), (0.3 * draw(2)).log_softmax(-1)
    for beta in (0.5, 1.0, 4.0):
        expected = (log_t + (log_t - log_0) / beta).log_softmax(-1)
        assert pull(expected, log_t, log_0, beta).abs().max() < 1e-14
    squared = (2 * log_t - log_0).log_softmax(-1)
    assert (rest(log_t, negative=log_0) - squared).abs().max() < 1e-8
    assert ((log_t + (log_t - log_0) / 1e6).log_softmax(-1) - log_t).abs().max() < 1e-5


def test_graded_pairs_end_at_the_tilted_teacher_whoever_writes():
    log_t, reward = draw(1).log_softmax(-1), draw(3)
    for beta in (0.5, 2.0):
        tilted = (log_t + reward / beta).log_softmax(-1)
        for negative in (tilted, draw(4).log_softmax(-1)):
            assert pull(tilted, log_t, negative, beta, reward).abs().max() < 1e-15
        assert pull(log_t, log_t, log_t, beta, reward).abs().max() > 1e-3
    tilted = (log_t + reward).log_softmax(-1)
    assert (rest(log_t, reward=reward) - tilted).abs().max() < 1e-8


def test_the_tilted_teacher_gains_what_the_formula_says():
    """J(pi*) - J(T) = beta log E_T exp(r/beta) - E_T r, 0 only for a constant reward."""
    log_t, reward, beta = draw(1).log_softmax(-1), draw(3), 0.7
    worth = lambda log_p, r: (log_p.exp() * (r - beta * (log_p - log_t))).sum()
    for r in (reward, torch.full((V,), 2.0).double()):
        best = (log_t + r / beta).log_softmax(-1)
        gain = beta * (log_t + r / beta).logsumexp(-1) - (log_t.exp() * r).sum()
        assert (worth(best, r) - worth(log_t, r)).item() == pytest.approx(gain.item(), abs=1e-15)
    assert gain.abs() < 1e-15 < worth((log_t + reward / beta).log_softmax(-1), reward) - worth(log_t, reward)


def test_a_broken_pair_is_left_out_and_counted():
    _, _, _, (rows, _) = batch(n=2)
    broken = Preferred(0.1)(rows.index(rows["sequence"] != 0))
    out = broken["masked.unpaired"]
    assert out.any() and torch.equal(broken["keep"], ~out)
    assert set(broken["sequence"][out].tolist()) == {2}  # the other half of the first pair


def test_rows_that_a_mask_took_out_count_in_no_sum():
    _, _, _, (rows, _) = batch()
    masked = rows.plus(keep=rows["keep"] & (rows["row"] > 0))
    moved = masked.plus(**{"own.chosen": torch.where(masked["keep"], rows["own.chosen"], 99.0)})
    one, other = (Preferred(0.1)(table)["pair.margin"].nan_to_num() for table in (masked, moved))
    assert torch.equal(one, other) and one.abs().max() > 0


def test_who_plays_whom():
    settings = Settings.of(method="pbsd", parameters={"negative_source": "snapshot"})
    assert specs(settings, settings.build_method())["reference"] == "self:every=10"
    assert "reference" not in specs(Settings.of(method="pbsd"), load("pbsd")())
    assert load("pbsd")(pair_label="reward").needs_reward and not load("pbsd")().needs_reward
    frozen, cast, groups, _ = batch(negative_source="frozen")
    assert frozen.roles == ["reference", "student", "teacher"] and cast["reference"].calls["write"] == 1
    authors = {(one.tags["side"], int(one.author[-1])) for group in groups for one in group.rollouts}
    assert authors == {(1.0, TEACHER), (-1.0, OTHER)}


def test_a_teacher_that_cannot_write_is_refused():
    method = load("pbsd")()
    cast = toy_cast(method)
    cast["teacher"].can = frozenset({"chosen"})
    with pytest.raises(TeacherError, match="can't write"):
        check_capabilities(method, cast)
