"""Every formula of `maths`, `estimators` and `supports` in float64 against a plain one: values, slopes, limits."""

import ast
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opd import estimators, maths, supports
from opd.dist import TableDist, TopDist

INF = math.inf
Divergence = Callable[[Tensor, Tensor], Tensor]


class Table:
    """The smallest thing with `.at`: a table of log-probabilities."""

    def __init__(self, logits: Tensor) -> None:
        self.logp = maths.log_softmax(logits)

    def at(self, ids: Tensor) -> Tensor:
        return self.logp.gather(-1, ids)


def pair(n: int = 4, v: int = 6, seed: int = 0, scale: float = 1.5) -> tuple[Tensor, Tensor]:
    """Student logits (with gradient) and teacher logits, float64."""
    g = torch.Generator().manual_seed(seed)
    student = scale * torch.randn(n, v, generator=g, dtype=torch.float64)
    teacher = scale * torch.randn(n, v, generator=g, dtype=torch.float64)
    return student.requires_grad_(), teacher


def grad(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), x, retain_graph=True)[0]


def close_to(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------- plain formulas, differentiated by autograd


def plain_kl(la: Tensor, lb: Tensor) -> Tensor:
    return (la.exp() * (la - lb)).sum(-1)


def plain_jsd(lp: Tensor, lq: Tensor, beta: float) -> Tensor:
    lm = (beta * lq.exp() + (1 - beta) * lp.exp()).log()
    return beta * plain_kl(lq, lm) + (1 - beta) * plain_kl(lp, lm)


def plain_skew_reverse(lp: Tensor, lq: Tensor, a: float, detach: bool) -> Tensor:
    p = lp.exp().detach() if detach else lp.exp()
    return plain_kl(lp, ((1 - a) * lq.exp() + a * p).log())


def plain_power(lp: Tensor, lq: Tensor, a: float) -> Tensor:
    p, q = lp.exp(), lq.exp()
    return (p ** (a + 1) - (a + 1) * q**a * p + a * q ** (a + 1)).sum(-1) / (a + 1)


DIVERGENCES: dict[str, tuple[Divergence, Divergence]] = {
    "reverse": (maths.reverse_kl, plain_kl),
    "reverse score": (
        lambda p, q: maths.reverse_kl(p, q, gradient="score"),
        lambda p, q: (p.exp() * (p - q).detach()).sum(-1),
    ),
    "forward": (maths.forward_kl, lambda p, q: plain_kl(q, p)),
    "cross entropy": (maths.cross_entropy, lambda p, q: -(q.exp() * p).sum(-1)),
    "entropy": (lambda p, q: maths.entropy(p), lambda p, q: -(p.exp() * p).sum(-1)),
    "linear mix": (
        lambda p, q: maths.linear_mix(p, q, 0.3),
        lambda p, q: 0.7 * plain_kl(q, p) + 0.3 * plain_kl(p, q),
    ),
    "jsd .1": (lambda p, q: maths.jsd(p, q, 0.1), lambda p, q: plain_jsd(p, q, 0.1)),
    "jsd .5": (lambda p, q: maths.jsd(p, q, 0.5), lambda p, q: plain_jsd(p, q, 0.5)),
    "jsd .9 continuous": (
        lambda p, q: maths.jsd(p, q, 0.9, scale="continuous"),
        lambda p, q: plain_jsd(p, q, 0.9) / 0.09,
    ),
    "skew": (
        lambda p, q: maths.skew_kl(p, q, 0.1),
        lambda p, q: plain_kl(q, (0.1 * q.exp() + 0.9 * p.exp()).log()),
    ),
    "skew reverse": (lambda p, q: maths.skew_reverse_kl(p, q, 0.1), lambda p, q: plain_skew_reverse(p, q, 0.1, False)),
    "skew reverse detached": (
        lambda p, q: maths.skew_reverse_kl(p, q, 0.1, detach_mixture=True),
        lambda p, q: plain_skew_reverse(p, q, 0.1, True),
    ),
    "power .3": (lambda p, q: maths.power_divergence(p, q, 0.3), lambda p, q: plain_power(p, q, 0.3)),
    "power 1": (
        lambda p, q: maths.power_divergence(p, q, 1.0),
        lambda p, q: 0.5 * (p.exp() - q.exp()).square().sum(-1),
    ),
    "power 5": (lambda p, q: maths.power_divergence(p, q, 5.0), lambda p, q: plain_power(p, q, 5.0)),
    "power 0": (
        lambda p, q: maths.power_divergence(p, q, 0.0),
        lambda p, q: plain_kl(p, q) + q.exp().sum(-1) - p.exp().sum(-1),
    ),
}
NOT_ZERO_AT_EQUALITY = {"cross entropy", "entropy"}
HELD_STILL = {"reverse score", "skew reverse detached"}  # their gradient is not the slope of their value
each = pytest.mark.parametrize("name", DIVERGENCES)
each_proper = pytest.mark.parametrize("name", [n for n in DIVERGENCES if n not in NOT_ZERO_AT_EQUALITY])


# -------------------------------------------------------------------------------------------------------- divergences


@each
@pytest.mark.parametrize("normalised", [True, False])
def test_value_and_slope_are_those_of_the_plain_formula(name: str, normalised: bool) -> None:
    ours, plain = DIVERGENCES[name]
    student, teacher = pair(5, 7)
    lp, lq = maths.log_softmax(student), maths.log_softmax(teacher)
    if not normalised:  # a dropped support: masses that do not sum to one
        lp, lq = lp[:, :4], lq[:, :4]
    weights = torch.tensor([1.0, 0.5, -2.0, 0.0, 3.0], dtype=torch.float64)
    close_to(ours(lp, lq), plain(lp, lq))
    close_to(grad(weights * ours(lp, lq), lp), grad(weights * plain(lp, lq), lp))
    close_to(grad(weights * ours(lp, lq), student), grad(weights * plain(lp, lq), student))


@pytest.mark.parametrize("name", [n for n in DIVERGENCES if n not in HELD_STILL])
def test_gradcheck(name: str) -> None:
    ours, _ = DIVERGENCES[name]
    student, teacher = pair(2, 5)
    lq = maths.log_softmax(teacher)
    assert torch.autograd.gradcheck(lambda x: ours(maths.log_softmax(x), lq), (student,), atol=1e-8)


@each_proper
def test_a_student_equal_to_its_teacher_is_at_rest(name: str) -> None:
    ours, _ = DIVERGENCES[name]
    student, _ = pair()
    lp = maths.log_softmax(student)
    close_to(ours(lp, lp.detach()), torch.zeros(4, dtype=torch.float64))
    close_to(grad(ours(lp, lp.detach()), student), torch.zeros_like(student))


@each_proper
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 20))
def test_never_negative(name: str, seed: int, scale: float) -> None:
    student, teacher = pair(3, 6, seed, scale)
    assert (DIVERGENCES[name][0](maths.log_softmax(student), maths.log_softmax(teacher)) >= -1e-12).all()


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(name: str, dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, -1e4, 0, 3], [-1e4, 1e4, 1e4, 0], [0, 0, 0, 0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0, 3], [1e4, -1e4, 0, 0], [1e4, 1e4, -1e4, -1e4]], dtype=dtype)
    value = DIVERGENCES[name][0](maths.log_softmax(student), maths.log_softmax(teacher))
    assert value.isfinite().all() and grad(value, student).isfinite().all()


