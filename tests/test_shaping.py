"""Verdicts shared out among tokens: written numbers, limits and identities of SC-GRPO, RLSD and RLCSD in float64."""

import math
from dataclasses import replace

import models
import pytest
import torch

from opd import maths, shaping
from opd.contract import distance, gradients, toy_cast, toy_groups
from opd.dist import TableDist
from opd.engines.hf import HFModel
from opd.errors import DataError, OpdError
from opd.lab.toy import ToyModel, problems
from opd.parts.contrasted import TowardsContrast
from opd.parts.credit import Shuffled
from opd.parts.fading import Fading
from opd.parts.groups import GroupAdvantage
from opd.parts.hints import ByRightAnswers, Reference, SiblingInSystem, labelled, labelled_as_right, labelled_if_marked
from opd.parts.losses import PolicyGradient
from opd.parts.magnitude import (
    Bounded,
    Contrast,
    Corrected,
    Dependence,
    Diversity,
    Evened,
    Saturating,
    Shifted,
    Weighted,
)
from opd.parts.means import token_mean
from opd.parts.observe import measured
from opd.parts.views import Sibling, told
from opd.recipes import load
from opd.rollout import Visit
from opd.rows import Rows
from opd.step import gradient, prepare
from opd.teachers.copies import Itself


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(a, b, atol=1e-14):
    return torch.allclose(a, b, rtol=0, atol=atol, equal_nan=True)


# ------------------------------------------------------------------------------------------ a method against plain GRPO


def credited(method, rewards=None, step=0):
    """The table of a batch on the toy, its student and sequences; `rewards` of every group's answers in turn."""
    cast = toy_cast(method)
    groups = toy_groups(method, cast)
    if rewards is not None:
        groups = [
            replace(g, rollouts=tuple(r.tagged(reward=float(x)) for r, x in zip(g.rollouts, rewards, strict=True)))
            for g in groups
        ]
    rows, sequences = prepare(groups, method, cast, step)
    return rows, cast["student"], sequences


def gradient_of(method, rewards=None, step=0):
    rows, student, sequences = credited(method, rewards, step)
    return gradients(method, student, rows, sequences)


def grpo(mean, **parameters):
    return load("grpo")(n=8, mean=mean, **parameters)


# -------------------------------------------------------------------------------------------------------------- RLSD


def test_rlsd_written_numbers():
    evidence = tensor(0.3, -0.3, 0.05)
    for sign, expected in ((1, (1.1, 0.9, 1.02564)), (-1, (-0.9, -1.1, -0.97561))):
        shaped, cut = shaping.bounded(torch.full_like(evidence, sign), evidence, 0.2, 0.5)
        assert shaped.tolist() == pytest.approx(expected, abs=5e-6)
        assert cut.tolist() == [True, True, False]


def test_rlsd_keeps_the_sign_and_stays_within_its_bounds():
    advantage, evidence = draw(1000), 5 * draw(1000, seed=1)
    for width, share in ((0.2, 0.5), (0.9, 1.0), (0.2, 0.0)):
        shaped, _ = shaping.bounded(advantage, evidence, width, share)
        ratio = shaped / advantage
        assert torch.equal(shaped.sign(), advantage.sign())
        assert float(ratio.min()) >= 1 - share * width - 1e-12 and float(ratio.max()) <= 1 + share * width + 1e-12


@pytest.mark.parametrize("limit", [{"lam": 0.0}, {"width": 0.0}, {"fade": 0}])
def test_rlsd_is_grpo_bit_for_bit_where_nothing_is_shared_out(limit):
    ours, plain = gradient_of(load("rlsd")(**limit)), gradient_of(grpo("sequence_mean"))
    assert distance(ours, plain) == 0
    assert distance(gradient_of(load("rlsd")()), plain) > 1e-6


def test_rlsd_is_grpo_after_its_last_step_and_has_the_full_share_in_the_first():
    method = load("rlsd")()
    shares = [method.credit.parts[-1].share(step) for step in (0, 1, 25, 50, 99)]
    assert shares == pytest.approx([0.5, 0.49, 0.25, 0, 0])
    assert distance(gradient_of(method, step=50), gradient_of(grpo("sequence_mean"))) == 0


def test_rlsd_with_a_copy_that_cannot_tell_is_grpo():
    """T = S: what is shown changes nothing, so no token gets more than another."""
    advantage = draw(5)
    assert torch.equal(shaping.bounded(advantage, torch.zeros(5).double(), 0.2, 0.5)[0], advantage)


@pytest.mark.parametrize("name", ["rlsd", "rlcsd"])
def test_a_group_of_equal_rewards_teaches_nothing(name):
    assert max(float(g.abs().max()) for g in gradient_of(load(name)(), rewards=[1.0] * 8).values()) == 0


def test_rlsd_mean_of_the_paper_is_per_answer_and_that_of_the_reimplementation_per_token():
    keep, sequence = torch.ones(4, dtype=torch.bool), torch.tensor([0, 1, 1, 1])
    rows = Rows({"keep": keep, "sequence": sequence})
    paper, code = (load("rlsd")(**more).terms["reward"].mean for more in ({}, {"mean": "token_mean"}))
    assert paper(rows).tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6]) and code(rows).tolist() == [0.25] * 4


def test_rlsd_theorem_1_matching_a_copy_that_knows_r_pays_the_information_about_r():
    """E_r KL(p(.|r) || q) = KL(E_r p(.|r) || q) + I(Y; R), whatever q: the gap is constant, the argmin the marginal."""
    weight, known = draw(4).log_softmax(-1), draw(4, 6, seed=1).log_softmax(-1)
    marginal = (weight[:, None] + known).logsumexp(0)
    information = (weight.exp() * maths.forward_kl(marginal.expand(4, 6), known)).sum()
    for seed in range(3):
        q = draw(6, seed=seed + 2).log_softmax(-1)
        cost = (weight.exp() * maths.forward_kl(q.expand(4, 6), known)).sum()
        assert same(cost, maths.forward_kl(q[None], marginal[None])[0] + information)
    assert information > 0.01


