"""Methods that reshape the log-ratio, by enumeration in float64: power, extrapolated, rethinking, iw_opd."""

import math
from functools import partial
from itertools import product
from typing import get_args

import pytest
import torch
from test_loop import training

from opd import estimators, maths, supports
from opd.contract import anatomy, check, gradients, toy_cast, toy_groups
from opd.dist import TableDist, TopDist
from opd.errors import OpdError
from opd.loop import one_step
from opd.method import Updates
from opd.parts.credit import Clamped, LogRatio
from opd.parts.losses import TruncatedGradient
from opd.parts.means import token_mean
from opd.parts.reshape import Early, Extrapolated, PowerRatio
from opd.parts.support_losses import SupportGradient
from opd.recipes.extrapolated import extrapolated
from opd.recipes.iw_opd import iw_opd
from opd.recipes.local_support import local_support
from opd.recipes.power import power
from opd.recipes.rethinking import rethinking
from opd.recipes.sampled_token import sampled_token
from opd.rows import Rows
from opd.step import prepare

V = 6


def drawn(seed, n=V, scale=1.0):
    return scale * torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def logs(p):
    return torch.tensor(p, dtype=torch.float64).log()


def world(logits, lq, lb=None, mu=None, k=None):
    """One state with every word written once: the student, and rows with teacher, base (None: uniform) and sampler."""
    v = len(logits)
    lp, token = logits.log_softmax(-1).expand(v, v), torch.arange(v)
    lb = torch.full_like(lq, -math.log(v)) if lb is None else lb
    student, whole = TableDist(lp, token), TableDist(lq.expand(v, v), token)
    teacher = TopDist(whole.top(k), whole.at(whole.top(k)), token, whole.chosen) if k else whole
    best = lq.argmax().expand(v, 1)
    columns = {
        "keep": torch.ones(v, dtype=torch.bool), "token": token, "teacher": teacher, "teacher.chosen": lq,
        "teacher.ids": best, "reference.chosen": lb, "reference.gathered": lb[best],
        "untruncated": student.chosen.detach(), "behaviour": student.chosen.detach() if mu is None else mu,
    }  # fmt: skip
    return student, Rows(columns)


def slope(method, logits, lq, lb=None):
    """The gradient in the logits of a method's first term, on average over words that the student writes."""
    student, rows = world(logits, lq, lb)
    rows = method.credit(rows)
    (term, *_) = method.terms.values()
    loss = (student.chosen.detach().exp() * term.loss(student, rows)).sum()
    return torch.autograd.grad(loss, logits)[0]


# ---- power


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0, 5.0])
def test_power_read_off_one_word_is_the_full_form_on_average(alpha):
    for seed in range(3):
        logits, lq = drawn(seed).requires_grad_(), drawn(seed + 10).log_softmax(-1)
        forms = {form: slope(power(alpha=alpha, form=form, k=V), logits, lq) for form in ("sampled", "topk", "full")}
        assert forms["full"].abs().max() > 1e-4
        for form in ("sampled", "topk"):
            assert torch.allclose(forms[form], forms["full"], atol=1e-13, rtol=0), form


def test_power_of_1_is_half_the_squared_distance():
    logits, lq = drawn(0).requires_grad_(), drawn(1).log_softmax(-1)
    (exact,) = torch.autograd.grad(0.5 * (logits.softmax(-1) - lq.exp()).square().sum(), logits)
    assert torch.allclose(slope(power(alpha=1.0), logits, lq), exact, atol=1e-14)


def test_the_top_k_form_is_a_part_of_the_full_one_and_needs_a_teacher_of_k_words():
    logits, lq = drawn(0).requires_grad_(), drawn(1).log_softmax(-1)
    value = {}
    for k in (2, 4, V):
        loss = power(alpha=1.0, form="topk", k=k).terms["match"].loss
        value[k] = [float(loss(*world(logits, lq, k=known))[0]) for known in (None, k)]
    assert value[2][0] == value[2][1] > 0 and value[2][0] < value[4][0] < value[V][0]