@each
def test_words_masked_in_both_contribute_nothing(name: str) -> None:
    ours, _ = DIVERGENCES[name]
    student, teacher = pair(4, 6)
    outside = torch.tensor([False, True, False, False, True, False])
    lp = maths.log_softmax(student.masked_fill(outside, -INF))
    lq = maths.log_softmax(teacher.masked_fill(outside, -INF))
    short_p, short_q = maths.log_softmax(student[:, ~outside]), maths.log_softmax(teacher[:, ~outside])
    close_to(ours(lp, lq), ours(short_p, short_q))
    close_to(grad(ours(lp, lq), student), grad(ours(short_p, short_q), student))
    assert (grad(ours(lp, lq), lp)[:, outside] == 0).all()


@each
def test_underflow_over_a_masked_teacher_is_not_nan(name: str) -> None:
    student = torch.tensor([[0.0, -1e4, 1.0]], requires_grad=True)  # p(1) is 0 in floating point
    teacher = torch.tensor([[1.0, -INF, 0.0]])
    value = DIVERGENCES[name][0](maths.log_softmax(student), maths.log_softmax(teacher))
    assert value.isfinite().all() and grad(value, student).isfinite().all()


def test_mass_where_the_other_side_has_none_is_infinite() -> None:
    full, holed = maths.log_softmax(torch.zeros(1, 3)), maths.log_softmax(torch.tensor([[0.0, 0.0, -INF]]))
    assert maths.reverse_kl(full, holed).item() == INF and maths.reverse_kl(holed, full).item() < 1
    assert maths.forward_kl(holed, full).item() == INF and maths.forward_kl(full, holed).item() < 1
    for bounded in (
        maths.jsd(full, holed, 0.5),
        maths.skew_reverse_kl(full, holed, 0.1),
        maths.power_divergence(full, holed, 1),
    ):
        assert bounded.isfinite().all()


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_float32(name: str, dtype: torch.dtype) -> None:
    ours, _ = DIVERGENCES[name]
    g = torch.Generator().manual_seed(3)
    student = torch.randn(2, 3000, generator=g).to(dtype).requires_grad_()
    teacher = torch.randn(2, 3000, generator=g).to(dtype)
    value = ours(maths.log_softmax(student), maths.log_softmax(teacher))
    exact = ours(maths.log_softmax(student.double()), maths.log_softmax(teacher.double()))
    assert value.dtype == torch.float32 and grad(value, student).dtype == dtype
    torch.testing.assert_close(value, exact.float(), rtol=3e-5, atol=3e-6)
    assert ours(student, teacher).dtype == torch.float32  # also where somebody passes log-probabilities in half


