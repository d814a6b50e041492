"""Local support against enumeration: every word of a small vocabulary once as the one that was written, in float64."""

from functools import partial

import pytest
import torch

from opd import maths
from opd.contract import check
from opd.dist import TableDist, TopDist
from opd.errors import OpdError
from opd.parts.means import sequence_mean, token_mean
from opd.parts.support_losses import OnSupport, SampledTail
from opd.protocols import Want
from opd.recipes.local_support import local_support
from opd.rows import Rows

V, K = 8, 3
VARIANTS = {
    1: {},
    2: {"source": "student", "sampled": True},
    3: {"sampled": True},
    4: {"source": "student", "outside": "published_sampled_tail"},
    5: {"outside": "published_sampled_tail"},
}
MENDED = [{"outside": "sampled_tail"}, {"source": "student", "outside": "sampled_tail"}]
OTHERS = [{"outside": "tail"}, {"outside": "tail", "sampled": True}, {"outside": "drop"}]
ALL = [*VARIANTS.values(), *MENDED, *OTHERS]


def drawn(seed, n=V):
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def world(logits, lq, mu, k=None):
    """One state with every word written once: the student, and rows with teacher (of K words or all) and sampler."""
    lp, token = logits.log_softmax(-1).expand(V, V), torch.arange(V)
    whole = TableDist(lq.expand(V, V), token)
    teacher = TopDist(whole.top(k), whole.at(whole.top(k)), token, whole.chosen) if k else whole
    columns = {"keep": torch.ones(V, dtype=torch.bool), "token": token, "behaviour": mu, "teacher": teacher}
    return TableDist(lp, token), Rows(columns)


def expected(loss, logits, lq, mu, k=None):
    """Value and gradient of a loss, on average over words drawn from mu."""
    student, rows = world(logits, lq, mu, k)
    mean = (mu.exp() * loss(student, rows)).sum()
    (slope,) = torch.autograd.grad(mean, logits)
    return mean.detach(), slope


def full(logits, lq):
    value = maths.reverse_kl(logits.log_softmax(-1)[None], lq[None]).sum()
    return value.detach(), torch.autograd.grad(value, logits)[0]


def states():
    for seed in range(3):
        yield drawn(seed).requires_grad_(), drawn(seed + 10).log_softmax(-1), drawn(seed + 20).log_softmax(-1)


def loss_of(options, k):
    return local_support(k=k, **options).terms["match"].loss


@pytest.mark.parametrize("options", ALL)
def test_the_whole_vocabulary_is_full_reverse_kl_in_value_and_gradient(options):
    for logits, lq, mu in states():
        value, slope = expected(loss_of(options, V), logits, lq, mu)
        exact, gradient = full(logits, lq)
        assert torch.allclose(value, exact, atol=1e-13, rtol=0)
        # without renormalising the gradient of the mass is still there, but the mass of everything is 1
        assert torch.allclose(slope, gradient, atol=1e-13, rtol=0)


@pytest.mark.parametrize("source", ["teacher", "student"])
@pytest.mark.parametrize("published", [False, True])
def test_a_sampled_tail_is_unbiased_but_for_what_the_published_form_adds(source, published):
    for logits, lq, mu in states():
        loss = SampledTail(K, source, published)
        value, slope = expected(loss, logits, lq, mu)
        exact, gradient = full(logits, lq)
        ids = (lq if source == "teacher" else logits.detach()).topk(K).indices
        (of_mass,) = torch.autograd.grad(logits.softmax(-1)[ids].sum(), logits)
        assert torch.allclose(value, exact, atol=1e-13, rtol=0)
        assert torch.allclose(slope - gradient, of_mass * published, atol=1e-13, rtol=0)
        assert of_mass.abs().max() > 1e-2, "the two forms can be told apart"