def test_rlsd_leaks_nothing_that_was_not_written_where_matching_does():
    """A token that only the copy would write: matching raises its log-prob, shaping a verdict has no gradient there.

    Theorem 4's factor is a Bayes update: exp(Delta) = P(r | x, y_<=t) / P(r | x, y_<t).
    """
    prior, known = tensor(0.3, 0.7), tensor([0.2, 0.2, 0.6], [0.5, 0.4, 0.1])  # p(y | r); token 2 speaks for r = 0
    marginal = prior @ known
    posterior = prior[:, None] * known / marginal
    assert same((known / marginal)[0], posterior[0] / prior[0])
    logits = marginal.log().requires_grad_()
    matching = maths.forward_kl(logits.log_softmax(-1)[None], known[0].log()[None]).sum()
    assert torch.autograd.grad(matching, logits)[0][2] < -0.1  # descent raises the token of r
    shaped, _ = shaping.bounded(tensor(1.0), (known[0].log() - marginal.log())[:1], 0.2, 0.5)
    rows = Rows({"keep": tensor(1).bool(), "behaviour": marginal.log()[:1], "advantage": shaped})
    student = TableDist(logits.log_softmax(-1)[None], torch.tensor([0]))
    gradient = torch.autograd.grad(PolicyGradient()(student, rows).sum(), logits)[0]
    assert gradient[2] > 0 and gradient[1] / gradient[2] == pytest.approx(float(marginal[1] / marginal[2]))


def chain_world(decisive, fillers=15):
    """Evidence of sixteen tokens of which one decides, and the style of the others that every hint changes alike."""
    return torch.cat([tensor(decisive), 0.02 * draw(fillers)])


def test_rlsd_concentrates_credit_on_the_token_that_decides():
    for sign in (1.0, -1.0):
        shaped, _ = shaping.bounded(torch.full((16,), sign).double(), sign * chain_world(2.0), 0.2, 0.5)
        assert int(shaped.abs().argmax()) == 0 and shaped.abs()[0] > shaped.abs()[1:].mean() * 1.08


# -------------------------------------------------------------------------------------------------------------- RLCSD


def hinted(right, wrong, advantage, **more):
    """A table of one answer whose tokens were read under a right hint and under wrong ones [K][N]."""
    n = len(right)
    columns = {"keep": torch.ones(n, dtype=torch.bool), "advantage": torch.full((n,), advantage).double()}
    columns |= {"teacher.chosen": tensor(*right), "untruncated": torch.zeros(n).double()}
    columns |= {f"wrong.{k}.chosen": tensor(*values) for k, values in enumerate(wrong)}
    return Rows(columns | more)


def loss_of(rows, eta=1.0):
    """L_plain + eta L_selected at ratio 1."""
    total = 0.0
    for name, scale in (("plain", 1.0), ("selected", eta)):
        marked = rows.plus(keep=rows[name])
        total += scale * float((token_mean(marked) * -rows["advantage"]).sum())
    return total


def test_rlcsd_written_numbers():
    rows = hinted((-0.5, -1.0, -2.0), [(-0.5, -1.5, -1.0), (-0.5, -0.9, -3.0)], 0.3)
    rows = Contrast(2)(rows)
    assert rows["contrast"].tolist() == pytest.approx([0, 0.15566, -0.43378], abs=5e-6)
    rows = Shifted(0.5, 0.02, 0.02)(rows)
    assert rows["advantage"].tolist() == pytest.approx([0.3, 0.8, 0.0], abs=1e-6)
    assert rows["plain"].tolist() == [True, False, False] and rows["selected"].tolist() == [False, True, True]
    assert rows["contrast.stopped"].tolist() == [0, 0, 1]
    for eta in (1.0, 0.5):
        assert loss_of(rows, eta) == pytest.approx(-0.3 - eta * 0.4, abs=1e-6)


def test_rlcsd_wrong_hints_are_mixed_as_probabilities_and_absent_ones_do_not_count():
    right, wrong = draw(5), draw(5, 3, seed=1)
    exact = right - wrong.exp().mean(-1).log()
    assert same(shaping.contrast(right, wrong), exact)
    assert not same(shaping.contrast(right, wrong), right - wrong.mean(-1), 1e-2)  # the mean of log-probs is another
    absent = torch.cat([wrong, torch.full((5, 1), torch.nan).double()], -1)
    assert same(shaping.contrast(right, absent), exact)
    assert shaping.contrast(right, torch.full((5, 2), torch.nan).double()).isnan().all()


def test_rlcsd_never_turns_a_verdict_around():
    advantage, evidence = draw(1000), draw(1000, seed=1)
    advantage[::10] = 0
    shaped, _ = shaping.shifted(advantage, evidence, 3.0, 0.5)
    assert bool((shaped * advantage >= 0).all()) and bool((shaped[::10] == 0).all())
    plain = torch.where(advantage > 0, (advantage + 3 * (evidence / 0.5).tanh()).clamp(min=0), shaped)
    assert torch.equal(shaped, plain)


def grpo_of_the_rows(rows, student, sequences, mean="token_mean"):
    """GRPO's gradient on the rows that a method kept."""
    method = grpo(mean)
    return gradients(method, student, GroupAdvantage()(rows), sequences)


@pytest.mark.parametrize("limit", [{"lam": 0.0}, {"delta": 10.0}])
def test_rlcsd_is_grpo_where_nothing_is_selected(limit):
    method = load("rlcsd")(cap=0.0, **limit)
    rows, student, sequences = credited(method)
    assert rows["plain"].all()
    assert distance(gradients(method, student, rows, sequences), grpo_of_the_rows(rows, student, sequences)) == 0
    other = load("rlcsd")(cap=0.0)
    assert distance(gradient_of(other), grpo_of_the_rows(rows, student, sequences)) > 1e-6


def test_rlcsd_is_grpo_where_right_and_wrong_hints_say_the_same():
    rows = Shifted(0.5, 0.02, 0.02)(Contrast(2)(hinted((-0.5, -1.0), [(-0.5, -1.0)] * 2, 0.3)))
    assert rows["contrast"].tolist() == pytest.approx([0, 0]) and rows["plain"].all()
    assert loss_of(rows) == pytest.approx(-0.3)