def test_one_tensor_is_kept_for_the_backward_and_only_if_there_is_one() -> None:
    student, teacher = pair()
    lp, lq = maths.log_softmax(student), maths.log_softmax(teacher)
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        maths.jsd(lp.detach(), lq, 0.5)
        assert kept == []
        loss = maths.jsd(lp, lq, 0.5).sum()
    assert kept == [lp.shape]
    first = torch.autograd.grad(loss, student, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], first)  # a second backward finds it unchanged


def test_the_ends_are_the_two_kls() -> None:
    student, teacher = pair()
    lp, lq = maths.log_softmax(student), maths.log_softmax(teacher)
    for scale in ("usual", "continuous"):
        close_to(maths.jsd(lp, lq, 0, scale), plain_kl(lq, lp))
        close_to(maths.jsd(lp, lq, 1, scale), plain_kl(lp, lq))
    close_to(maths.linear_mix(lp, lq, 0), plain_kl(lq, lp))
    close_to(maths.linear_mix(lp, lq, 1), plain_kl(lp, lq))
    close_to(maths.skew_kl(lp, lq, 0), plain_kl(lq, lp))
    close_to(maths.skew_reverse_kl(lp, lq, 0), plain_kl(lp, lq))
    close_to(maths.power_divergence(lp, lq, 0), plain_kl(lp, lq))
    close_to(maths.entropy(lp) + maths.forward_kl(lq.exp().log(), lp.detach()), maths.cross_entropy(lq, lp.detach()))


@pytest.mark.parametrize(("end", "beta"), [(0, 1e-6), (1, 1 - 1e-6)])
def test_continuous_jsd_reaches_both_ends_in_value_and_gradient(end: int, beta: float) -> None:
    student, teacher = pair()
    lp, lq = maths.log_softmax(student), maths.log_softmax(teacher)
    near, there = maths.jsd(lp, lq, beta, "continuous"), maths.jsd(lp, lq, end)
    close_to(near, there, 1e-4)
    close_to(grad(near, student), grad(there, student), 1e-4)
    assert (maths.jsd(lp, lq, beta, "usual") < 1e-4).all()  # the usual one jumps


def test_continuous_jsd_is_continuous_in_float32() -> None:
    g = torch.Generator().manual_seed(5)
    student, teacher = torch.randn(3, 2000, generator=g).requires_grad_(), torch.randn(3, 2000, generator=g)
    lp, lq = maths.log_softmax(student), maths.log_softmax(teacher)
    for end, beta in ((0, 1e-4), (1, 1 - 1e-4)):
        near, there = maths.jsd(lp, lq, beta, "continuous"), maths.jsd(lp, lq, end)
        torch.testing.assert_close(near, there, rtol=2e-3, atol=0)
        assert (grad(near, student) - grad(there, student)).norm() < 5e-3 * grad(there, student).norm()


def test_jsd_exchanges_its_arguments() -> None:
    student, teacher = pair()
    lp, lq = maths.log_softmax(student).detach(), maths.log_softmax(teacher)
    close_to(maths.jsd(lp, lq, 0.3), maths.jsd(lq, lp, 0.7))
    close_to(maths.reverse_kl(lp, lq), maths.forward_kl(lq, lp))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10), alpha=st.floats(0.01, 0.9))
def test_skew_bounds(seed: int, scale: float, alpha: float) -> None:
    student, teacher = pair(3, 6, seed, scale)
    lp, lq = maths.log_softmax(student), maths.log_softmax(teacher)
    skew, skew_reverse = maths.skew_kl(lp, lq, alpha), maths.skew_reverse_kl(lp, lq, alpha)
    assert (skew <= (1 - alpha) * maths.forward_kl(lp, lq) + 1e-12).all()
    assert (skew_reverse <= (1 - alpha) * maths.reverse_kl(lp, lq) + 1e-12).all()
    assert (torch.stack([skew, skew_reverse]) <= -math.log(alpha) + 1e-12).all()


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 5.0, 10.0])
def test_power_reward_is_the_score_function_of_power_divergence(alpha: float) -> None:
    student, teacher = pair()
    lp, lq = maths.log_softmax(student), maths.log_softmax(teacher)
    reward = maths.power_reward(lp, lq, alpha)
    close_to(reward, (lq.exp() ** alpha - lp.exp() ** alpha).detach())
    torch.testing.assert_close(maths.power_reward(lp.float(), lq.float(), alpha), reward.float(), rtol=1e-3, atol=0)
    assert not reward.requires_grad and (reward.abs() <= 1).all() and (reward.sign() == (lq - lp).sign()).all()
    expected = -(lp.exp().detach() * reward * lp).sum(-1)
    close_to(grad(expected, student), grad(maths.power_divergence(lp, lq, alpha), student))