def test_power_tends_to_the_log_ratio_as_alpha_falls():
    logits, lq = drawn(0).requires_grad_(), drawn(1).log_softmax(-1)
    plain = slope(power(reward="log"), logits, lq)
    gap = {a: float((slope(power(alpha=a), logits, lq) / a - plain).norm()) for a in (1e-3, 1e-4)}
    assert 0 < gap[1e-4] < 0.11 * gap[1e-3] < 1e-3
    assert torch.equal(slope(power(alpha=0.0), logits, lq), plain)


def test_a_power_is_bounded_and_has_the_sign_of_the_log_ratio():
    _, rows = world(drawn(0, 64, 9.0), drawn(1, 64, 9.0).log_softmax(-1))
    ratio = LogRatio()(rows)["advantage"]
    assert ratio.abs().max() > 20
    for alpha in (0.1, 1.0, 50.0):
        reward = PowerRatio(alpha)(rows)["advantage"]
        assert reward.abs().max() <= 1
        assert ((reward * ratio).sign() >= 0).all() and (alpha > 1 or torch.equal(reward.sign(), ratio.sign()))


def test_a_large_power_forgets_all_but_near_certain_tokens():
    reward = maths.power_reward(logs(0.3), logs(0.6), 100.0)
    assert float(reward) == pytest.approx(0.6**100, rel=1e-9) and reward < 1e-22


def test_the_immediate_reward_is_the_gradient_with_the_prefixes_frozen_and_no_more():
    """V = 3, T = 3, every sequence once: what a word does to the states that follow is not in it."""
    v, length, alpha = 3, 3, 1.0
    states = [prefix for t in range(length) for prefix in product(range(v), repeat=t)]
    logits, lq = drawn(0, len(states) * v).view(-1, v).requires_grad_(), drawn(1, len(states) * v).view(-1, v)
    lp, lq, number = logits.log_softmax(-1), lq.log_softmax(-1), {s: i for i, s in enumerate(states)}

    def reach(prefix):
        return (
            torch.stack([lp[number[prefix[:t]], prefix[t]] for t in range(len(prefix))]).sum()
            if prefix
            else lp.sum() * 0
        )

    visits = torch.stack([reach(s) for s in states]).exp()
    divergence = maths.power_divergence(lp, lq, alpha)
    (frozen,) = torch.autograd.grad((visits.detach() * divergence).sum(), logits, retain_graph=True)
    (moving,) = torch.autograd.grad((visits * divergence).sum(), logits, retain_graph=True)
    reward = maths.power_reward(lp, lq, alpha)
    estimate = sum(
        -reach(y).exp().detach() * reward[number[y[:t]], y[t]] * lp[number[y[:t]], y[t]]
        for y in product(range(v), repeat=length)
        for t in range(length)
    )
    (sampled,) = torch.autograd.grad(estimate, logits)
    assert torch.allclose(sampled, frozen, atol=1e-14)
    assert 0.5 < torch.cosine_similarity(sampled.ravel(), moving.ravel(), dim=0) < 0.999


def test_the_released_launcher_of_the_plain_log_ratio_is_zscore():
    """Less a constant and over a deviation: the mean gradient at one state only changes its length."""
    logits, lq = drawn(0).requires_grad_(), drawn(1).log_softmax(-1)
    plain, released = (slope(power(reward=reward), logits, lq) for reward in ("log", "zscore"))
    ratio = LogRatio()(world(logits, lq)[1])["advantage"]
    assert not torch.allclose(plain, released)
    assert torch.allclose(released * ratio.std(), plain, atol=1e-13)


def test_a_cut_log_ratio_is_counted():
    _, rows = world(torch.zeros(3).double(), logs([0.9, 0.09, 0.01]))
    cut = Clamped(1.0)(LogRatio()(rows))
    assert cut["advantage"].tolist() == pytest.approx([math.log(2.7), -1.0, -1.0])
    assert cut["advantage.cut"].tolist() == [0.0, 1.0, 1.0]
    seen = power(reward="clip").lookup[0](None, cut)
    assert seen["advantage.cut"].tolist() == [0.0, 1.0, 1.0]
    squashed = power(reward="tanh").credit(rows)["advantage"]
    assert torch.allclose(squashed, torch.tanh(LogRatio()(rows)["advantage"] / 5))