def test_what_every_hint_does_alike_cancels_in_rlcsd_and_stays_in_rlsd():
    """Style: any hint makes the token 'terse' likelier, right or wrong, whatever is written."""
    right, wrong, style = draw(6), draw(2, 6, seed=1), 2 * draw(6, seed=2)
    shape = lambda shift: Shifted(0.5, 0.5, 0.02)(Contrast(2)(hinted(right + shift, wrong + shift, 0.3)))["advantage"]
    assert same(shape(0 * style), shape(style))
    one_sided = lambda shift: shaping.bounded(torch.full((6,), 0.3).double(), right + shift, 0.2, 0.5)[0]
    assert not same(one_sided(0 * style), one_sided(style), 1e-3)


def test_style_that_any_hint_brings_shortens_rlsd_and_leaves_rlcsd_alone():
    """The expected gradient of a policy that writes a style token (terse, verbose) and a task token (right, wrong).

    A hint of either kind makes it terse (+1.5); only the right one makes the right task token likelier.
    """
    pairs = torch.tensor([(style, task) for style in range(2) for task in range(2)])
    reward = (pairs[:, 1] == 0).double()
    logits = torch.zeros(2, 2, dtype=torch.float64)  # [token, choice]: both coins are fair
    told = lambda task: torch.stack([tensor(1.5, 0.0), tensor(task, 0.0)]).log_softmax(-1)
    right, wrong, own = told(1.0), told(-1.0), logits.log_softmax(-1)
    advantage = torch.where(reward > 0, 1.0, -1.0).double()
    pick = lambda table: table[torch.arange(2), pairs]  # [answer, token] log-probs

    def push(shaped):
        """[token] how the log-odds of choice 0 move, on average over the four equally likely answers."""
        score = torch.where(pairs == 0, 0.5, -0.5)
        return (shaped * score).mean(0)

    each = advantage[:, None].expand(4, 2)
    rlsd = push(shaping.bounded(each, pick(right) - pick(own), 0.2, 0.5)[0])
    contrast = shaping.contrast(pick(right).flatten(), pick(wrong).flatten()[:, None]).view(4, 2)
    rlcsd = push(shaping.shifted(each, contrast, 0.5, 0.02)[0])
    plain = push(each)
    assert plain.tolist() == [0, 0.5]
    assert abs(float(rlcsd[0])) < 1e-12 < 0.01 < float(rlsd[0])  # style: only the one-sided hint makes it terse
    assert rlcsd[1] > 0.4


def test_rlcsd_drops_what_lacks_a_hint_and_counts_it():
    rows, _, _ = credited(load("rlcsd")(), rewards=[1, 0, 0, 0, 0, 0, 0, 0])
    first = torch.tensor([int(s) % 8 == 0 for s in rows["sequence"]])  # the only right answer of its group
    assert torch.equal(rows["masked.hint"], first) and torch.equal(rows["keep"], ~first)
    trivial, _, _ = credited(load("rlcsd")(), rewards=[0.0] * 8)
    assert trivial["masked.trivial"].all() and not trivial["masked.hint"].any() and not trivial["keep"].any()
    reference, _, _ = credited(load("rlcsd")(hint="reference"), rewards=[1, 0, 0, 0, 0, 0, 0, 0])
    assert reference["keep"].all() and not reference["masked.hint"].any()
    for name in ("rlcsd", "rlsd_ectr"):  # the released code would count these tokens in its means
        failed, _, _ = credited(load(name)(hint="reference"), rewards=[0.0] * 8)
        assert failed["masked.trivial"].all() and not failed["keep"].any()


def test_rlcsd_with_marked_answers_only_differs_from_the_default():
    """The toy's answers have no box: the released rule leaves none of them to learn from."""
    assert credited(load("rlcsd")())[0]["keep"].all()
    assert not credited(load("rlcsd")(marked=True))[0]["keep"].any()


def test_rlcsd_of_a_later_version_has_another_gradient_in_each_of_its_settings():
    """tau 1.3, eta .5 and a mean per answer, as a re-implementer took them, against the released defaults."""
    settings = {"tau": 1.3, "eta": 0.5, "mean": "sequence_mean"}
    tried = [{}, *({name: value} for name, value in settings.items()), settings]
    slopes = [gradient_of(load("rlcsd")(**given)) for given in tried]
    assert min(distance(one, other) for i, one in enumerate(slopes) for other in slopes[:i]) > 1e-3
    rows, student, sequences = credited(load("rlcsd")())
    parts = [rows.plus(keep=rows[name]) for name in ("plain", "selected")]
    plain, selected = (gradients(grpo("token_mean"), student, part, sequences) for part in parts)
    assert distance(slopes[2], {name: plain[name] + 0.5 * selected[name] for name in plain}) < 1e-12


def test_a_right_hint_need_not_mark_its_answer_and_is_labelled_with_the_problems():
    """Two right answers without a box and two wrong ones with one: the released code learns from all four."""
    method = load("rlcsd")(n=4, marked=True)
    cast, group = one_group([1.0, 1.0, 0.0, 0.0], method)
    texts = ("it must be so", "just so", r"\boxed{3}", r"\boxed{4}")
    rollouts = tuple(replace(one, text=text) for one, text in zip(group.rollouts, texts, strict=True))
    group = replace(group, rollouts=rollouts)
    assert prepare([group], method, cast, 0)[0]["keep"].all()
    right, *wrong = (words(ask.view, rollouts[0], group) for ask in method.teach)
    assert f"just so\nCorrect final answer: {group.problem.answer}\n" in right[-1]["content"]
    assert {text[-1]["content"].partition("Correct final answer: ")[2][0] for text in wrong if text} == {"3", "4"}
    unmarked = (replace(one, text=text[-2]) for one, text in zip(rollouts, texts, strict=True))
    assert not prepare([replace(group, rollouts=tuple(unmarked))], method, cast, 0)[0]["keep"].any()
    boxed = replace(rollouts[1], text=r"so \boxed{two}")
    assert labelled_as_right(boxed).endswith("Correct final answer: two")
    nobody_knows = replace(boxed, text="so it is\ntwo", problem=replace(group.problem, answer=None))
    assert labelled_as_right(nobody_knows).endswith("Correct final answer: two")