def test_power_tends_to_the_log_ratio_and_reverse_kl() -> None:
    student, teacher = pair()
    lp, lq = maths.log_softmax(student), maths.log_softmax(teacher)
    close_to(maths.power_reward(lp, lq, 0), (lq - lp).detach())
    close_to(maths.power_reward(lp, lq, 1e-7, "continuous"), (lq - lp).detach(), 1e-5)
    close_to(maths.power_reward(lp, lq, 1e-7) / 1e-7, (lq - lp).detach(), 1e-5)
    close_to(maths.power_divergence(lp, lq, 1e-7, "continuous"), plain_kl(lp, lq), 1e-5)
    close_to(grad(maths.power_divergence(lp, lq, 1e-7, "continuous"), student), grad(plain_kl(lp, lq), student), 1e-5)
    small = maths.power_reward(lp.float(), lq.float(), 1e-6, "continuous")
    torch.testing.assert_close(small, (lq - lp).detach().float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda lp, lq: maths.jsd(lp, lq, -0.1),
        lambda lp, lq: maths.jsd(lp, lq, 1.1),
        lambda lp, lq: maths.jsd(lp, lq, 0.5, "loud"),
        lambda lp, lq: maths.jsd(lp, lq, math.nan),
        lambda lp, lq: maths.linear_mix(lp, lq, 2),
        lambda lp, lq: maths.skew_kl(lp, lq, 1.0),
        lambda lp, lq: maths.skew_reverse_kl(lp, lq, -0.5),
        lambda lp, lq: maths.power_reward(lp, lq, -1),
        lambda lp, lq: maths.power_divergence(lp, lq, -1),
        lambda lp, lq: maths.reverse_kl(lp, lq, gradient="none"),
        lambda lp, lq: maths.reverse_kl(lp, lq[:, :1]),
        lambda lp, lq: maths.forward_kl(lq, lp),
    ],
)
def test_errors_say_got_expected_and_remedy(call: Divergence) -> None:
    student, teacher = pair()
    with pytest.raises(ValueError, match=r"got .*expected .*: "):
        call(maths.log_softmax(student), maths.log_softmax(teacher))


def test_a_teacher_with_gradient_is_refused_only_while_recording() -> None:
    student, teacher = pair()
    lp, lq = maths.log_softmax(student), maths.log_softmax(teacher)
    with torch.no_grad():
        close_to(maths.forward_kl(lq, lp), plain_kl(lp, lq))


# ----------------------------------------------------------------------------------------------------------- supports


def supported(student: Tensor, teacher: Tensor, k: int, source: str = "student") -> supports.Support:
    ids, valid = supports.top_ids(student if source == "student" else teacher, k)
    return supports.gather_support(Table(student), Table(teacher), ids, valid)


def test_top_ids() -> None:
    ids, valid = supports.top_ids(torch.tensor([[0.1, 3.0, -INF, 2.0], [-INF, -INF, 1.0, -INF]]), 3)
    assert ids[0].tolist() == [1, 3, 0] and ids[1, 0] == 2
    assert valid.tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize("k", [0, -1, 5])
def test_an_impossible_k_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"got k={k}, expected 1 <= k <= V=4: choose"):
        supports.top_ids(torch.zeros(1, 4), k)


def test_plus_adds_only_what_is_missing() -> None:
    ids = torch.tensor([[1, 2], [1, 2], [1, 2]])
    valid = torch.tensor([[True, True], [True, True], [True, False]])
    ids, valid = supports.plus(ids, valid, torch.tensor([5, 2, 2]))
    assert ids.tolist() == [[1, 2, 5], [1, 2, 2], [1, 2, 2]]
    assert valid.tolist() == [[True, True, True], [True, True, False], [True, False, True]]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_union_is_the_union_of_sets(data: st.DataObject) -> None:
    a, b = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    draw = lambda k, s: torch.tensor(data.draw(st.lists(s, min_size=k, max_size=k))).unsqueeze(0)
    ids_a, ids_b = draw(a, st.integers(0, 6)), draw(b, st.integers(0, 6))
    valid_a, valid_b = draw(a, st.booleans()), draw(b, st.booleans())
    ids, valid = supports.union(ids_a, ids_b, valid_a, valid_b)
    members = ids[valid].tolist()
    assert ids.tolist() == torch.cat([ids_a, ids_b], -1).tolist()
    assert len(members) == len(set(members))
    assert set(members) == set(ids_a[valid_a].tolist()) | set(ids_b[valid_b].tolist())


