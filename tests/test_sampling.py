"""The sampler draws from exactly the distribution whose log-probs it reports."""

import math

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from opd.engines.sampling import BLOCK, draw, truncate, uniforms
from opd.rollout import Sampling

SETTINGS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(top_k=5),
    Sampling(top_p=0.6),
    Sampling(min_p=0.1),
    Sampling(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02),
]


def logits(rows: int = 6, vocab: int = 300, scale: float = 2.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def reference(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    steps = LogitsProcessorList()
    if sampling.temperature != 1:
        steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(MinPLogitsWarper(sampling.min_p))
    return steps(torch.zeros(1, 1, dtype=torch.long), scores).log_softmax(-1)


@pytest.mark.parametrize("sampling", SETTINGS)
@pytest.mark.parametrize("scale", [0.1, 2.0, 8.0])  # flat ones need the whole sort, peaked ones only the first tokens
def test_truncated_distribution_is_that_of_transformers(sampling, scale):
    scores = logits(scale=scale)
    ours = truncate(scores.clone(), sampling)
    expected = reference(scores.clone(), sampling)
    assert torch.equal(ours.isneginf(), expected.isneginf())
    torch.testing.assert_close(ours.exp(), expected.exp(), rtol=0, atol=1e-14)


def test_truncate_leaves_its_input_alone():
    scores = logits()
    before = scores.clone()
    truncate(scores, SETTINGS[-1])
    assert torch.equal(scores, before)


@pytest.mark.parametrize("vocab", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 1000])
def test_draw_is_the_inverse_of_the_cumulative_distribution(vocab):
    logprobs = logits(50, vocab).log_softmax(-1)
    uniform = uniforms(range(50), 1)[:, 0]
    cdf = logprobs.exp().cumsum(-1)
    expected = (cdf <= uniform[:, None] * cdf[:, -1:]).sum(-1)
    assert torch.equal(draw(logprobs, uniform), expected)
    assert torch.equal(draw(logprobs, uniform, scratch=torch.empty_like(logprobs)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53, 1.0])
def test_a_token_of_probability_zero_is_never_drawn(dtype, u):
    """Neither at the ends of the distribution nor at the borders of blocks, whatever is rounded where."""
    for seed in range(20):
        scores = logits(8, 3 * BLOCK + 7, seed=seed).to(dtype)
        dead = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed)) < 0.9
        dead[:, -BLOCK - 20 :] = True
        dead[:, :3] = True
        logprobs = scores.masked_fill(dead, -torch.inf).log_softmax(-1)
        ids = draw(logprobs, torch.full((8,), u, dtype=torch.float64))
        assert logprobs.gather(1, ids[:, None]).isfinite().all()


@pytest.mark.parametrize("sampling", SETTINGS)
def test_frequencies_follow_the_distribution(sampling):
    """Chi-square over 20,000 draws with fixed seeds; the bound is the 1 - 1e-4 quantile, by Wilson and Hilferty."""
    n, scores = 20_000, logits(1, 200)
    logprobs = truncate(scores, sampling)
    ids = draw(logprobs.expand(n, -1), uniforms([17], n)[0])
    count = torch.bincount(ids, minlength=200).double()
    expected = n * logprobs[0].exp()
    assert not count[expected == 0].any()
    common = expected >= 5
    cells = torch.cat([expected[common], expected[~common].sum()[None]])
    seen = torch.cat([count[common], count[~common].sum()[None]])
    cells, seen = cells[cells > 0], seen[cells > 0]
    freedom = len(cells) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3 if freedom else 1e-9
    assert ((seen - cells) ** 2 / cells).sum() < bound


def test_uniforms_depend_on_their_own_seed_only():
    many = uniforms([3, 2**64 - 1, 5], 7)
    assert torch.equal(many[2], uniforms([5], 7)[0])
    assert torch.equal(many[1], uniforms([2**64 - 1], 7)[0])
    assert torch.equal(many[0, :4], uniforms([3], 4)[0])
    assert len(np.unique(many.numpy())) == 21
    assert uniforms([], 3).shape == (0, 3)


def test_large_vocabulary_in_float32_loses_no_mass():
    """150,000 tokens of which each has about 1e-5: the halves of the vocabulary get half of the draws."""
    n, vocab = 400, 150_000
    logprobs = torch.full((1, vocab), -math.log(vocab))
    ids = draw(logprobs.expand(n, -1), (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    expected = (torch.arange(n) + 0.5) / n * vocab
    assert (ids - expected).abs().max() < 2