def test_a_cut_weight_is_counted_and_cuts_only_the_tail():
    logits, lq, mu = next(states())
    student, rows = world(logits, lq, mu)
    weight = (student.chosen.detach() - mu).exp()
    cap = float(weight.median())
    seen = local_support(k=K, outside="sampled_tail", cap=cap).observe[-1](student, rows)
    outside = ~torch.isin(rows["token"], lq.topk(K).indices)
    assert 0 < int(seen["tail.cut"].sum()) == int((outside & (weight > cap)).sum()) < int(outside.sum())
    same = SampledTail(K, cap=cap)(student, rows) == SampledTail(K)(student, rows)
    assert torch.equal(~same, seen["tail.cut"].bool())


def test_renormalised_the_pathwise_gradient_is_the_score_functions():
    score = partial(maths.reverse_kl, gradient="score")
    for logits, lq, mu in states():
        pathwise = expected(OnSupport(maths.reverse_kl, K), logits, lq, mu)[1]
        assert torch.allclose(pathwise, expected(OnSupport(score, K), logits, lq, mu)[1], atol=1e-14, rtol=0)
        dropped = [expected(OnSupport(d, K, outside="drop"), logits, lq, mu)[1] for d in (maths.reverse_kl, score)]
        assert (dropped[0] - dropped[1]).abs().max() > 1e-3


@pytest.mark.parametrize("source", ["teacher", "student"])
@pytest.mark.parametrize("sampled", [False, True])
def test_no_gradient_outside_a_renormalised_support(source, sampled):
    logits, lq, _ = next(states())
    logits = logits.detach()
    token, top = torch.arange(V), (lq if source == "teacher" else logits).topk(K).indices
    each = logits.expand(V, V).clone().requires_grad_()
    columns = {"token": token, "teacher": TableDist(lq.expand(V, V), token)}
    loss = OnSupport(maths.reverse_kl, K, source, sampled=sampled)(
        TableDist(each.log_softmax(-1), token), Rows(columns)
    )
    (slope,) = torch.autograd.grad(loss.sum(), each)
    inside = torch.isin(token, top).expand(V, V) | (torch.eye(V, dtype=torch.bool) if sampled else False)
    assert slope[~inside].abs().max() < 1e-15 < 1e-6 < slope[inside].abs().min()
    assert slope.sum(-1).abs().max() < 1e-15


def test_one_word():
    """Renormalised it is refused; with the written word it is one, unless that is the word; dropped it is a number."""
    logits, lq, mu = next(states())
    with pytest.raises(OpdError, match="always matched"):
        local_support(k=1)
    student, rows = world(logits, lq, mu)
    value = loss_of({"sampled": True}, 1)(student, rows)
    best = rows["token"] == lq.argmax()
    assert value[best].abs().max() == 0 < value[~best].min()
    for options in (*MENDED, *({"outside": outside} for outside in ("tail", "drop"))):
        assert loss_of(options, 1)(student, rows).isfinite().all()


@pytest.mark.parametrize("options", [o for o in ALL if o.get("source") != "student"])
def test_a_teacher_of_k_words_and_the_written_one_is_enough(options):
    """It holds nothing about other words, so whoever asks for one is an error."""
    logits, lq, mu = next(states())
    method = local_support(k=K, **options)
    more = bool(options.get("sampled")) or options.get("outside", "").endswith("sampled_tail")
    assert method.teach[0].want == Want(topk=K, chosen=more)
    loss = method.terms["match"].loss
    assert all(map(torch.equal, expected(loss, logits, lq, mu), expected(loss, logits, lq, mu, K)))


@pytest.mark.parametrize("options", ALL)
def test_every_variant_keeps_the_contract(options):
    assert len([what for what, _ in check(partial(local_support, k=K, **options))]) == 8


@pytest.mark.parametrize("mean", [token_mean, sequence_mean])
def test_a_masked_row_leaves_numerator_and_denominator(mean):
    sequence = torch.tensor([0, 0, 0, 1, 1])
    keep = torch.tensor([True, False, True, True, True])
    whole = Rows({"keep": keep, "sequence": sequence})
    without = Rows({"keep": keep[keep], "sequence": sequence[keep]})
    assert float(mean(whole)[1]) == 0
    assert torch.equal(mean(whole)[keep], mean(without))