def test_smaller_steps_at_first_and_a_worse_end():
    """Sharp teacher, 32 words, Adam at .05: the bounded reward moves gently, and a large power never gets there."""
    lq = (drawn(3, 4 * 32).view(4, 32) * 2.5).log_softmax(-1)
    first, end = {}, {}
    for alpha in (0.0, 1.0, 5.0, 50.0):
        logits = torch.zeros(4, 32, dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([logits], lr=0.05)
        for step in range(200):
            adam.zero_grad()
            maths.power_divergence(logits.log_softmax(-1), lq, alpha).mean().backward()
            if step == 0:
                first[alpha] = float(logits.grad.norm())
            adam.step()
        end[alpha] = float(maths.reverse_kl(logits.detach().log_softmax(-1), lq).mean())
    assert first[0.0] > 10 * first[1.0]
    assert end[0.0] < end[1.0] < end[5.0] < end[50.0] and end[50.0] > 1


# ---- extrapolated

LIMITS = {  # (q, b, c) -> lam*
    (0.9, 0.5, 5): 1.7712,
    (0.95, 0.5, 5): 1.5606,
    (0.99, 0.5, 5): 1.3520,
    (0.99, 0.9, 5): 1.6745,
    (0.99, 0.9, 2): 1.2912,
    (0.999, 0.99, 5): 1.6966,
}


def limit(q, b, c, dtype=torch.float64):
    return estimators.extrapolation_limit(*torch.tensor([[q], [b]], dtype=dtype).log(), c)[0]


def fixed(q, b, lam):
    """The modal mass at q^lam b^(1-lam) over two classes."""
    odds = lam * math.log(q / (1 - q)) + (1 - lam) * math.log(b / (1 - b))
    return 1 / (1 + math.exp(-odds))


@pytest.mark.parametrize(("q", "b", "c"), LIMITS)
def test_written_limits(q, b, c):
    lam = float(limit(q, b, c))
    assert lam == pytest.approx(LIMITS[q, b, c], abs=5e-5)
    tail = lambda u: math.log((1 - u) / u)
    assert lam == pytest.approx((math.log((1 - q) / (c - 1 + q)) - tail(b)) / (tail(q) - tail(b)), rel=1e-12)
    assert 1 - fixed(q, b, lam) == pytest.approx((1 - q) / c, rel=1e-9)


def test_limits_of_the_limit():
    assert limit(0.9, 0.5, 5) == pytest.approx(math.log(0.1 / 4.9) / math.log(0.1 / 0.9))  # one number less at b = 1/2
    assert limit(0.9, 0.5, 1) == 1
    assert limit(0.9, 0.9, 5) == math.inf
    assert limit(0.9, 0.95, 5).isnan()
    assert limit(1.0, 0.5, 5) == 1
    assert limit(0.9, 0.5, 2) < limit(0.9, 0.5, 5) < limit(0.9, 0.7, 5) < limit(0.9, 0.89, 5)
    near = 1 + math.log(5) / (math.log(0.9999 / 0.0001) - math.log(0.5 / 0.5))
    assert float(limit(0.9999, 0.5, 5)) == pytest.approx(near, rel=1e-4)
    q, b = -torch.tensor([1e-6]), torch.tensor([0.5]).log()
    exact = estimators.extrapolation_limit(q.double(), b.double(), 5)
    assert torch.allclose(estimators.extrapolation_limit(q, b, 5).double(), exact, rtol=1e-5)
    with pytest.raises(ValueError, match="at least 1"):
        limit(0.9, 0.5, 0.5)


def test_where_the_base_is_surer_extrapolation_makes_the_token_less_likely():
    assert fixed(0.95, 0.99, 2) == pytest.approx(0.785, abs=5e-4)
    assert fixed(0.95, 0.99, 3) == pytest.approx(0.41, abs=5e-3)


def test_descent_ends_at_the_fixed_point():
    lq, lb = (logs([u, 1 - u]) for u in (0.99, 0.9))
    assert fixed(0.99, 0.9, 1.4) == pytest.approx(0.9961440634, abs=1e-10)
    logits = lq.clone()
    for _ in range(300):
        logits = logits - 200 * slope(extrapolated(lam=1.4), logits.requires_grad_(), lq, lb)
        logits = logits.detach()
    assert float(logits.softmax(-1)[0]) == pytest.approx(fixed(0.99, 0.9, 1.4), abs=1e-14)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0, 1.25, 2.0])
