"""Bias and variance of the interpolated estimator (arXiv 2603.25562, gamma from 0 to 1), by listing every text."""

import math

import pytest
import torch
from torch import Tensor

from opd.lab import tabular
from opd.method import Method
from opd.recipes.sampled_token import sampled_token

GAMMAS = (0.0, 0.25, 0.5, 1.0)


def table(seed: int, vocab: int, coupled: bool = True) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(vocab + 1 if coupled else 1, vocab, generator=g, dtype=torch.float64)
    return logits if coupled else logits.expand(vocab + 1, vocab)


def token_kl(student: Tensor, teacher: Tensor, length: int) -> Tensor:
    """Sum over positions of the reverse KL of the next token, with the visited prefixes held still."""
    texts = tabular.every_text(student.shape[1], length)
    weight = tabular.logprobs(student, texts).sum(1).exp().detach()
    lp, lq = student.log_softmax(-1), teacher.log_softmax(-1)
    kl = (lp.exp() * (lp - lq)).sum(-1)
    return (weight * kl[tabular.before(texts, student.shape[1])].sum(1)).sum()


def slope(value: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(value, of)[0]


def test_gamma_1_means_the_sequence_and_gamma_0_the_tokens() -> None:
    student, teacher = table(0, 3).requires_grad_(), table(1, 3)
    sequence, token = (slope(kl(student, teacher, 4), student) for kl in (tabular.sequence_kl, token_kl))
    one, zero = (tabular.moments(sampled_token(gamma=gamma), student, teacher, 4)[0] for gamma in (1.0, 0.0))
    torch.testing.assert_close(one, sequence, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(zero, token, rtol=1e-12, atol=1e-13)
    assert (sequence - token).norm() > 0.1 * sequence.norm(), "the coupling is real"


def test_bias_falls_and_variance_grows_with_gamma() -> None:
    student, teacher = table(0, 3), table(1, 3)
    found = [tabular.moments(sampled_token(gamma=gamma), student, teacher, 5) for gamma in GAMMAS]
    bias = [float((mean - found[-1][0]).norm()) for mean, _ in found]
    assert bias == sorted(bias, reverse=True)
    variance = [v for _, v in found]
    assert variance == sorted(variance)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_closed_form_for_independent_tokens_is_the_enumerated_variance(gamma: float) -> None:
    student, teacher = table(2, 4, coupled=False), table(3, 4, coupled=False)
    method = sampled_token(gamma=gamma)
    for length in (1, 2, 4):
        texts = tabular.every_text(4, length)
        weight = tabular.logprobs(student, texts).sum(1).exp()
        shared = tabular.gradients(method, student, teacher, texts).sum(1)  # one softmax has all the logits
        mean = weight @ shared
        exact = float(weight @ (shared - mean).square().sum(1))
        assert tabular.independent_variance(student[0], teacher[0], length, gamma) == pytest.approx(exact, rel=1e-12)


def sampled_variance(method: Method, student: Tensor, teacher: Tensor, length: int, count: int = 2000) -> float:
    texts = tabular.draw(student, count, length, torch.Generator().manual_seed(length))
    return float(tabular.gradients(method, student, teacher, texts).sum(1).var(0).sum())


@pytest.mark.parametrize(("gamma", "low", "high"), [(0.0, 0.95, 1.05), (0.5, 0.97, 1.11), (1.0, 2.7, 3.0)])
def test_variance_grows_with_the_length_as_written(gamma: float, low: float, high: float) -> None:
    """T^1.0, T^1.04 and T^2.8 between 16 and 64 tokens; not the T^2 and T^4 of the paper's upper bounds."""
    student, teacher = table(4, 8, coupled=False), table(5, 8, coupled=False)
    exact = [tabular.independent_variance(student[0], teacher[0], length, gamma) for length in (16, 64)]
    assert low < math.log(exact[1] / exact[0], 4) < high
    drawn = [sampled_variance(sampled_token(gamma=gamma), student, teacher, length) for length in (16, 64)]
    assert drawn == pytest.approx(exact, rel=0.15)
    assert math.log(drawn[1] / drawn[0], 4) == pytest.approx(math.log(exact[1] / exact[0], 4), abs=0.12)


def test_credit_from_the_past_would_be_told_apart() -> None:
    """The textbook form, the text's whole cost on every token, has the same mean and another variance."""
    student, teacher = table(4, 8, coupled=False), table(5, 8, coupled=False)
    causal = tabular.independent_variance(student[0], teacher[0], 16, 1.0)
    texts = tabular.draw(student, 2000, 16, torch.Generator().manual_seed(0))
    whole = (tabular.logprobs(student, texts) - tabular.logprobs(teacher, texts)).sum(1)
    score = (torch.eye(8, dtype=torch.float64) - student[0].softmax(-1))[texts].sum(1)
    assert float((whole[:, None] * score).var(0).sum()) > 1.5 * causal