def test_union_without_masks() -> None:
    ids, valid = supports.union(torch.tensor([[4, 1]]), torch.tensor([[1, 3]]))
    assert ids[valid].tolist() == [4, 1, 3]


def test_everything() -> None:
    ids, valid = supports.everything(3, 5)
    assert ids.shape == valid.shape == (3, 5) and ids[2].tolist() == [0, 1, 2, 3, 4] and valid.all()
    assert ids.untyped_storage().nbytes() == 5 * 8  # one row, not three


def test_fillers_and_garbage_never_leak() -> None:
    student, teacher = pair(1, 5)
    ids, valid = torch.tensor([[3, -1, 0]]), torch.tensor([[True, False, True]])
    support = supports.gather_support(Table(student), Table(teacher), ids, valid)
    garbage = torch.tensor([[0.0, math.nan, 0.0]], dtype=torch.float64)
    dirty = supports.Support(ids, valid, support.student + garbage, support.teacher + garbage)
    for outside in ("renormalise", "tail", "drop"):
        lp, lq = supports.close(dirty, outside)
        clean_p, clean_q = supports.close(support, outside)
        for ours, _ in DIVERGENCES.values():
            close_to(ours(lp, lq), ours(clean_p, clean_q))
            assert grad(ours(lp, lq), student).isfinite().all()


def test_a_teacher_of_k_words_is_asked_about_no_other() -> None:
    """Word 0, a filler of old, is not among its two; neither is a word that only the student likes."""
    student, teacher = pair(3, 6)
    whole = TableDist(maths.log_softmax(teacher), torch.zeros(3, dtype=torch.long))
    best = whole.top(2)
    known = TopDist(best, whole.at(best), whole.tokens)
    filled = torch.cat([torch.full((3, 1), -1), best, (best[:, :1] + torch.arange(1, 6)) % 6], -1)
    valid = torch.tensor([False, True, True, *[False] * 5]).expand(3, 8)
    support = supports.gather_support(Table(student), known, filled, valid)
    alone = supports.gather_support(Table(student), known, best)
    for outside in ("renormalise", "tail", "drop"):
        close_to(maths.reverse_kl(*supports.close(alone, outside)), maths.reverse_kl(*supports.close(support, outside)))


@pytest.mark.parametrize("outside", ["renormalise", "tail", "drop"])
def test_a_row_without_valid_entries_is_an_empty_row(outside: supports.Outside) -> None:
    student, teacher = pair(2, 5)
    valid = torch.tensor([[False, False], [True, True]])
    support = supports.gather_support(Table(student), Table(teacher), torch.tensor([[1, 2], [1, 2]]), valid)
    lp, lq = supports.close(support, outside)
    value = maths.reverse_kl(lp, lq)
    assert value[0] == 0 and (grad(value, student)[0] == 0).all() and grad(value, student).isfinite().all()


@each
@pytest.mark.parametrize("outside", ["renormalise", "tail", "drop"])
def test_the_whole_vocabulary_is_the_full_divergence(name: str, outside: supports.Outside) -> None:
    ours, plain = DIVERGENCES[name]
    student, teacher = pair(4, 6)
    support = supports.gather_support(Table(student), Table(teacher), *supports.everything(4, 6))
    lp, lq = supports.close(support, outside)
    full_p, full_q = maths.log_softmax(student), maths.log_softmax(teacher)
    close_to(ours(lp, lq), plain(full_p, full_q), 1e-11)
    close_to(grad(ours(lp, lq), student), grad(plain(full_p, full_q), student), 1e-11)
    if outside == "tail":
        assert (lp[:, -1] == -INF).all() and (lq[:, -1] == -INF).all()


@each
def test_the_tail_is_one_more_word(name: str) -> None:
    ours, plain = DIVERGENCES[name]
    student, teacher = pair(4, 7)
    support = supported(student, teacher, 3, "teacher")
    lumped = []
    for logits in (student, teacher):
        p = logits.softmax(-1)
        inside = p.gather(-1, support.ids)
        outside = p.scatter(-1, support.ids, 0.0).sum(-1, keepdim=True)
        lumped.append(torch.cat([inside, outside], -1).log())
    lp, lq = supports.close(support, "tail")
    close_to(torch.stack([lp, lq]), torch.stack(lumped))
    close_to(ours(lp, lq), plain(*lumped))
    close_to(grad(ours(lp, lq), student), grad(plain(*lumped), student))