def test_the_gradient_vanishes_exactly_at_the_geometric_mixture(lam):
    lq, lb = drawn(1, 64).log_softmax(-1), drawn(2, 64).log_softmax(-1)
    there = (lam * lq + (1 - lam) * lb).log_softmax(-1).requires_grad_()
    method = extrapolated(lam=lam)
    assert slope(method, there, lq, lb).abs().max() < 1e-15
    assert slope(method, lq.clone().requires_grad_(), lq, lb).abs().max() > 1e-5 or lam == 1
    start = torch.zeros(64, dtype=torch.float64, requires_grad=True)
    distance = maths.reverse_kl(start.log_softmax(-1)[None], there.detach()[None]).sum()
    (exact,) = torch.autograd.grad(distance, start)
    assert torch.allclose(slope(method, start, lq, lb), exact, atol=1e-15)


def test_lambda_1_is_plain_distillation_and_so_is_a_base_that_is_the_teacher():
    logits, lq, lb = drawn(0).requires_grad_(), drawn(1).log_softmax(-1), drawn(2).log_softmax(-1)
    plain = LogRatio()(world(logits, lq)[1])["advantage"]
    for base in (lb, torch.full_like(lb, -math.inf)):
        assert torch.equal(Extrapolated(1.0)(world(logits, lq, base)[1])["advantage"], plain)
    for lam in (0.0, 1.25, 3.0):
        assert torch.equal(Extrapolated(lam)(world(logits, lq, lq)[1])["advantage"], plain)
    uniform = Extrapolated(3.0)(world(logits, lq)[1])["advantage"]  # q^lam, sharpened
    sharpened = 3 * lq - logits.detach().log_softmax(-1)
    assert torch.allclose(uniform - uniform.mean(), sharpened - sharpened.mean())


@pytest.mark.parametrize("v", [2, 64])
def test_rare_tokens_saturate_exactly_beyond_the_limit(v):
    """At the fixed point, and so in the column of a real run: 0 below lam*, 1 above."""
    q, b, c = 0.99, 0.9, 5.0
    shape = drawn(4, v - 1).softmax(-1)  # both share out the rest alike: one class of words
    lq, lb = (torch.cat([torch.tensor([u], dtype=torch.float64), (1 - u) * shape]).log() for u in (q, b))
    edge = float(limit(q, b, c))
    for lam, saturated in ((1.0, 0.0), (edge - 1e-6, 0.0), (edge + 1e-6, 1.0), (3.0, 1.0)):
        there = (lam * lq + (1 - lam) * lb).log_softmax(-1)
        rows = extrapolated(lam=lam, c=c).credit(world(there, lq, lb)[1])
        assert rows["tail.saturated"][0].isnan() and (rows["tail.saturated"][1:] == saturated).all()
        assert torch.allclose(rows["lambda.limit"], torch.tensor(edge).double()), "of the best token, in every row"
        assert (rows["lambda.beyond"] == float(lam > edge)).all()
    there = (edge * lq + (1 - edge) * lb).log_softmax(-1)
    assert (1 - lq[0].exp()) / (1 - there[0].exp()) == pytest.approx(c)


