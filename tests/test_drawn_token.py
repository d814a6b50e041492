"""Self-distillation that reads the drawn token alone, as the codes of OPSD and SDPO can: on average a reverse KL."""

from functools import partial

import pytest
import torch

from opd import maths
from opd.contract import check
from opd.dist import TableDist
from opd.errors import OpdError
from opd.recipes import load
from opd.rows import Rows

V = 6


def draw(seed):
    return torch.randn(V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(name, z, lq, temperature=1.0, mu=None, **options):
    """The mean gradient in the logits of a method's loss on the token that was drawn from `mu` (None: the student).

    Every token is written once, and weighs as likely as it is to be drawn.
    """
    logits, token = z.clone().requires_grad_(), torch.arange(V)
    rows = Rows({
        "keep": torch.ones(V, dtype=torch.bool), "token": token, "teacher": TableDist(lq.expand(V, V), token),
        "teacher.chosen": lq, "behaviour": z.log_softmax(-1) if mu is None else mu,
    })  # fmt: skip
    weight = (z / temperature).softmax(-1) if mu is None else mu.exp()
    loss = load(name)(form="sampled", **options).terms["match"].loss
    values = loss(TableDist(logits.log_softmax(-1).expand(V, V), token), rows)
    return torch.autograd.grad((weight * values).sum(), logits)[0]


def reverse_kl_slope(z, lq):
    logits = z.clone().requires_grad_()
    return torch.autograd.grad(maths.reverse_kl(logits.log_softmax(-1)[None], lq[None]).sum(), logits)[0]


@pytest.mark.parametrize("temperature", [1.0, 1.1])
def test_opsd_on_the_drawn_token_is_on_average_the_reverse_kl_of_both_at_its_temperature(temperature):
    for seed in range(3):
        z, lq = draw(seed), draw(seed + 9).log_softmax(-1)
        exact = reverse_kl_slope(z / temperature, (lq / temperature).log_softmax(-1)) / temperature
        ours = drawn("opsd", z, lq, temperature, loss_temperature=temperature)
        assert exact.abs().max() > 1e-2 and torch.allclose(ours, exact, atol=1e-14)


def test_sdpo_on_the_drawn_token_is_on_average_the_reverse_kl_whoever_drew_it():
    z, lq, mu = draw(0), draw(1).log_softmax(-1), (draw(0) + 0.1 * draw(2)).log_softmax(-1)
    exact = reverse_kl_slope(z, lq)
    assert (z.log_softmax(-1) - mu).exp().max() < 2
    assert torch.allclose(drawn("sdpo", z, lq, mu=mu, alpha=1.0), exact, atol=1e-14)
    assert not torch.allclose(drawn("sdpo", z, lq, mu=mu, alpha=1.0, cap=1.0), exact, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [("opsd", {}), ("opsd", {"loss_temperature": 1.1, "mean": "token_mean"}), ("sdpo", {"alpha": 1.0})],
)
def test_the_drawn_token_asks_for_no_best_ones_and_keeps_the_contract(name, options):
    build = partial(load(name), form="sampled", **options)
    assert len(list(check(build))) == 8
    assert build().teach[0].want.chosen and not build().teach[0].want.topk
    assert build().teach[0].want.dist == ("loss_temperature" in options)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("opsd", {"beta": 1.0, "tau": 0.0}, "beta=1.0"),
        ("opsd", {"tau": 0.0}, "tau=0.0"),
        ("opsd", {"k": 50, "tau": 0.0}, "k=50"),
        ("sdpo", {}, "alpha=0.5"),
        ("sdpo", {"alpha": 1.0, "k": 50}, "k=50"),
    ],
)
def test_what_the_drawn_token_has_no_use_for_is_refused(name, given, words):
    with pytest.raises(OpdError, match=f"form=sampled.*{words}.*form=full"):
        load(name)(form="sampled", **given)