def test_rlcsd_has_two_means_each_over_its_own_tokens():
    method = load("rlcsd")(delta=0.4)
    rows, _, _ = credited(method)
    assert 0 < int(rows["selected"].sum()) < int(rows["keep"].sum())
    assert torch.equal(rows["selected"] | rows["plain"], rows["keep"]) and not (rows["selected"] & rows["plain"]).any()
    for term in method.terms.values():
        assert float(term.mean(rows.plus(keep=rows[term.rows])).sum()) == pytest.approx(1)


def test_the_importance_weight_is_capped_and_counted():
    columns = {"keep": torch.ones(3, dtype=torch.bool), "advantage": tensor(1.0, -1.0, 1.0)}
    columns |= {"untruncated": tensor(-1.0, -1.0, -1.0), "behaviour": tensor(-0.5, -1.0, -3.0)}
    rows = Corrected(2.0)(Rows(columns))
    assert rows["advantage"].tolist() == pytest.approx([math.exp(-0.5), -1.0, 2.0])
    assert rows["importance.cut"].tolist() == [0, 0, 1]
    assert Corrected(0.0)(Rows(columns))["advantage"].tolist() == [1, -1, 1]


# ---------------------------------------------------------------------------------------------------- RLCSD's plug-ins


def test_rlsd_with_contrast_is_grpo_without_its_factor_and_ignores_style():
    rows, student, sequences = credited(load("rlsd_ectr")(lam=0.0))
    plain = grpo_of_the_rows(rows, student, sequences)
    assert distance(gradients(load("rlsd_ectr")(), student, rows, sequences), plain) == 0
    shaped, student, sequences = credited(load("rlsd_ectr")())
    assert distance(gradients(load("rlsd_ectr")(), student, shaped, sequences), plain) > 1e-6
    right, wrong, style = draw(6), draw(2, 6, seed=1), 2 * draw(6, seed=2)
    bounded = Bounded("contrast", 0.2, Fading(0.5, 50))
    shape = lambda shift: bounded(Contrast(2)(hinted(right + shift, wrong + shift, 0.3)))["advantage"]
    assert same(shape(0 * style), shape(style))


def test_the_contrastive_target_is_the_right_hint_turned_away_from_wrong_ones():
    right, wrong = draw(4, 6).log_softmax(-1), draw(4, 6, seed=1).log_softmax(-1)
    assert same(shaping.sharpened(right, wrong, 0.0, -5.0), right)
    assert same(shaping.sharpened(right, right, 0.5, -100.0), right)
    tilted = right.exp() * (right - wrong).exp() ** 0.5
    assert same(shaping.sharpened(right, wrong, 0.5, -100.0).exp(), tilted / tilted.sum(-1, keepdim=True))
    never = wrong.clone()
    never[:, 0] = -1000.0  # without a floor a token that no wrong hint allows takes all
    assert bool((shaping.sharpened(right, never, 0.5, -1e9)[:, 0] > -1e-12).all())
    assert bool((shaping.sharpened(right, never, 0.5, -5.0)[:, 0] < -1e-3).all())


def test_the_clipped_divergence_cuts_single_tokens_and_can_point_away_from_the_target():
    lp, lq = tensor([0.7, 0.2, 0.1]).log(), tensor([0.5, 0.2, 0.3]).log()
    assert float(maths.clipped_forward_kl(lp, lq, 0.05)) == pytest.approx(0.5 * math.log(0.5 / 0.7) + 0.05)
    assert maths.clipped_words(lp, lq, 0.05).tolist() == [[False, False, True]]
    assert not maths.clipped_words(lp, lq, math.inf).any()
    logits = lp[0].clone().requires_grad_()
    value = lambda most: maths.clipped_forward_kl(logits.log_softmax(-1)[None], lq, most).sum()
    assert torch.autograd.grad(value(math.inf), logits)[0][2] < 0 < torch.autograd.grad(value(0.05), logits)[0][2]


@pytest.mark.parametrize("most", [0.05, math.inf])
def test_the_clipped_divergence_is_bit_for_bit_what_its_formula_says(most):
    lq, weight = draw(40, 9, seed=1).float().log_softmax(-1), draw(40).float()
    logits = draw(40, 9).float().requires_grad_()
    lp = logits.log_softmax(-1)
    entries = lq.exp() * (lq - lp)
    cut = entries > most
    plain, ours = torch.where(cut, most, entries).sum(-1), maths.clipped_forward_kl(lp, lq, most)
    assert torch.equal(ours, plain) and torch.equal(maths.clipped_words(lp, lq, most), cut)
    assert cut.any() == (most < 1), "both cases are met"
    slopes = [torch.autograd.grad((weight * x).sum(), logits, retain_graph=True)[0] for x in (ours, plain)]
    assert torch.equal(*slopes)


def contrasted(k, wrong):
    """A table of six rows over five tokens: the student, the k best tokens under the right hint, two wrong hints."""
    student, right = draw(6, 5).log_softmax(-1), draw(6, 5, seed=1).log_softmax(-1)
    token = torch.zeros(6, dtype=torch.long)
    ids = right.topk(k).indices
    columns = {"keep": torch.ones(6, dtype=torch.bool), "teacher": TableDist(right, token), "teacher.ids": ids}
    columns |= {f"wrong.{n}.gathered": table.gather(-1, ids) for n, table in enumerate(wrong)}
    return student, right, TableDist(student, token), Rows(columns)


def test_opsd_with_contrast_is_weighted_forward_kl_on_the_whole_vocabulary():
    wrong = draw(2, 6, 5, seed=2).log_softmax(-1)
    student, right, dist, rows = contrasted(5, wrong)
    mixed = wrong.exp().mean(0).log()
    distance = maths.forward_kl(mixed, right)
    exact = distance / (distance + 1) * maths.forward_kl(student, right)
    assert same(TowardsContrast(2, strength=0.0, most=0.0)(dist, rows), exact, 1e-12)
    assert not same(TowardsContrast(2, most=0.0)(dist, rows), exact, 1e-3)
    assert not same(TowardsContrast(2, strength=0.0)(dist, rows), exact, 1e-3)  # the released bound is another loss