def test_the_guard_keeps_every_position_below_its_own_limit():
    """Certain and free positions in turn: one lambda for all saturates the certain ones, the cap none."""
    c, positions = 5.0, [(0.99, 0.9), (0.4, 0.35), (0.999, 0.5), (0.5, 0.6)]
    for lam in (1.25, 2.0, 4.0):
        shares = {"watch": 0, "cap": 0}
        for q, b in positions:
            lq, lb = (logs([u, *[(1 - u) / 3] * 3]) for u in (q, b))
            for how in shares:
                rows = extrapolated(lam=lam, c=c, limit=how).credit(world(torch.zeros(4).double(), lq, lb)[1])
                used = float(rows["lambda"][0])
                there = (used * lq + (1 - used) * lb).log_softmax(-1)
                seen = extrapolated(lam=lam, c=c, limit=how).credit(world(there, lq, lb)[1])
                shares[how] += float(seen["tail.saturated"][1:].mean())
                edge = float(limit(q, b, c))
                expected = lam if how == "watch" else 1.0 if q < b else min(lam, edge - 0.05)
                assert used == pytest.approx(expected)
                assert (seen["lambda.capped"] == float(expected < lam)).all()
                assert (seen["lambda.outside"] == float(q <= b)).all()
        assert shares["cap"] == 0 and (shares["watch"] > 0 or lam == 1.25)


def test_the_guard_never_goes_below_plain_distillation():
    lq, lb = logs([0.999, 0.001]), logs([0.5, 0.5])
    student = torch.zeros(2).double()
    assert (extrapolated(lam=2.0, limit="cap", margin=9.0).credit(world(student, lq, lb)[1])["lambda"] == 1).all()
    assert (extrapolated(lam=0.5, limit="cap", margin=9.0).credit(world(student, lq, lb)[1])["lambda"] == 0.5).all()


def test_watching_changes_no_gradient_and_asks_for_more():
    logits, lq, lb = drawn(0).requires_grad_(), drawn(1).log_softmax(-1), drawn(2).log_softmax(-1)
    slopes = [slope(extrapolated(lam=1.5, limit=how), logits, lq, lb) for how in ("watch", "ignore")]
    assert torch.equal(*slopes)
    assert [ask.want.needs for ask in extrapolated(limit="ignore").teach] == [{"chosen"}, {"chosen"}]
    assert [ask.want.needs for ask in extrapolated().teach] == [{"chosen", "topk"}, {"chosen", "gather"}]


def test_the_cap_acts_only_where_a_batch_takes_several_updates():
    assert extrapolated().updates == Updates() and extrapolated(updates=3).updates == Updates(parts=3)
    once, often = (one_step(training(extrapolated(c=1.01, updates=k, n=2))).metrics["weight.cut"] for k in (1, 4))
    assert once == 0 < often


@pytest.mark.parametrize("options", [{"limit": "cap", "lam": 1.8}, {"limit": "ignore"}, {"updates": 2}])
def test_every_limit_keeps_the_contract(options):
    assert len(list(check(partial(extrapolated, **options)))) == 8


def test_a_truncated_weight_is_the_cap_beyond_it_and_the_ratio_below():
    logp = torch.tensor([-1.0, -1.0, -1.0]).double().requires_grad_()
    mu, advantage = torch.tensor([-1.0, -2.0, -9.0]).double(), torch.tensor([2.0, -1.0, 1.0]).double()
    (cut,) = torch.autograd.grad(estimators.truncated_gradient(logp, mu, advantage, 5.0).sum(), logp)
    assert cut.tolist() == pytest.approx([-2.0, math.e, -5.0])
    (whole,) = torch.autograd.grad(estimators.importance_gradient(logp, mu, advantage).sum(), logp)
    assert cut[:2].tolist() == pytest.approx(whole[:2].tolist())
    student, rows = world(torch.zeros(2).double(), drawn(1, 2).log_softmax(-1), mu=torch.tensor([-1.0, -9.0]).double())
    assert TruncatedGradient(5.0).cut(student, rows)["weight.cut"].tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="importance_gradient for none"):
        estimators.truncated_gradient(logp, mu, advantage, math.inf)


# ---- rethinking