def test_tail_reverse_kl_splits_into_mass_and_shape() -> None:
    student, teacher = pair(50, 8, seed=2)
    support = supported(student, teacher, 3)
    mass_p, mass_q = support.student.exp().sum(-1), support.teacher.exp().sum(-1)
    bernoulli = mass_p * (mass_p / mass_q).log() + (1 - mass_p) * ((1 - mass_p) / (1 - mass_q)).log()
    shape = maths.reverse_kl(*supports.close(support, "renormalise"))
    tail = maths.reverse_kl(*supports.close(support, "tail"))
    full = maths.reverse_kl(maths.log_softmax(student), maths.log_softmax(teacher))
    close_to(tail, bernoulli + mass_p * shape)
    assert (tail <= full + 1e-12).all()
    assert (
        maths.forward_kl(*supports.close(support, "tail")) <= maths.forward_kl(Table(student).logp, Table(teacher).logp)
    ).all()


def test_renormalise_has_no_gradient_outside_and_none_at_one_word() -> None:
    student, teacher = pair(5, 8)
    support = supported(student, teacher, 3, "teacher")
    loss = maths.reverse_kl(*supports.close(support, "renormalise"))
    slope = grad(loss, student)
    inside = torch.zeros_like(slope, dtype=torch.bool).scatter_(-1, support.ids, True)
    close_to(slope[~inside], torch.zeros_like(slope[~inside]), 1e-15)
    close_to(slope.sum(-1), torch.zeros(5, dtype=torch.float64))
    score = maths.reverse_kl(*supports.close(support, "renormalise"), gradient="score")
    close_to(slope, grad(score, student))  # renormalised scores sum to zero
    alone = maths.reverse_kl(*supports.close(supported(student, teacher, 1), "renormalise"))
    assert (alone == 0).all() and (grad(alone, student).abs() < 1e-15).all()


def test_on_a_dropped_support_the_two_gradient_forms_differ_by_grad_mass() -> None:
    student, teacher = pair(5, 8)
    support = supported(student, teacher, 3, "teacher")
    lp, lq = supports.close(support, "drop")
    difference = grad(maths.reverse_kl(lp, lq) - maths.reverse_kl(lp, lq, "score"), student)
    close_to(difference, grad(support.student.exp().sum(-1), student))
    assert difference.abs().max() > 0.01
    close_to(maths.reverse_kl(lp, lq), maths.reverse_kl(lp, lq, "score"))


def test_a_tail_below_rounding_neither_explodes_nor_dies() -> None:
    flat = torch.zeros(1, 6, requires_grad=True)
    sure = torch.tensor([[40.0, 39.0, 0.0, 0.0, 0.0, 0.0]])  # its mass on two words is 1 in float32
    ids, valid = supports.top_ids(sure, 2)
    lp, lq = supports.close(supports.gather_support(Table(flat), Table(sure), ids, valid), "tail")
    value = maths.reverse_kl(lp, lq)
    assert value.isfinite().all() and 3 < value.item() < maths.reverse_kl(Table(flat).logp, Table(sure).logp).item()
    assert (grad(value, flat)[0, :2] < 0).all() and (grad(value, flat)[0, 2:] > 0).all()

    over = sure.clone().requires_grad_()  # a sure student is still told of a flat teacher's mass outside
    lp, lq = supports.close(supports.gather_support(Table(over), Table(flat.detach()), ids, valid), "tail")
    assert (maths.forward_kl(lp, lq)).isfinite().all() and grad(maths.forward_kl(lp, lq), over).isfinite().all()
    assert lp[0, -1] > -INF and grad(maths.forward_kl(lp, lq), lp)[0, -1] < 0

    lp, lq = supports.close(supports.gather_support(Table(over), Table(sure), ids, valid), "tail")
    assert lp[0, -1] == lq[0, -1] == -INF and maths.reverse_kl(lp, lq).item() == 0


@pytest.mark.parametrize("k", [1, 2, 4])
def test_extremes_on_a_support(k: int) -> None:
    student = torch.tensor([[1e4, -1e4, 0, 3], [0, 0, 0, 0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0, 3], [1e4, 1e4, -1e4, -1e4]])
    for source, outside in itertools.product(("student", "teacher"), ("renormalise", "tail", "drop")):
        lp, lq = supports.close(supported(student, teacher, k, source), outside)
        for ours, _ in DIVERGENCES.values():
            assert ours(lp, lq).isfinite().all() and grad(ours(lp, lq), student).isfinite().all()


def test_support_errors() -> None:
    student, teacher = pair()
    support = supported(student, teacher, 2)
    with pytest.raises(ValueError, match="got outside='forget', expected 'renormalise' or 'tail' or 'drop'"):
        supports.close(support, "forget")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected one shape"):
        supports.gather_support(Table(student), Table(teacher), support.ids, support.valid[:, :1])
    with pytest.raises(ValueError, match="expected at least one word"):
        supports.everything(3, 0)


# ------------------------------------------------------------------------- every word enumerated as the sampled one