def test_opsd_with_contrast_learns_nothing_where_right_and_wrong_hints_say_the_same():
    right = draw(6, 5, seed=1).log_softmax(-1)
    for k in (2, 5):
        _, _, dist, rows = contrasted(k, [right, right])
        loss = TowardsContrast(2)
        assert float(loss(dist, rows).abs().max()) < 1e-14
        assert float(loss.cut(dist, rows)["contrast.weight"].max()) < 1e-14


def test_a_rest_that_is_rounding_is_never_nothing():
    """Where the student's support holds all its mass and another reader's does not, the loss stays finite."""
    lp = tensor([0.5, 0.5], [0.5, 0.25], [0.6, 0.4 + 1e-16]).log()
    rest = shaping.with_rest(lp)[:, -1].exp()
    assert rest.tolist() == pytest.approx([4 * 2**0.5 * 2**-52, 0.25, 4 * 2**0.5 * 2**-52])


def test_opsd_with_contrast_keeps_only_what_has_both_hints():
    rows, _, _ = credited(load("opsd_ectr")(k=3), rewards=[1, 0, 0, 0, 0, 0, 0, 0])
    assert torch.equal(rows["keep"], ~rows["masked.hint"]) and int(rows["masked.hint"].sum()) > 0


@pytest.mark.parametrize("rewards", [[0] * 8, [1] * 8, [1, 0], [0, 0]])
def test_opsd_with_contrast_learns_nothing_and_says_so_where_nobody_is_shown_a_hint_of_some_kind(rewards):
    """All answers are right or all wrong, or siblings are fewer than wrong hints: some ask shows nobody anything."""
    method = load("opsd_ectr")(k=3, n=len(rewards))
    rows, student, sequences = credited(method, rewards)
    assert rows["masked.hint"].all() and not rows["keep"].any()
    assert not any(float(g.abs().max()) for g in gradients(method, student, rows, sequences).values())


@pytest.mark.parametrize("rewards", [[1, 1, 0, 0], [1, 0, 0]])
def test_opsd_with_contrast_does_with_fewer_siblings_than_wrong_hints(rewards):
    rows, student, sequences = credited(load("opsd_ectr")(k=3, wrong=4, n=len(rewards)), rewards)
    assert not rows["wrong.3.shown"].any() and rows["wrong.3.gathered"].isnan().all() and rows["keep"].any()
    found = gradients(load("opsd_ectr")(k=3, wrong=4), student, rows, sequences)
    assert 0 < max(float(g.abs().max()) for g in found.values()) < math.inf


# ------------------------------------------------------------------------------------------------------------- SC-GRPO


def test_sc_grpo_weight_tends_to_grpo_as_c_falls_to_0():
    method = lambda **more: load("sc_grpo")(n=8, **more)
    plain = gradient_of(grpo("sequence_mean"))
    gaps = [distance(gradient_of(method(percentile=0.0, least=least)), plain) for least in (1e-2, 1e-9)]
    assert gaps[1] > 1e-4  # the least D of the batch is c: still a weight of one half there
    rows, student, sequences = credited(method())
    tiny = shaping.saturating(rows["hint.kl"], torch.full_like(rows["hint.kl"], 1e-13))
    weighted = Weighted("w")(GroupAdvantage()(rows).plus(w=tiny))
    assert distance(gradients(grpo("sequence_mean"), student, weighted, sequences), plain) < 1e-9


def test_sc_grpo_with_equal_weights_is_a_multiple_of_grpo():
    method = load("sc_grpo")(weights="mean")
    rows, student, sequences = credited(method)
    known = rows["hint.weight"]
    ours, plain = gradients(method, student, rows, sequences), gradient_of(grpo("sequence_mean"))
    assert float(known.std()) < 1e-14 and 0.1 < float(known[0]) < 0.9
    assert distance(ours, {name: known[0] * g for name, g in plain.items()}) < 1e-14


def test_sc_grpo_controls_keep_the_weights_and_lose_their_places():
    own = credited(load("sc_grpo")())[0]["hint.weight"]
    shuffled = credited(load("sc_grpo")(weights="shuffled"))[0]["hint.weight"]
    mean = credited(load("sc_grpo")(weights="mean"))[0]["hint.weight"]
    assert torch.equal(own.sort().values, shuffled.sort().values) and not torch.equal(own, shuffled)
    assert float(mean[0]) == pytest.approx(float(own.mean()))
    both = {name: gradient_of(load("sc_grpo")(weights=name)) for name in ("own", "mean", "shuffled")}
    assert all(distance(both["own"], both[name]) > 1e-6 for name in ("mean", "shuffled"))


def test_controls_leave_rows_without_a_hint_alone():
    weight = tensor(0.2, torch.nan, 0.6, 0.9)
    rows = Rows({"keep": torch.tensor([True, True, True, False]), "w": weight, "advantage": tensor(1, 2, 3, 4)})
    rows = rows.plus(**{name: tensor(0, 1, 2, 3).long() for name in ("token", "position", "row")}, untruncated=weight)
    assert same(Evened("w")(rows)["w"], tensor(0.4, torch.nan, 0.4, 0.9))
    assert Shuffled("w")(rows)["w"].isnan().tolist() == [False, True, False, False]
    assert Weighted("w")(rows)["advantage"].tolist() == pytest.approx([0.2, 2, 1.8, 3.6])


def test_sc_grpo_without_an_effect_of_the_hint_has_no_gradient_and_says_so():
    """The trap: a model that cannot read its own solutions has D = 0 and learns nothing in partial groups."""
    method = load("sc_grpo")()
    cast = {"student": ToyModel(seed=1), "teacher": ToyModel(seed=1)}
    deaf = tuple(replace(ask, view=lambda rollout, group: [rollout]) for ask in method.teach)
    rows, sequences = prepare(toy_groups(method, cast), replace(method, teach=deaf), cast, 0)
    assert float(rows["hint.weight"].max()) < 1e-10 and float(rows["hint.faint"].min()) == 1
    assert max(float(g.abs().max()) for g in gradients(method, cast["student"], rows, sequences).values()) < 1e-10