def support_slope(logits, lq, form="released", **options):
    """The gradient of one row's loss in the logits."""
    student, rows = world(logits, lq)
    loss = rethinking(form=form, **options).terms["match"].loss(student, rows)[0]
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("words", get_args(supports.Words))
def test_the_equation_is_the_renormalised_reverse_kl_on_any_of_the_words(words):
    logits, lq = drawn(0, 8).requires_grad_(), drawn(1, 8).log_softmax(-1)
    lp = logits.log_softmax(-1)
    ids, valid = supports.combined(lp.detach().topk(4).indices[None], lq.topk(4).indices[None], words)
    inside = ids[valid]
    assert 2 <= len(inside) < 8
    p, q = lp[inside].log_softmax(-1), lq[inside].log_softmax(-1)
    (expected,) = torch.autograd.grad((p.exp() * (p - q)).sum(), logits)
    assert expected.abs().max() > 1e-2, "there is something to learn"
    student, rows = world(logits, lq)
    loss = rethinking(k=4, words=words).terms["match"].loss(student, rows)  # the default form
    assert torch.allclose(loss, (p.exp() * (p - q)).sum().detach(), atol=1e-14)
    assert torch.allclose(torch.autograd.grad(loss[0], logits)[0], expected, atol=1e-14)
    released = support_slope(logits, lq, k=4, words=words)
    assert (released - expected).abs().max() > 1e-2


