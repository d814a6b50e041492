"""A noisy teacher: what the channel does to a policy, and what each loss makes of what is seen through it."""

import re
from functools import partial

import pytest
import torch
from torch import Tensor

from opd import maths
from opd.contract import check
from opd.dist import TableDist
from opd.errors import SettingError
from opd.parts.channel import Channel, Corrupted, Given, Tempered, uniform
from opd.parts.losses import CrossEntropy, Everywhere, ThroughChannel
from opd.recipes.nail import nail
from opd.recipes.nailgun import nailgun
from opd.rows import Rows

V = 5
TURNS = tuple(tuple(1.0 if b == (a + 1) % V else 0.0 for b in range(V)) for a in range(V))
NOISES = {
    "uniform": uniform,
    "given": Given((0.1, 0.2, 0.3, 0.4, 0.0)),
    "tempered": Tempered(2.0),
    "corrupted": Corrupted(TURNS),
}


def policies(n: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def table(lq: Tensor, **columns) -> Rows:
    tokens = torch.zeros(len(lq), dtype=torch.long)
    return Rows({"keep": torch.ones(len(lq), dtype=torch.bool), "teacher": TableDist(lq, tokens), **columns})


def minimiser(loss, rows: Rows, steps: int = 400) -> Tensor:
    """The probabilities at which a loss of the package is least, row by row."""
    logits = torch.zeros_like(rows.dist("teacher").logprobs()).requires_grad_()
    tokens = torch.zeros(len(logits), dtype=torch.long)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=steps, tolerance_grad=1e-13, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(TableDist(logits.log_softmax(-1), tokens), rows).sum()
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().softmax(-1)


@pytest.mark.parametrize("noise", NOISES)
def test_a_channel_is_the_mixture_written_out(noise):
    lp, lq, rate = policies(), policies(seed=1), 0.3
    written = {
        "uniform": torch.full((4, V), 1 / V, dtype=torch.float64),
        "given": torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0], dtype=torch.float64).expand(4, V),
        "tempered": lq.exp().sqrt() / lq.exp().sqrt().sum(-1, keepdim=True),
        "corrupted": lp.exp().roll(1, -1),
    }[noise]
    seen = Channel(rate, NOISES[noise])(lp, table(lq)).exp()
    torch.testing.assert_close(seen, (1 - rate) * lp.exp() + rate * written, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("noise", NOISES)
def test_rate_0_is_the_identity(noise):
    lp = policies()
    assert torch.equal(Channel(0.0, NOISES[noise])(lp, table(policies(seed=1))), lp)
    assert torch.equal(maths.mixture(lp, policies(seed=2), 0.0), lp)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        maths.mixture(lp, lp, 1.0)


def test_noise_that_is_the_clean_policy_changes_nothing():
    lp = policies()
    seen = Channel(0.7, Tempered(1.0))(lp, table(lp))
    torch.testing.assert_close(seen, lp, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("noise", NOISES)
def test_slopes_through_a_channel(noise):
    lp = policies().requires_grad_()
    rows = table(policies(seed=1))
    assert torch.autograd.gradcheck(lambda x: Channel(0.4, NOISES[noise])(x.log_softmax(-1), rows), lp)
    sharp = torch.tensor([[0.0, -900.0, -900.0, -900.0, -900.0]], dtype=torch.float64, requires_grad=True)
    Channel(0.4, NOISES[noise])(sharp.log_softmax(-1), table(policies(1))).sum().backward()
    assert sharp.grad is not None and bool(sharp.grad.isfinite().all())


@pytest.mark.parametrize("noise", NOISES)
def test_the_channel_aware_optimum_is_the_clean_policy_and_the_plain_one_the_noisy(noise):
    clean, channel = policies(), Channel(0.4, NOISES[noise])
    seen = channel(clean, table(clean))
    rows = table(seen)
    # the noise of the student's channel is that of the teacher's: Tempered looks at the clean teacher
    aware = ThroughChannel(
        Channel(0.4, NOISES[noise] if noise != "tempered" else lambda lp, _: channel.noise(lp, table(clean)))
    )
    torch.testing.assert_close(minimiser(aware, rows), clean.exp(), rtol=0, atol=1e-6)
    torch.testing.assert_close(minimiser(Everywhere(maths.forward_kl), rows), seen.exp(), rtol=0, atol=1e-6)
    assert float((seen.exp() - clean.exp()).abs().max()) > 0.05, "there is a difference to be told"
    at_clean = aware(TableDist(clean, torch.zeros(4, dtype=torch.long)), rows)
    assert float(at_clean.abs().max()) < 1e-14


def test_labels_in_their_long_run_are_the_whole_distribution():
    """Every label once, weighted by how often it comes: same gradient as the expectation."""
    lq, channel = policies(1), Channel(0.3)
    logits = policies(1, seed=3).requires_grad_()
    whole = ThroughChannel(channel)(TableDist(logits.log_softmax(-1), torch.zeros(1, dtype=torch.long)), table(lq))
    every = torch.arange(V)
    rows = table(lq.expand(V, V), **{"teacher.label": every})
    for loss, other in (
        (ThroughChannel(channel, "teacher.label"), whole),
        (CrossEntropy("teacher.label"), maths.forward_kl(logits.log_softmax(-1), lq)),
    ):
        each = loss(TableDist(logits.log_softmax(-1).expand(V, V), every), rows)
        (ours,) = torch.autograd.grad((lq[0].exp() * each).sum(), logits, retain_graph=True)
        (theirs,) = torch.autograd.grad(other.sum(), logits, retain_graph=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "build",
    [
        partial(nail, answer="label"),
        partial(nail, noise="teacher"),
        partial(nail, noise="teacher", answer="label"),
        partial(nail, rate=0.0),
        partial(nailgun, answer="label"),
    ],
)
def test_every_form_keeps_the_contract(build):
    assert len(list(check(build))) == 8


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Channel(1.0), "the noise rate: got 1.0, expected a number in [0, 1)"),
        (lambda: Channel(-0.1), "the noise rate"),
        (lambda: Channel(float("nan")), "the noise rate"),
        (lambda: Given((0.5, 0.4)), "sum to 1"),
        (lambda: Given((1.5, -0.5)), "sum to 1"),
        (lambda: Corrupted(((1.0, 0.0),)), "a square"),
        (lambda: Tempered(0.0), "above 0"),
        (
            lambda: Channel(0.5, Given((0.5, 0.5)))(policies(), table(policies())),
            "another action set: got noise over 2",
        ),
        (lambda: Channel(0.5, Corrupted(((1.0,),)))(policies(), table(policies())), "another action set"),
        (lambda: Channel(0.5, Tempered(2.0))(policies(), table(policies()[:, :3])), "another action set"),
    ],
)
def test_channels_that_cannot_be(make, sentence):
    with pytest.raises(SettingError, match=re.escape(sentence)):
        make()