def test_sc_grpo_as_a_loss_would_aim_at_a_mean_of_solutions():
    """Per prefix: forward KL is least at the arithmetic mean and splits into disagreement + KL(mean || q); reverse KL
    is least at the normalised geometric mean."""
    solutions = draw(3, 5).log_softmax(-1)
    arithmetic = solutions.exp().mean(0).log()
    geometric = solutions.mean(0).log_softmax(-1)
    forward = lambda q: maths.forward_kl(q.expand(3, 5), solutions).mean()
    reverse = lambda q: maths.reverse_kl(q.expand(3, 5), solutions).mean()
    disagreement = maths.forward_kl(arithmetic.expand(3, 5), solutions).mean()
    for seed in range(4):
        q = draw(5, seed=seed + 1).log_softmax(-1)
        assert same(forward(q), disagreement + maths.forward_kl(q[None], arithmetic[None])[0])
        assert forward(q) > forward(arithmetic) and reverse(q) > reverse(geometric)
    assert forward(geometric) > forward(arithmetic) and reverse(arithmetic) > reverse(geometric)


def test_sc_grpo_weight_never_turns_a_verdict_around():
    rows, _, _ = credited(load("sc_grpo")())
    plain = GroupAdvantage()(rows)["advantage"]
    weight = rows["hint.weight"]
    assert bool(((weight >= 0) & (weight < 1)).all()) and bool((rows["advantage"] * plain >= 0).all())
    assert float(shaping.saturating(tensor(-1e-17), tensor(1e-4))) == 0


def test_half_of_the_weight_is_at_the_percentile_of_the_scope():
    kl, sequence = tensor(0, 1, 2, 3, 40, 50, 60, 70), torch.arange(4).repeat_interleave(2)
    rows = Rows({"hint.kl": kl, "sequence": sequence, "keep": torch.ones(8, dtype=torch.bool)})
    whole, small = Saturating(75.0)(rows), Saturating(75.0, micro=2)(rows)
    c = 52.5  # linear between the sixth and the seventh of eight
    assert same(whole["hint.weight"], kl / (kl + c))
    assert same(small["hint.weight"], kl / (kl + tensor(2.25, 62.5).repeat_interleave(4)))
    assert whole["hint.faint"].tolist() == [1] + [0] * 7
    unknown = rows.plus(**{"hint.kl": torch.full_like(kl, torch.nan)})
    assert Saturating()(unknown)["hint.weight"].isnan().all()


def test_the_percentile_of_a_micro_batch_differs_from_that_of_the_batch():
    batch, micro = gradient_of(load("sc_grpo")()), gradient_of(load("sc_grpo")(micro=8))
    assert distance(batch, micro) > 1e-6


def test_dependence_is_the_forward_kl_where_a_hint_was_shown_in_any_number_of_chunks(monkeypatch):
    ours, theirs = draw(9, 5).log_softmax(-1), draw(9, 5, seed=1).log_softmax(-1)
    token, shown = torch.zeros(9, dtype=torch.long), torch.arange(9) % 3 > 0
    keep = torch.arange(9) != 8
    columns = {"own": TableDist(ours, token), "teacher": TableDist(theirs, token), "teacher.shown": shown, "keep": keep}
    rows = Rows(columns | {"untruncated": ours[:, 0]})
    exact = torch.where(shown & keep, (theirs.exp() * (theirs - ours)).sum(-1), torch.nan)
    for chunk in (1, 4, 512):
        monkeypatch.setattr("opd.parts.credit.MEASURED", chunk)
        assert same(Dependence()(rows)["hint.kl"], exact)


# ---- routing by the number of right answers


def one_group(rewards, method=None):
    method = method or load("sc_grpo")(n=len(rewards))
    cast = toy_cast(method)
    (group,) = method.sample(cast, [Visit(problems(1)[0], 0, 5)], 0)
    rollouts = tuple(
        replace(one.tagged(reward=reward), text=str(number))
        for number, (one, reward) in enumerate(zip(group.rollouts, rewards, strict=True))
    )
    return cast, replace(group, rollouts=rollouts)


def words(view, rollout, group):
    """The messages that a view would have the reader read."""
    seen = []
    view(rollout, replace(group, render=lambda messages: seen.append(messages) or group.render(messages)))
    return seen[0] if seen else None


@pytest.mark.parametrize(("rewards", "shown"), [((1, 1, 0, 0), 4), ((1, 0, 0, 0), 0), ((1,) * 4, 0), ((0,) * 4, 3)])
def test_sc_grpo_shows_a_solution_by_how_many_there_are(rewards, shown):
    method = load("sc_grpo")(n=4)
    cast, group = one_group([float(r) for r in rewards], method)
    rows, _ = prepare([group], method, cast, 0)
    first = {int(s): i for i, s in reversed(list(enumerate(rows["sequence"].tolist())))}
    assert sum(bool(rows["teacher.shown"][i]) for i in first.values()) == shown
    plain = GroupAdvantage()(rows)["advantage"]
    if not shown:
        assert torch.equal(rows["advantage"], plain) and rows["keep"].all() and rows["hint.weight"].isnan().all()
    assert ("masked.reference" in rows) and int(rows["masked.reference"].sum()) == (sum(rewards) == 0) * int(
        (~rows["teacher.shown"]).sum()
    )


def test_where_none_is_right_all_are_shown_the_same_failure_but_itself():
    _, group = one_group([0.0] * 5)
    view = ByRightAnswers(none=SiblingInSystem("tried: {context}", "wrong", shared=True))
    told = [words(view, rollout, group) for rollout in group.rollouts]
    assert told.count(None) == 1
    reference = str(told.index(None))
    assert {m[0]["content"] for m in told if m} == {f"tried: {reference}"}
    assert all(m[0]["role"] == "system" and m[1:] == group.problem.messages for m in told if m)


