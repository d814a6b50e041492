"""Objectives that other projects shipped, each written as shipped and told apart from ours by exact enumeration."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from opd import estimators, maths, supports

INF = math.inf


class Table:
    def __init__(self, logits: Tensor) -> None:
        self.logp = maths.log_softmax(logits)

    def at(self, ids: Tensor) -> Tensor:
        return self.logp.gather(-1, ids)


def row(*p: float) -> Tensor:
    """Logits of one row with these probabilities."""
    return torch.tensor([p], dtype=torch.float64).log()


def pair(n: int = 4, v: int = 8, seed: int = 0, gap: float = 1.5, common: float = 0.0) -> tuple[Tensor, Tensor]:
    """Student and teacher logits, `gap` apart around something they have in common."""
    g = torch.Generator().manual_seed(seed)
    shared, own, other = (torch.randn(n, v, generator=g, dtype=torch.float64) for _ in range(3))
    return (common * shared + gap * own).requires_grad_(), common * shared + gap * other


def grad(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), x, retain_graph=True)[0]


def mean_gradient(student: Tensor, teacher: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Exact mean over y ~ p of the gradient of an elementwise loss(log p(y), log q(y))."""
    lp, lq = maths.log_softmax(student), maths.log_softmax(teacher)
    return grad(lp.exp().detach() * loss(lp, lq), student)


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a, b, dim=-1).mean().item()


def support(student: Tensor, teacher: Tensor, k: int, source: str) -> supports.Support:
    ids, valid = supports.top_ids(student if source == "student" else teacher, k)
    return supports.gather_support(Table(student), Table(teacher), ids, valid)