def test_the_equation_on_the_students_words_is_local_support():
    logits, lq = drawn(0, 8).requires_grad_(), drawn(1, 8).log_softmax(-1)
    student, rows = world(logits, lq)
    ours, theirs = (
        method.terms["match"].loss(student, rows) for method in (rethinking(k=4), local_support(k=4, source="student"))
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("words", ["only_stu", "only_tch", "union", "intersection"])
def test_the_support_gradient_is_the_renormalised_one_and_moves_mass_in_and_out(words):
    logits, lq = drawn(0, 8).requires_grad_(), drawn(1, 8).log_softmax(-1)
    lp = logits.log_softmax(-1)
    ids, valid = supports.combined(lp.detach().topk(4).indices[None], lq.topk(4).indices[None], words)
    inside = ids[valid]
    pS, qS = lp[inside].exp().sum(), lq[inside].exp().sum()
    distance = maths.reverse_kl(lp[inside].log_softmax(-1)[None], lq[inside].log_softmax(-1)[None]).sum()
    (shape,) = torch.autograd.grad(distance, logits, retain_graph=True)
    (mass,) = torch.autograd.grad(pS.log(), logits)
    expected = shape + (distance + (pS / qS).log()).detach() * mass
    assert len(inside) >= 2 and torch.allclose(support_slope(logits, lq, k=4, words=words), expected, atol=1e-14)
    assert mass.abs().max() > 1e-3


@pytest.mark.parametrize("words", ["only_stu", "only_tch", "union", "intersection"])
def test_over_the_whole_vocabulary_it_is_reverse_kl(words):
    logits, lq = drawn(0).requires_grad_(), drawn(1).log_softmax(-1)
    (exact,) = torch.autograd.grad(maths.reverse_kl(logits.log_softmax(-1)[None], lq[None]).sum(), logits)
    assert torch.allclose(support_slope(logits, lq, k=V, words=words), exact, atol=1e-14)


def test_the_released_form_is_not_the_equation():
    logits, lq = drawn(0, 8).requires_grad_(), drawn(1, 8).log_softmax(-1)
    released, equation = (support_slope(logits, lq, k=4, form=form) for form in ("released", "equation"))
    assert (released - equation).abs().max() > 1e-2
    outside = torch.ones(8, dtype=torch.bool).index_fill(0, logits.detach().topk(4).indices, False)
    assert equation[outside].abs().max() < 1e-16 < released[outside].abs().min()


def test_supports_are_combined_as_sets():
    ours, theirs = torch.tensor([[3, 1, 2], [0, 1, 2]]), torch.tensor([[2, 5, 3], [3, 4, 5]])
    for words, both in {
        "only_stu": lambda a, b: a, "only_tch": lambda a, b: b, "union": lambda a, b: a | b,
        "intersection": lambda a, b: a & b, "union-intersection": lambda a, b: a ^ b,
    }.items():  # fmt: skip
        ids, valid = supports.combined(ours, theirs, words)
        for row in range(2):
            found = ids[row][valid[row]].tolist()
            assert set(found) == both({*ours[row].tolist()}, {*theirs[row].tolist()}) and len(set(found)) == len(found)
    with pytest.raises(ValueError, match="expected one of"):
        supports.combined(ours, theirs, "both")


def test_weights_by_hand():
    """Two words, p = (.5, .25), q = (.25, .5): log-ratios -log 2 and log 2."""
    both = logs([[0.5, 0.25]]), logs([[0.25, 0.5]])
    ids = torch.tensor([[0, 1]])
    support = supports.Support(ids, torch.ones_like(ids, dtype=torch.bool), *both)
    value = lambda weight, normalised=True: float(supports.support_gradient(support, both[0], weight, normalised))
    assert value("student_p") == pytest.approx((2 / 3 - 1 / 3) * math.log(2))
    assert value("student_p", False) == pytest.approx((1 / 2 - 1 / 4) * math.log(2))
    assert value("teacher_p") == pytest.approx((1 / 3 - 2 / 3) * math.log(2))
    assert value("none") == pytest.approx(0)
    with pytest.raises(ValueError, match="expected one of"):
        value("both")


def test_words_that_only_one_has_are_weighted_as_they_are():
    logits, lq = drawn(0, 8).requires_grad_(), drawn(1, 8).log_softmax(-1)
    lp = logits.log_softmax(-1)
    ids, valid = supports.combined(lp.topk(4).indices[None], lq.topk(4).indices[None], "union-intersection")
    inside = ids[valid]
    assert 0 < len(inside) < 8
    p = lp[inside].exp()
    (expected,) = torch.autograd.grad((p.detach() * (lp - lq)[inside].detach() * lp[inside]).sum(), logits)
    assert torch.allclose(support_slope(logits, lq, k=4, words="union-intersection"), expected, atol=1e-14)


@pytest.mark.parametrize("form", ["equation", "released"])
def test_without_a_common_word_nothing_is_learned_and_it_is_counted(form):
    logits = torch.arange(4).double().requires_grad_()
    student, rows = world(logits, logits.detach().flip(-1).log_softmax(-1))
    loss = rethinking(k=2, form=form, words="intersection").terms["match"].loss
    value = loss(student, rows)
    assert torch.equal(value, torch.zeros(4).double())
    assert torch.autograd.grad(value.sum(), logits)[0].tolist() == [0] * 4
    (count,) = rethinking(k=2, form=form, words="intersection").observe
    assert count(student, rows)["support.empty"].tolist() == [1.0] * 4


def test_a_second_update_remembers_the_student_of_the_first():
    """Ratios beyond the clip learn nothing more, and a lowered word's term is bounded by the dual clip."""
    seen = anatomy(partial(rethinking, k=3, form="released", updates=2))
    assert seen.passes["student reads"] == 1 and "own" in seen.reads
    assert "student reads" not in anatomy(partial(rethinking, k=3, updates=2)).passes, "the equation remembers nobody"
    old, lq = logs([0.5, 0.3, 0.2]), logs([0.8, 0.1, 0.1])
    now = logs([0.7, 0.2, 0.1]).requires_grad_()
    student, rows = world(now, lq)
    rows = rows.plus(own=TableDist(old.expand(3, 3), torch.arange(3)))
    loss = SupportGradient(2, old="own")(student, rows)[0]
    weights, ratio = torch.tensor([0.5, 0.3]).double() / 0.8, torch.tensor([0.7 / 0.5, 0.2 / 0.3]).double()
    advantage = weights * (lq - old)[:2]
    assert advantage[0] > 0 > advantage[1]
    assert float(loss) == pytest.approx(float(-1.2 * advantage[0] - 0.8 * advantage[1]))  # clipped at 1.2 and at 0.8
    assert ratio[0] > 1.2 and ratio[1] < 0.8
    assert torch.autograd.grad(loss, now)[0].tolist() == [0] * 3


@pytest.mark.parametrize("below", [60.0, 95.0, 120.0])
def test_a_word_that_is_not_compared_may_have_been_as_unlikely_as_it_likes(below):
    """exp(95) is no number in float32; the teacher likes the word, so that only `intersection` leaves it out."""
    words, found = torch.zeros(1, dtype=torch.long), []
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([[1.0, 0.5, 0.0, 0.0, 0.0, -below]], dtype=dtype, requires_grad=True)
        student = TableDist(logits.log_softmax(-1), words)
        teacher = torch.tensor([[1.0, -9.0, -9.0, -9.0, -9.0, 0.9]], dtype=dtype).log_softmax(-1)
        own = TableDist(student.logprobs().detach(), words)
        rows = Rows({"keep": words == 0, "token": words, "teacher": TableDist(teacher, words), "own": own})
        loss = SupportGradient(2, "intersection", old="own")(student, rows)
        found.append(torch.autograd.grad(loss.sum(), logits)[0].double())
    assert torch.allclose(*found, rtol=0, atol=1e-6) and found[1].abs().max() > 1e-2


def test_an_outcome_reward_is_a_term_of_its_own():
    method = rethinking(k=3, reward=0.5)
    assert set(method.terms) == {"match", "reward"} and method.terms["reward"].scale == 0.5
    assert method.needs_reward and not rethinking(k=3).needs_reward
    assert len(list(check(partial(rethinking, k=3, reward=0.5)))) == 8


@pytest.mark.parametrize("form", ["equation", "released"])
@pytest.mark.parametrize("options", [{}, {"words": "union-intersection", "updates": 2}])
def test_every_form_keeps_the_contract(form, options):
    assert len(list(check(partial(rethinking, k=3, form=form, **options)))) == 8


@pytest.mark.parametrize("given", [{"weight": "none"}, {"clip": 0.1}, {"dual": 0.0}])
def test_what_the_equation_has_no_use_for_is_refused(given):
    (name,) = given
    with pytest.raises(OpdError, match=rf"form=equation.*{name}={given[name]}.*form=released"):
        rethinking(**given)
    rethinking(form="released", **given)


def test_clip_is_the_outcome_rewards_too():
    assert rethinking(reward=1.0, clip=0.1).terms["reward"].loss.clip == 0.1


# ---- iw_opd


def answers(advantage, lengths, keep=None):
    sequence = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    kept = torch.ones(len(sequence), dtype=torch.bool) if keep is None else torch.tensor(keep)
    return Rows({"advantage": torch.tensor(advantage).double(), "sequence": sequence, "keep": kept})


def test_early_tokens_weigh_more_by_hand():
    rows = answers([1.0, -1.0, 2.0, -3.0, 0.0, 0.0], [3, 1, 2])
    found = Early(0.5)(rows)["advantage"].tolist()
    assert found == pytest.approx([1.5 * 1, 1.375 * -1, 1.25 * 2, 1.5 * -3, 0, 0])
    assert estimators.earliness(rows["advantage"].abs(), rows["sequence"]).tolist() == [1, 0.75, 0.5, 1, 1, 1]


def test_what_is_not_learned_from_does_not_count_as_drift():
    masked = Early(0.5)(answers([1.0, math.nan, 1.0], [3], [True, False, True]))["advantage"]
    assert masked[[0, 2]].tolist() == pytest.approx([1.5, 1.25])


def test_without_gain_it_is_sampled_token():
    plain, ours = sampled_token(n=1), iw_opd(gain=0.0, clip=0.0)
    cast = toy_cast(plain)
    groups = toy_groups(plain, cast)
    one, other = (gradients(m, cast["student"], *prepare(groups, m, cast, 0)) for m in (plain, ours))
    assert all(torch.allclose(one[name], other[name], atol=1e-15) for name in one)
    weighted = gradients(iw_opd(), cast["student"], *prepare(groups, iw_opd(), cast, 0))
    assert any(not torch.allclose(one[name], weighted[name], atol=1e-6) for name in one)


def test_the_weight_of_a_row_is_of_its_whole_answer():
    """The token mean is over kept rows, whatever they weigh."""
    rows = Early(0.5)(answers([1.0, 1.0], [2]))
    assert token_mean(rows).tolist() == [0.5, 0.5]