def test_a_system_message_that_is_there_goes_on():
    _, group = one_group([1.0, 1.0, 0.0])
    problem = replace(group.problem, prompt=({"role": "system", "content": "Be brief."}, *group.problem.messages))
    group = replace(group, problem=problem)
    rollouts = tuple(replace(one, problem=problem) for one in group.rollouts)
    seen = words(SiblingInSystem("see {context}"), rollouts[2], replace(group, rollouts=rollouts))
    assert seen[0]["content"] in ("Be brief.\n\nsee 0", "Be brief.\n\nsee 1") and len(seen) == 2


def test_sc_grpo_written_numbers_where_none_is_right():
    """Three failures; the first is the reference, two rows long, so that only two rows of the others are compared."""
    length = [2, 3, 1]
    sequence = torch.tensor([s for s, n in enumerate(length) for _ in range(n)])
    columns = {
        "sequence": sequence,
        "group": torch.zeros_like(sequence),
        "row": torch.tensor([t for n in length for t in range(n)]),
        "length": torch.tensor(length)[sequence],
        "reward": torch.zeros(len(sequence)).double(),
        "advantage": torch.zeros(len(sequence)).double(),
        "keep": torch.ones(len(sequence), dtype=torch.bool),
        "teacher.shown": sequence > 0,
        "teacher.unfit": sequence < 0,
        "hint.weight": tensor(torch.nan, torch.nan, 0.2, 0.4, 0.9, 0.7),
    }
    rows = Diversity(0.1)(Rows(columns))  # scores 0.3 and 0.7: standardised -+ 1 / sqrt 2
    expected = 0.1 / math.sqrt(2)
    assert rows["advantage"].tolist() == pytest.approx([0, 0, -expected, -expected, -expected, expected])
    assert rows["keep"].tolist() == [False, False, True, True, True, True]
    assert rows["masked.reference"].tolist() == [True, True, False, False, False, False]


def shorter(rollout, by):
    columns = {name: column[:-by] for name, column in rollout.columns.items()}
    return replace(rollout, tokens=rollout.tokens[:-by], author=rollout.author[:-by], columns=columns)


@pytest.mark.parametrize("rewards", [(0, 0, 0, 0, 0), (1, 1, 1, 0, 0)])
def test_sc_grpo_leaves_out_an_answer_whose_hint_does_not_fit(rewards):
    """It is no reference, although it was shown nothing."""
    method = load("sc_grpo")(n=5)
    cast, group = one_group([float(r) for r in rewards], method)
    first, long, *others = group.rollouts
    group = replace(group, rollouts=(shorter(first, 1), long, *(shorter(one, 1) for one in others)))
    shown = [len(context.tokens) for one in group.rollouts for context in method.teach[0].view(one, group)]
    rows, _ = prepare([group], method, cast, 0)
    cast["teacher"].context = max(shown) - 1
    less, _ = prepare([group], method, cast, 0)
    unfit = less["teacher.unfit"]
    assert unfit.any() and not rows["teacher.unfit"].any() and (rows["teacher.shown"] & ~unfit).any()
    assert torch.equal(less["masked.hint"], unfit) and torch.equal(less["keep"], rows["keep"] & ~unfit)
    assert torch.equal(less["masked.reference"], rows["masked.reference"])
    assert less["advantage"][less["keep"]].isfinite().all() and less["advantage"][less["keep"]].any()


@pytest.mark.parametrize("name", ["rlcsd", "rlsd_ectr", "opsd_ectr"])
def test_a_hint_that_leaves_the_copy_no_room_is_none(name):
    """A real model of short context: right answers are short, and wrong ones so long that they hardly fit as hints."""
    short = HFModel(models.build(context=640), models.tokenizer(chat=True), "short", max_new=150)
    method = load(name)(n=6, wrong=1, **({"k": 5} if name == "opsd_ectr" else {}))
    cast = {"student": short, "teacher": Itself(short)}
    (group,) = method.sample(cast, [Visit(problems(1)[0], 0, 1)], 0)
    group = replace(group, rollouts=tuple(r.tagged(reward=float(i < 3)) for i, r in enumerate(group.rollouts)))
    rows, _ = prepare([group], method, cast, 0)
    wrong = torch.tensor([group.rollouts[s].tags["reward"] == 0 for s in rows["sequence"].tolist()])
    assert torch.equal(rows["wrong.0.unfit"], wrong) and not rows["teacher.unfit"].any()
    assert torch.equal(rows["masked.hint"], wrong) and torch.equal(rows["keep"], ~wrong)


def test_sc_grpo_learns_from_failures_alone_and_alpha_0_does_not():
    some, none = (gradient_of(load("sc_grpo")(alpha=alpha), rewards=[0.0] * 8) for alpha in (0.1, 0.0))
    size = lambda gradient: max(float(g.abs().max()) for g in gradient.values())
    assert size(some) > 1e-6 and size(none) == 0


def test_sc_grpo_does_not_depend_on_the_order_of_a_micro_scopes_rows():
    rows, _, _ = credited(load("sc_grpo")(micro=3))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    again = Saturating(micro=3)(rows.index(order))
    assert same(again["hint.weight"], rows["hint.weight"][order])


def test_sc_grpo_credits_the_decision_more_than_what_is_free():
    """A tabular copy that leans towards what the solution did: the deciding token weighs most, and only own weights
    raise its share of all credit above what it has without weights or under either control."""
    pi = torch.zeros(16, 16, dtype=torch.float64)  # 16 positions, 16 tokens; the first decides
    tilt = 0.1 * draw(16, 16)
    tilt[0] = 0
    tilt[0, 3] = 3.0
    token = torch.zeros(16, dtype=torch.long)
    columns = {"own": TableDist(pi.log_softmax(-1), token), "teacher": TableDist((pi + tilt).log_softmax(-1), token)}
    columns |= {name: torch.ones(16, dtype=torch.bool) for name in ("keep", "teacher.shown")}
    columns |= {name: torch.arange(16) for name in ("token", "position", "row")}
    columns |= {"sequence": token, "untruncated": pi[:, 0], "advantage": torch.ones(16).double()}
    weighed = Saturating()(Dependence()(Rows(columns)))
    share = lambda rows: float(rows["advantage"][0] / rows["advantage"].sum())
    own, mean, shuffled = (Weighted("hint.weight")(control(weighed)) for control in CONTROLS)
    assert share(own) > 1.5 / 16 and share(mean) == pytest.approx(1 / 16) and share(shuffled) < share(own)