def close_to(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def full(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    return maths.log_softmax(student), maths.log_softmax(teacher)


# ------------------------------------------------------------------------------- estimators back-propagated as losses


def test_k3_as_a_loss_is_forward_kl() -> None:
    student, teacher = pair()
    wrong = mean_gradient(student, teacher, lambda lp, lq: (lq - lp).exp() - 1 - (lq - lp))
    close_to(wrong, grad(maths.forward_kl(*full(student, teacher)), student))
    assert cosine(wrong, grad(maths.reverse_kl(*full(student, teacher)), student)) < 0.95
    close_to(mean_gradient(student, teacher, estimators.k2), grad(maths.reverse_kl(*full(student, teacher)), student))


def test_clamping_k3_silences_the_words_the_teacher_wants_most() -> None:
    student, teacher = row(0.01, 0.99).requires_grad_(), row(0.9, 0.1)
    lp, lq = full(student, teacher)
    clamped = grad(estimators.k3(lp, lq).clamp(max=10), lp)
    assert clamped[0, 0] == 0 and grad(estimators.k3(lp, lq), lp)[0, 0] < -10


def test_k1_as_a_loss_teaches_nothing() -> None:
    student, teacher = pair()
    close_to(mean_gradient(student, teacher, estimators.k1), torch.zeros_like(student))
    as_reward = mean_gradient(student, teacher, lambda lp, lq: estimators.policy_gradient(lp, -estimators.k1(lp, lq)))
    close_to(as_reward, grad(maths.reverse_kl(*full(student, teacher)), student))


def test_absolute_k1_as_a_loss_knows_only_the_sign() -> None:
    student, teacher = pair(gap=2.0)
    further = teacher - 3.0 * (teacher == teacher.min(-1, keepdim=True).values)  # same signs, another distance
    wrong = mean_gradient(student, teacher, lambda lp, lq: (lp - lq).abs())
    exact = grad(maths.reverse_kl(*full(student, teacher)), student)
    sign = estimators.policy_gradient(
        maths.log_softmax(student), (teacher.log_softmax(-1) - student.log_softmax(-1)).sign()
    )
    close_to(wrong, grad(maths.log_softmax(student).exp().detach() * sign, student))
    assert cosine(wrong, exact) < 0.97
    assert not torch.allclose(exact, grad(maths.reverse_kl(*full(student, further)), student), rtol=0.01)


def test_an_advantage_that_is_not_detached_also_lowers_the_entropy() -> None:
    student, teacher = pair()
    wrong = mean_gradient(student, teacher, lambda lp, lq: -(lq - lp) * lp)
    lp, lq = full(student, teacher)
    close_to(wrong, grad(maths.reverse_kl(lp, lq) - maths.entropy(lp), student))
    right = mean_gradient(student, teacher, lambda lp, lq: estimators.policy_gradient(lp, lq - lp))
    close_to(right, grad(maths.reverse_kl(lp, lq), student))


def test_stale_samples_without_importance_weights_are_biased() -> None:
    student, teacher = pair()
    lp, lq = full(student, teacher)
    behaviour = pair(seed=5)[1].log_softmax(-1)
    exact = grad(maths.reverse_kl(lp, lq), student)
    wrong = grad(behaviour.exp() * estimators.policy_gradient(lp, lq - lp), student)
    right = grad(behaviour.exp() * estimators.importance_gradient(lp, behaviour, lq - lp), student)
    close_to(right, exact)
    assert cosine(wrong, exact) < 0.9


def test_forward_and_reverse_are_not_each_other() -> None:
    student, teacher = row(0.5, 0.5, 1e-9).requires_grad_(), row(0.5, 1e-9, 0.5)
    reverse, forward = maths.reverse_kl(*full(student, teacher)), maths.forward_kl(*full(student, teacher))
    close_to(reverse, forward)  # one value here, two gradients
    seeks, covers = grad(reverse, student)[0], grad(forward, student)[0]
    assert seeks[1] > 1 and abs(seeks[2]) < 1e-6  # reverse leaves what the teacher denies
    assert covers[2] < -0.4 and abs(covers[0]) < 1e-6  # forward goes where the teacher is


# -------------------------------------------------------------------------------------------------- truncated supports


def test_clamping_a_truncated_forward_kl_at_zero_erases_the_gradient_of_a_sharp_student() -> None:
    student, teacher = row(0.98, 0.01, 0.005, 0.005).requires_grad_(), row(0.5, 0.02, 0.24, 0.24)
    lp, lq = supports.close(support(student, teacher, 1, "teacher"), "drop")
    truncated = (lq.exp() * (lq - lp)).sum(-1)
    assert truncated.item() < 0
    assert (grad(truncated.clamp_min(0), student) == 0).all()
    ours = maths.forward_kl(*supports.close(support(student, teacher, 1, "teacher"), "tail"))
    assert ours.item() > 0 and grad(ours, student).norm() > 0.1


def test_truncated_forward_kl_is_negative_nearly_everywhere_for_a_sharp_student() -> None:
    _, teacher = pair(200, 300, gap=1.0)
    sharp = 2 * teacher + 0.2 * pair(200, 300, seed=4)[1]
    kept = support(sharp, teacher, 32, "teacher")
    assert (maths.forward_kl(*supports.close(kept, "drop")) < 0).double().mean() > 0.95
    assert (maths.forward_kl(*supports.close(kept, "tail")) >= 0).all()


def descend(teacher: Tensor, k: int, outside: supports.Outside, gradient: maths.Gradient, steps: int = 400) -> Tensor:
    student = teacher.clone().requires_grad_()  # starts at the answer
    for _ in range(steps):
        loss = maths.reverse_kl(*supports.close(support(student, teacher, k, "teacher"), outside), gradient=gradient)
        student = (student - 2.0 * grad(loss, student)).detach().requires_grad_()
    ids, _ = supports.top_ids(teacher, k)
    return Table(student).at(ids).exp().sum(-1).detach()


def test_a_dropped_pathwise_support_loses_its_mass() -> None:
    _, teacher = pair(3, 8, gap=1.0)
    mass = Table(teacher).at(supports.top_ids(teacher, 4)[0]).exp().sum(-1)
    close_to(descend(teacher, 4, "drop", "pathwise"), mass / math.e, 1e-3)  # p = q/e is where that loss is lowest
    for outside, gradient in (("drop", "score"), ("tail", "pathwise"), ("renormalise", "pathwise")):
        close_to(descend(teacher, 4, outside, gradient, steps=5), mass)


def test_a_dropped_pathwise_support_lowers_words_the_teacher_mildly_prefers() -> None:
    student, teacher = row(0.2, 0.2, 0.6).requires_grad_(), row(0.4, 0.2, 0.4)  # word 0: p < q < e p
    lp, lq = supports.close(support(student, teacher, 2, "teacher"), "drop")
    at = (support(student, teacher, 2, "teacher").ids[0] == 0).nonzero().item()
    assert grad(maths.reverse_kl(lp, lq, "pathwise"), lp)[0, at] > 0
    assert grad(maths.reverse_kl(lp, lq, "score"), lp)[0, at] < 0


@pytest.mark.parametrize("source", ["student", "teacher"])
def test_a_renormalised_support_is_blind_to_mass_outside(source: str) -> None:
    student, teacher = row(0.05, 0.05, 0.3, 0.3, 0.3).requires_grad_(), row(0.4, 0.4, 0.1, 0.05, 0.05)
    kept = support(student, teacher, 2, source)
    inside = torch.zeros(1, 5, dtype=torch.bool).scatter(-1, kept.ids, True)
    blind = grad(maths.reverse_kl(*supports.close(kept, "renormalise")), student)
    sees = grad(maths.reverse_kl(*supports.close(kept, "tail")), student)
    assert blind[~inside].abs().max() < 1e-15 and sees[~inside].abs().max() > 0.05
    if source == "teacher":  # two words in the right proportion: no push at all although 90 % of the mass is elsewhere
        assert blind.abs().max() < 1e-15 and (sees[0, :2] < 0).all()


def test_one_renormalised_word_is_identically_zero() -> None:
    student, teacher = pair()
    lp, lq = supports.close(support(student, teacher, 1, "student"), "renormalise")
    for loss in (maths.reverse_kl(lp, lq), maths.forward_kl(lp, lq), maths.jsd(lp, lq, 0.5)):
        assert (loss == 0).all() and (grad(loss, student).abs() < 1e-15).all()
    assert (
        grad(maths.reverse_kl(*supports.close(support(student, teacher, 1, "student"), "tail")), student).norm() > 0.1
    )


def test_a_support_kl_as_the_advantage_of_every_word_has_zero_mean_gradient() -> None:
    student, teacher = pair()
    kl = maths.reverse_kl(*supports.close(support(student, teacher, 4, "student"), "renormalise"))
    wrong = mean_gradient(student, teacher, lambda lp, lq: estimators.policy_gradient(lp, -kl.unsqueeze(-1)))
    close_to(wrong, torch.zeros_like(student))
    assert grad(kl, student).norm() > 0.1  # as a loss the same number does teach


def test_a_sampled_word_against_the_rest_weighted_by_itself_is_not_reverse_kl() -> None:
    student, teacher = pair(20, 32, gap=1.5)
    exact = grad(maths.reverse_kl(*full(student, teacher)), student)

    def two_outcomes(lp: Tensor, lq: Tensor) -> Tensor:
        p, q = lp.exp(), lq.exp()
        return p * (lp - lq) + (1 - p) * ((1 - p) / (1 - q)).log()

    wrong = mean_gradient(student, teacher, two_outcomes)
    assert cosine(wrong, exact) < 0.95 and wrong.norm() < 0.6 * exact.norm()


def test_a_naive_tail_is_nan_where_rounding_lifts_the_mass_above_one() -> None:
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(200, 64, generator=g), torch.randn(200, 64, generator=g)
    kept = support(student, teacher, 64, "teacher")
    naive_p, naive_q = (torch.log(1 - x.exp().sum(-1)) for x in (kept.student, kept.teacher))
    assert not (naive_p.exp() * (naive_p - naive_q)).isfinite().all()
    ours = maths.reverse_kl(*supports.close(kept, "tail"))
    torch.testing.assert_close(ours, maths.reverse_kl(Table(student).logp, Table(teacher).logp), rtol=1e-4, atol=1e-5)


def test_repeated_words_count_once() -> None:
    student, teacher = pair(1, 6)
    ids = torch.tensor([[2, 4]])
    joined, valid = supports.union(ids, torch.tensor([[4, 5]]))
    asked = supports.gather_support(Table(student), Table(teacher), joined, valid)
    twice = supports.Support(joined, torch.ones_like(valid), asked.student, asked.teacher)
    once = supports.gather_support(
        Table(student), Table(teacher), torch.tensor([[2, 4, 5]]), torch.ones(1, 3, dtype=torch.bool)
    )
    close_to(
        maths.reverse_kl(*supports.close(asked, "renormalise")), maths.reverse_kl(*supports.close(once, "renormalise"))
    )
    assert not torch.allclose(
        maths.reverse_kl(*supports.close(twice, "renormalise")), maths.reverse_kl(*supports.close(once, "renormalise"))
    )


# ----------------------------------------------------------------------------------------- scales, temperatures, clips


def test_the_usual_jsd_jumps_at_its_ends_and_the_continuous_one_does_not() -> None:
    student, teacher = pair(20, 32, gap=1.0)
    lp, lq = full(student, teacher)

    def size(beta: float, scale: maths.Scale) -> float:
        return grad(maths.jsd(lp, lq, beta, scale), student).norm().item()

    for end, near in ((0, 0.01), (1, 0.99)):
        assert size(end, "usual") > 50 * size(near, "usual")
        assert 0.7 < size(end, "continuous") / size(near, "continuous") < 1.5


def test_a_temperature_on_one_side_only_moves_a_student_that_has_arrived() -> None:
    student, _ = pair()
    teacher = student.detach()
    one_sided = maths.reverse_kl(maths.log_softmax(student / 0.7), maths.log_softmax(teacher))
    both = maths.reverse_kl(maths.log_softmax(student / 0.7), maths.log_softmax(teacher / 0.7))
    assert (one_sided > 0.01).all() and grad(one_sided, student).norm() > 0.1
    close_to(both, torch.zeros(4, dtype=torch.float64))
    close_to(grad(both, student), torch.zeros_like(student))


def test_clipping_each_entry_of_a_kl_can_invert_it() -> None:
    student, teacher = row(0.01, 0.99).requires_grad_(), row(0.9, 0.1)
    lp, lq = full(student, teacher)
    wrong = (lq.exp() * (lq - lp)).clamp(max=0.05).sum(-1)  # the term that says "more of word 0" is a constant now
    assert wrong.item() < 0
    assert cosine(grad(wrong, student), grad(maths.forward_kl(lp, lq), student)) < -0.99
    bounded = maths.skew_kl(lp, lq, 0.1)  # a bound that keeps the direction
    assert (
        bounded.item() <= -math.log(0.1)
        and cosine(grad(bounded, student), grad(maths.forward_kl(lp, lq), student)) > 0.99
    )


def test_z_scores_do_not_depend_on_how_much_teacher_was_asked_for() -> None:
    student, teacher = pair(1, 200)
    lp, lq = (x[0].detach() for x in full(student, teacher))

    def z(a: Tensor) -> Tensor:
        return (a - a.mean()) / a.std(correction=0)

    close_to(z(0.01 * (lq - lp)), z(10 * (lq - lp)))
    almost = lp + 1e-6 * (lq - lp)  # a student that has arrived, blown up to full size again
    assert z(almost - lp).std() > 0.99 and (almost - lp).abs().max() < 1e-4
    assert z(torch.full((8,), 0.5)).isnan().all()  # and a constant teacher term is gone, or worse
    assert maths.power_reward(lp, almost, 1.0).abs().max() < 1e-4


def test_clipping_the_log_ratio_and_the_power_reward_are_not_the_same_bound() -> None:
    lp, lq = torch.tensor([-0.1, -30.0]), torch.tensor([-20.0, -50.0])
    clipped, power = (lq - lp).clamp(-1, 1), maths.power_reward(lp, lq, 1.0)
    assert clipped[0] == clipped[1]  # a word that both find impossible weighs as much as a confident mistake
    assert power[0] < -0.9 and power[1].abs() < 1e-12


# -------------------------------------------------------------------------------------------- vocabulary, mask, shifts


def test_padding_the_students_vocabulary_with_the_teachers_logits_changes_the_objective() -> None:
    student, teacher = pair(4, 6)
    pads = torch.full((4, 2), 3.0, dtype=torch.float64)  # untrained columns of a padded teacher head
    exact = maths.reverse_kl(*full(student, teacher))
    filled = maths.reverse_kl(*full(torch.cat([student, pads], -1), torch.cat([teacher, pads], -1)))
    gone = torch.full_like(pads, -INF)
    masked = maths.reverse_kl(*full(torch.cat([student, gone], -1), torch.cat([teacher, gone], -1)))
    close_to(masked, exact)
    close_to(grad(masked, student), grad(exact, student))
    assert not torch.allclose(filled, exact, rtol=0.1)
    assert cosine(grad(filled, student), grad(exact, student)) < 0.999


def test_masking_by_multiplication_is_nan() -> None:
    student, teacher = pair(2, 5)
    hole = torch.tensor([False, False, True, False, False])
    lp, lq = full(student.masked_fill(hole, -INF), teacher.masked_fill(hole, -INF))
    assert ((lp.exp() * (lp - lq)) * ~hole).sum(-1).isnan().all()
    inside = torch.where(hole, 0.0, lp.exp() * (lp - lq)).sum(-1)  # the value is repaired here, the gradient is not
    assert inside.isfinite().all() and grad(inside, student).isnan().any()
    ours = maths.reverse_kl(lp, lq)
    close_to(ours, inside)
    assert grad(ours, student).isfinite().all()


def test_a_teacher_shifted_by_one_position_is_told_apart() -> None:
    student, _ = pair(6, 8)
    teacher = student.detach()
    close_to(maths.reverse_kl(*full(student, teacher)), torch.zeros(6, dtype=torch.float64))
    shifted = maths.reverse_kl(maths.log_softmax(student[:-1]), maths.log_softmax(teacher[1:]))
    assert (shifted > 0.1).all()
    with pytest.raises(ValueError, match="expected one shape"):
        maths.reverse_kl(maths.log_softmax(student[:-1]), maths.log_softmax(teacher))


def test_a_softmax_in_bf16_is_not_the_softmax_of_bf16() -> None:
    g = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(1, 5000, generator=g)).bfloat16()
    exact = logits.double().log_softmax(-1)
    assert (logits.log_softmax(-1).double() - exact).abs().max() > 0.01
    assert (maths.log_softmax(logits).double() - exact).abs().max() < 1e-5


# --------------------------------------------------------------------------------------------- sums, means and horizon


def test_only_weights_fixed_before_the_split_survive_micro_batches() -> None:
    student, teacher = pair(8, 6)
    loss = maths.reverse_kl(*full(student, teacher))
    parts = [loss[:1], loss[1:8]]  # a short and a long answer
    exact = loss.sum() / len(loss)
    each_mean = sum(p.mean() for p in parts) / len(parts)
    twice = sum(p.sum() / len(p) for p in parts) / len(loss)
    ours = sum((p / len(loss)).sum() for p in parts)
    close_to(torch.as_tensor(ours), exact)
    assert not torch.allclose(torch.as_tensor(each_mean), exact, rtol=0.01)
    assert not torch.allclose(torch.as_tensor(twice), exact, rtol=0.5)


def test_a_running_sum_over_the_table_mixes_the_sequences() -> None:
    values, segment = torch.tensor([1.0, 10.0, 2.0, 20.0]), torch.tensor([0, 1, 0, 1])
    wrong = values.flip(0).cumsum(0).flip(0)
    assert wrong.tolist() == [33, 32, 22, 20]
    assert estimators.returns(values, segment, torch.arange(4), 1.0).tolist() == [3, 30, 2, 20]


def test_immediate_credit_is_not_the_gradient_of_the_sequence_divergence() -> None:
    """Two tokens over two words: only the return-to-go descends the reverse KL of whole sequences."""
    g = torch.Generator().manual_seed(1)
    student = torch.randn(3, 2, generator=g, dtype=torch.float64).requires_grad_()  # contexts: start, after 0, after 1
    teacher = 2 * torch.randn(3, 2, generator=g, dtype=torch.float64)
    lp, lq = full(student, teacher)
    whole = sum(
        (lp[0, a] + lp[1 + a, b]).exp() * (lp[0, a] + lp[1 + a, b] - lq[0, a] - lq[1 + a, b])
        for a in (0, 1)
        for b in (0, 1)
    )
    exact = grad(torch.as_tensor(whole), student)

    def expected(gamma: float) -> Tensor:
        total = torch.zeros_like(student)
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            chosen_p, chosen_q = torch.stack([lp[0, a], lp[1 + a, b]]), torch.stack([lq[0, a], lq[1 + a, b]])
            credit = estimators.returns(chosen_q - chosen_p, torch.zeros(2), torch.arange(2), gamma)
            total += chosen_p.sum().exp().detach() * grad(estimators.policy_gradient(chosen_p, credit), student)
        return total

    close_to(expected(1.0), exact)
    assert (expected(0.0)[0] - exact[0]).abs().max() > 0.01


# ------------------------------------------------------------------- the audit: cosine with the gradient of reverse KL


GAPS = {"small": 0.5, "medium": 1.0, "large": 2.0}


@pytest.fixture(scope="module", params=GAPS)
def audit(request: pytest.FixtureRequest) -> tuple[str, Tensor, Tensor, Tensor]:
    student, teacher = pair(64, 1000, seed=11, gap=GAPS[request.param], common=3.0)
    return request.param, student, teacher, grad(maths.reverse_kl(*full(student, teacher)), student)


def test_which_cheap_objective_points_along_reverse_kl(audit: tuple[str, Tensor, Tensor, Tensor]) -> None:
    size, student, teacher, exact = audit

    def two_outcomes(lp: Tensor, lq: Tensor) -> Tensor:
        p, q = lp.exp(), lq.exp()
        return p * (lp - lq) + (1 - p) * (torch.log1p(-p) - torch.log1p(-q))

    def of(source: str, outside: supports.Outside) -> float:
        return cosine(
            grad(maths.reverse_kl(*supports.close(support(student, teacher, 32, source), outside)), student), exact
        )

    def sampled(loss: Callable[[Tensor, Tensor], Tensor]) -> float:
        return cosine(mean_gradient(student, teacher, loss), exact)

    at = {"small": 0, "medium": 1, "large": 2}[size]
    assert sampled(estimators.k2) > 1 - 1e-9
    assert of("student", "tail") > 0.96 and of("student", "renormalise") > 0.96
    assert sampled(estimators.k3) < (0.97, 0.9, 0.7)[at]
    assert sampled(lambda lp, lq: (lp - lq).abs()) < (0.9, 0.85, 0.7)[at]
    assert sampled(two_outcomes) < (0.92, 0.88, 0.75)[at]
    assert of("teacher", "renormalise") < (0.98, 0.93, 0.75)[at]