def enumerated(student: Tensor, teacher: Tensor, loss: Callable[..., Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean of loss(lp(y), lq(y), y) and of its gradient for y ~ weights [N, V] (constants)."""
    lp, lq = maths.log_softmax(student), maths.log_softmax(teacher)
    words = (torch.full((lp.shape[0],), y) for y in range(lp.shape[1]))
    mean = sum((weights.detach()[:, y[0]] * loss(lp[:, y[0]], lq[:, y[0]], y) for y in words), torch.zeros(()))
    assert isinstance(mean, Tensor)
    return mean.detach(), grad(mean, student)


@pytest.mark.parametrize("source", ["student", "teacher"])
@pytest.mark.parametrize("off_policy", [False, True])
def test_sampled_tail_is_unbiased_in_value_and_gradient(source: str, off_policy: bool) -> None:
    student, teacher = pair(4, 8)
    support = supported(student, teacher, 3, source)
    behaviour = (pair(4, 8, seed=9)[1] if off_policy else student).softmax(-1).detach()

    def of(estimator: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        def loss(lp: Tensor, lq: Tensor, y: Tensor) -> Tensor:
            weight = (lp.exp() / behaviour.gather(-1, y[:, None])[:, 0]).detach() if off_policy else None
            return estimator(support, lp, lq, (support.ids == y[:, None]).any(-1), weight)

        return enumerated(student, teacher, loss, behaviour)

    full = maths.reverse_kl(maths.log_softmax(student), maths.log_softmax(teacher))
    value, slope = of(supports.sampled_tail_reverse_kl)
    close_to(value, full.detach())
    close_to(slope, grad(full, student))
    value, slope = of(supports.published_sampled_tail_reverse_kl)
    close_to(value, full.detach())
    close_to(slope - grad(full, student), grad(support.student.exp().sum(-1), student))


def test_sampled_tail_ignores_what_was_sampled_inside() -> None:
    student, teacher = pair(2, 6)
    support = supported(student, teacher, 6)
    broken = torch.full((2,), -INF, dtype=torch.float64)
    loss = supports.sampled_tail_reverse_kl(support, support.student[:, 0], broken, torch.tensor([True, True]))
    close_to(loss, maths.reverse_kl(Table(student).logp, Table(teacher).logp))
    assert grad(loss, student).isfinite().all()


def test_estimators_estimate_what_their_docstrings_say() -> None:
    student, teacher = pair(4, 6)
    lp, lq = maths.log_softmax(student), maths.log_softmax(teacher)
    p = lp.exp()
    reverse, forward = maths.reverse_kl(lp, lq), maths.forward_kl(lp, lq)
    one = enumerated(student, teacher, lambda p, q, y: estimators.k1(p, q), p)
    two = enumerated(student, teacher, lambda p, q, y: estimators.k2(p, q), p)
    three = enumerated(student, teacher, lambda p, q, y: estimators.k3(p, q), p)
    close_to(one[0], reverse.detach())
    close_to(one[1], torch.zeros_like(student))
    close_to(two[0], 0.5 * (p * (lp - lq) ** 2).sum(-1).detach())
    close_to(two[1], grad(reverse, student))
    close_to(three[0], reverse.detach())
    close_to(three[1], grad(forward, student))
    assert (estimators.k3(lp, lq) >= 0).all()
    near = student.detach() + 1e-3 * teacher
    second_order = enumerated(student, near, lambda p, q, y: estimators.k2(p, q), p)[0]
    close_to(second_order, maths.reverse_kl(lp, maths.log_softmax(near)).detach(), 1e-8)


def test_policy_gradient_with_the_log_ratio_is_reverse_kl() -> None:
    student, teacher = pair(4, 6)
    lp, lq = maths.log_softmax(student), maths.log_softmax(teacher)
    exact = grad(maths.reverse_kl(lp, lq), student)
    behaviour = pair(4, 6, seed=7)[1].log_softmax(-1)
    close_to(enumerated(student, teacher, lambda p, q, y: estimators.policy_gradient(p, q - p), lp.exp())[1], exact)
    at = lambda y: behaviour.gather(-1, y[:, None])[:, 0]
    off = enumerated(student, teacher, lambda p, q, y: estimators.importance_gradient(p, at(y), q - p), behaviour.exp())
    close_to(off[1], exact)
    first = enumerated(student, teacher, lambda p, q, y: estimators.ppo_clip(p, p, q - p), lp.exp())
    close_to(first[1], exact)  # before the first update nothing is clipped


def test_surrogates_hold_advantage_and_reference_still() -> None:
    x = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([0.5, -1.5], dtype=torch.float64)
    for loss in (
        estimators.policy_gradient(x, a * x / x),
        estimators.importance_gradient(x, x, a * x / x),
        estimators.ppo_clip(x, x, a * x / x),
    ):
        close_to(grad(loss, x), -a)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.6, 0.0),  # above 1 + high and still rewarded: stopped
        (0.5, 2.0, -1.0, -1.0),  # below but rewarded: let it come back
        (0.5, -2.0, 1.6, 0.0),  # below 1 - low and still punished: stopped
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_ppo_clip(ratio: float, advantage: float, loss: float, slope: float) -> None:
    x = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([advantage], dtype=torch.float64)
    ours = estimators.ppo_clip(x, torch.zeros(1, dtype=torch.float64), a, low=0.2, high=0.3)
    close_to(ours, torch.tensor([loss], dtype=torch.float64))
    close_to(grad(ours, x), torch.tensor([slope], dtype=torch.float64))


def test_importance_weight_says_what_it_truncated() -> None:
    old = torch.tensor([0.0, -1.0, -2.0], requires_grad=True)
    weight, truncated = estimators.importance_weight(old, torch.tensor([-2.0, -1.0, -1.0]), cap=2.0)
    torch.testing.assert_close(weight, torch.tensor([2.0, 1.0, math.exp(-1)]))
    assert truncated.tolist() == [True, False, False] and not weight.requires_grad
    assert not estimators.importance_weight(old, torch.zeros(3), math.inf)[1].any()


def test_surrogate_errors() -> None:
    x = torch.zeros(2)
    with pytest.raises(ValueError, match="got cap=0, expected a positive number"):
        estimators.importance_weight(x, x, 0)
    with pytest.raises(ValueError, match=r"got low=1.2 and high=0.2, expected"):
        estimators.ppo_clip(x, x, x, low=1.2)


# ------------------------------------------------------------------------------------------------------------ horizon


def plain_returns(values: list[float], segment: list[int], when: list[int], gamma: float) -> list[float]:
    n = len(values)
    later = lambda i: (m for m in range(i, n) if segment[m] == segment[i])
    return [sum(gamma ** (when[m] - when[i]) * values[m] for m in later(i)) for i in range(n)]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_returns_against_the_double_sum(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 9))
    segment = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    values = data.draw(st.lists(st.floats(-3, 3), min_size=n, max_size=n))
    when = list(itertools.accumulate(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))))
    gamma = data.draw(st.sampled_from([0.3, 0.95, 1.0]))
    ours = estimators.returns(
        torch.tensor(values, dtype=torch.float64), torch.tensor(segment), torch.tensor(when), gamma
    )
    close_to(ours, torch.tensor(plain_returns(values, segment, when, gamma), dtype=torch.float64))


def test_returns_at_the_ends() -> None:
    values, segment = torch.tensor([1.0, 10.0, 2.0, 20.0]), torch.tensor([0, 1, 0, 1])
    turn = torch.tensor([0, 0, 0, 1])
    assert estimators.returns(values, segment, turn, 0).tolist() == [
        1,
        10,
        2,
        20,
    ]  # immediate, though rows 0 and 2 share a turn
    assert estimators.returns(values, segment, turn, 1).tolist() == [3, 30, 2, 20]
    assert estimators.returns(values, segment, turn, 0.5).tolist() == [3, 20, 2, 20]
    assert estimators.returns(values[:0], segment[:0], turn[:0], 0.5).tolist() == []
    half = estimators.returns(values.bfloat16(), segment, turn, 1)
    assert half.dtype == torch.float32


def test_returns_errors() -> None:
    x = torch.ones(2)
    with pytest.raises(ValueError, match=r"got gamma=1.5, expected"):
        estimators.returns(x, x.long(), x.long(), 1.5)
    with pytest.raises(ValueError, match=r"segment 1 got time 4 before 3, expected no fall: sort"):
        estimators.returns(x, x.long(), torch.tensor([4, 3]), 0.5)


def test_returns_of_a_large_batch_is_quick() -> None:
    n = 65_536
    start = time.perf_counter()
    result = estimators.returns(torch.ones(n, dtype=torch.float64), torch.arange(n) % 64, torch.arange(n) // 64, 1.0)
    assert time.perf_counter() - start < 2 and result[0] == 1024


# ------------------------------------------------------------------------------------------------------------- module


def test_softmax_and_upcast() -> None:
    assert maths.upcast(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert maths.upcast(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert maths.upcast(torch.zeros(1, dtype=torch.long)).dtype == torch.float32
    assert maths.log_softmax(torch.tensor([1e4, -1e4])).tolist() == [0, -2e4]
    assert maths.log_softmax(torch.zeros(4, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("module", [maths, estimators, supports])
def test_every_public_function_has_a_docstring(module) -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    assert len(public) > 8 and all(ast.get_docstring(n) for n in public)


@each
def test_student_and_teacher_may_differ_in_precision(name: str) -> None:
    ours, _ = DIVERGENCES[name]
    student, teacher = pair()
    exact = ours(maths.log_softmax(student), maths.log_softmax(teacher))
    for a, b in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        lp = maths.log_softmax(student.to(a))
        value = ours(lp, maths.log_softmax(teacher.to(b)))
        torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-6)
        assert grad(value, lp).dtype == a