CONTROLS = (lambda rows: rows, Evened("hint.weight"), Shuffled("hint.weight"))


# --------------------------------------------------------------------------------------------------------------- hints


def test_a_hint_repeats_what_it_finally_says():
    _, group = one_group([1.0, 0.0, 1.0])
    boxed = replace(group.rollouts[0], text=r"so it is \boxed{7}")
    assert labelled(boxed) == "so it is \\boxed{7}\nCorrect final answer: 7" == labelled_if_marked(boxed)
    assert labelled_if_marked(group.rollouts[1]) is None
    assert labelled(group.rollouts[1]).endswith("Correct final answer: 1")


def test_a_sibling_that_cannot_be_shown_is_passed_over():
    _, group = one_group([1.0, 0.0, 0.0, 0.0])
    texts = ("a", r"\boxed{1}", "b", r"\boxed{2}")
    rollouts = tuple(replace(one, text=text) for one, text in zip(group.rollouts, texts, strict=True))
    group = replace(group, rollouts=rollouts)
    views = [Sibling("{context}", "wrong", number, shows=labelled_if_marked) for number in range(3)]
    told = [words(view, rollouts[0], group) for view in views]
    assert {m[-1]["content"][7] for m in told if m} == {"1", "2"} and told[2] is None


def test_the_reference_is_the_context_or_else_the_answer():
    problem = problems(1)[0]
    view = Reference("{prompt} {context}")
    assert view.check(problem) == "hint" and view.check(replace(problem, privileged_context=None)) == "2"
    assert Reference("", True).check(problem) == "hint\nCorrect final answer: 2"
    with pytest.raises(DataError, match="no reference"):
        view.check(replace(problem, privileged_context=None, answer=None))


def test_braces_in_what_is_filled_in_are_text():
    messages = ({"role": "user", "content": "what is {context}?"},)
    assert told(messages, "{prompt} {context}", "{prompt}")[0]["content"] == "what is {context}? {prompt}"


# ----------------------------------------------------------------------------------------------------- in the same run


def test_what_was_not_shown_is_not_measured_and_the_student_still_is():
    plain = load("sc_grpo")()
    cast = toy_cast(plain)
    method = measured(plain, cast)
    groups = [replace(g, rollouts=rewarded(g, i)) for i, g in enumerate(toy_groups(method, cast))]
    rows, sequences = prepare(groups, method, cast, 0)
    seen = gradient(cast["student"], rows, sequences, method).observed
    assert 0 < int(rows["teacher.shown"].sum()) < len(rows)
    for name in ("reverse_kl", "teacher.entropy", "support.mass", "hint.kl", "hint.weight", "hint.faint"):
        assert torch.equal(seen[name].isnan(), ~rows["teacher.shown"]), name
    assert not seen["student.chosen"].isnan().any() and not seen["student.entropy"].isnan().any()


def rewarded(group, number):
    """Every other group has a single right answer, and so no hint; the others have four."""
    right = 1 if number % 2 else 4
    return tuple(one.tagged(reward=float(i < right)) for i, one in enumerate(group.rollouts))


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("rlsd", {"n": 1}),
        ("rlsd", {"lam": 1.5}),
        ("rlsd", {"width": -0.1}),
        ("rlsd", {"fade": -1}),
        ("rlcsd", {"n": 1}),
        ("rlcsd", {"wrong": 0}),
        ("rlcsd", {"hint": "both"}),
        ("rlcsd", {"tau": 0.0}),
        ("rlcsd", {"cap": -1.0}),
        ("opsd_ectr", {"most": -1.0}),
        ("opsd_ectr", {"half": 0.0}),
        ("opsd_ectr", {"n": 1}),
        ("rlsd_ectr", {"n": 1}),
        ("rlsd_ectr", {"wrong": 0}),
        ("sc_grpo", {"n": 2}),
        ("sc_grpo", {"percentile": 101.0}),
        ("sc_grpo", {"least": 0.0}),
        ("sc_grpo", {"micro": -1}),
        ("sc_grpo", {"weights": "none"}),
    ],
)
def test_impossible_values_are_refused_when_the_method_is_built(name, parameters):
    with pytest.raises(OpdError):
        load(name)(**parameters)


def test_published_defaults():
    rlsd, rlcsd, sc_grpo = (load(name)() for name in ("rlsd", "rlcsd", "sc_grpo"))
    assert rlsd.casting == rlcsd.casting == {"teacher": "self:every=10"} and sc_grpo.casting == {"teacher": "self:live"}
    assert rlsd.credit.parts[-1] == Bounded("evidence", 0.2, Fading(0.5, 50))
    assert (rlcsd.sample.n, rlcsd.sample.sampling.top_p, rlcsd.sample.sampling.top_k) == (8, 0.95, 20)
    assert Shifted(0.5, 0.02, 0.02) in rlcsd.credit.parts[-1].parts and len(rlcsd.teach) == 5
    assert {Saturating(75.0, 1e-4), Diversity(0.1)} <= set(sc_grpo.credit.parts)
    for plug_in in ("rlsd_ectr", "opsd_ectr"):  # one hint of each kind
        assert [ask.into for ask in load(plug_in)().teach] == ["teacher", "wrong.0"]


def test_rewards_are_needed_and_said_so():
    assert all(load(name)().needs_reward for name in ("opsd_ectr", "rlsd", "rlsd_ectr", "rlcsd", "sc_grpo"))


def test_a_share_that_fades_is_read_at_the_tables_step():
    columns = {"advantage": tensor(1.0), "e": tensor(1.0), "keep": tensor(1).bool()}
    factor = lambda step: float(Bounded("e", 0.2, Fading(0.5, 50))(Rows(columns, step))["advantage"])
    assert [factor(step) for step in (0, 25, 50)] == pytest.approx([1.1, 1.05, 1.0])
