"""Methods that differ in whose text is read: identities by enumeration, written numbers, and what a run remembers."""

import copy
import math

import numpy as np
import pytest
import torch
from models import engine
from test_imitation import TOKENS, WHERE, T, exact, tables
from test_loop import training

from opd import maths, recipes
from opd.checkpoint import load_state, save_state
from opd.contract import anatomy, check, gradients, toy_cast, toy_groups
from opd.dist import TableDist
from opd.errors import MethodError, OpdError, TeacherError
from opd.lab.toy import problems
from opd.loop import one_step, train
from opd.method import Method, Term, chain
from opd.parts.credit import Clamped, LogRatio, Marked, MeanToGo, ReturnToGo
from opd.parts.curriculum import Climbing, Ladder, Replay, Rising
from opd.parts.fading import Fading
from opd.parts.losses import CrossEntropy, Everywhere, PolicyGradient
from opd.parts.means import token_mean
from opd.parts.memory import Memory, packed, unpacked
from opd.parts.observe import Noted
from opd.parts.sample import OneTurn
from opd.parts.skew import AdaptiveSkew
from opd.rollout import OTHER, STUDENT, TEACHER, Group, Rollout, Sampling, Visit
from opd.rows import Rows
from opd.step import prepare
from opd.teach import check_capabilities

HERE, TOKEN = WHERE.reshape(-1), TOKENS.reshape(-1)
SEQUENCE = torch.arange(len(TOKEN)) // T


def table(lp, lq, behaviour=None):
    """Every text of three words as rows: the student's log-probs lp, the teacher's lq, and what drew each word."""
    own, theirs = TableDist(lp.detach()[HERE], TOKEN), TableDist(lq[HERE], TOKEN)
    drew = own.chosen if behaviour is None else behaviour[HERE].gather(-1, TOKEN[:, None]).squeeze(-1)
    columns = {"token": TOKEN, "row": torch.arange(len(TOKEN)) % T, "episode": SEQUENCE, "sequence": SEQUENCE}
    known = {"behaviour": drew, "untruncated": own.chosen, "teacher": theirs, "teacher.chosen": theirs.chosen}
    return Rows({**columns, **known, "keep": torch.ones(len(TOKEN), dtype=torch.bool)})


def expected(logits, rows, losses):
    """The gradient of the sum of `losses` over rows, each text weighted by the probability with which it was drawn."""
    student = TableDist(logits.log_softmax(-1)[HERE], TOKEN)
    weight = rows["behaviour"].reshape(-1, T).sum(-1).exp()[SEQUENCE]
    return torch.autograd.grad((weight * sum(loss(student, rows) for loss in losses)).sum(), logits)[0]


def log_mixture(lp, lq, share):
    return ((1 - share) * lp.exp() + share * lq.exp()).log().detach()


# -- minillm


def test_one_step_exactly_and_what_follows_by_reward_are_the_gradient_of_the_sequence():
    """The split of the paper: without the division by length it is exact, and the token's own reward is in step one."""
    logits, lq = tables()
    rows = LogRatio()(table(logits.log_softmax(-1), lq))
    left = (T - rows["row"]).double()
    single = Everywhere(maths.reverse_kl)
    whole = exact(logits, lq, maths.reverse_kl)

    def later(own):
        found = MeanToGo(1.0, own)(rows)
        return found.plus(advantage=found["advantage"] * (left if own else left - 1))

    assert torch.allclose(expected(logits, later(False), [single, PolicyGradient()]), whole, atol=1e-14)
    assert torch.allclose(expected(logits, later(True), [PolicyGradient()]), whole, atol=1e-14)
    twice = expected(logits, later(True), [single, PolicyGradient()])  # the released code: step one counts twice
    assert torch.allclose(twice - whole, expected(logits, rows, [single]), atol=1e-14)
    assert not torch.allclose(twice, whole, atol=1e-2)


def test_the_single_ratio_is_exact_at_a_state_and_leaves_the_states_the_mixtures():
    logits, lq = tables()
    lp = logits.log_softmax(-1)
    mixed = log_mixture(lp, lq, 0.2)
    rows = LogRatio()(table(lp, lq, mixed))
    ours = expected(logits, rows, [PolicyGradient()])
    # at every state that the mixture visits, the weight makes of its draws the student's own
    visited = expected(logits, rows, [Everywhere(maths.reverse_kl)])
    assert torch.allclose(ours, visited, atol=1e-14)
    on_policy = expected(logits, table(lp, lq), [Everywhere(maths.reverse_kl)])
    assert not torch.allclose(visited, on_policy, atol=1e-3), "no product of ratios corrects the states"
    weight = (lp.detach() - mixed).exp()
    assert float(weight.max()) <= 1 / 0.8 and float(weight.min()) < 1


def test_the_mean_to_go_in_written_numbers():
    columns = {"row": [0, 1, 2, 0, 1], "episode": [0, 0, 0, 1, 1], "advantage": [1.0, 2.0, 3.0, 4.0, math.nan]}
    columns |= {"keep": [True, True, True, True, False]}
    rows = Rows({name: torch.tensor(values) for name, values in columns.items()})
    assert MeanToGo(0.5)(rows)["advantage"].tolist() == pytest.approx([2.75 / 3, 3.5 / 2, 3.0, 4.0, 0.0])
    assert MeanToGo(0.5, own=False)(rows)["advantage"].tolist() == pytest.approx([1.75 / 2, 1.5, 0.0, 0.0, 0.0])
    assert MeanToGo(0.0)(rows)["advantage"].tolist() == pytest.approx([1 / 3, 1.0, 3.0, 4.0, 0.0])


def test_without_the_division_short_texts_would_look_best():
    """Equal log-ratios of -1 everywhere: the sum punishes the first token of the longer text more, the mean alike."""
    columns = {"row": [0, 0, 1, 2, 3], "episode": [0, 1, 1, 1, 1], "advantage": [-1.0] * 5}
    rows = Rows({name: torch.tensor(values) for name, values in {**columns, "keep": [True] * 5}.items()})
    assert MeanToGo(1.0)(rows)["advantage"].tolist() == [-1.0] * 5


def test_a_reward_beyond_its_bound_is_cut_and_counted():
    columns = {"advantage": torch.tensor([3.0, -5.0, 1.0]), "keep": torch.ones(3, dtype=torch.bool)}
    rows = Clamped(2.0, "reward.cut")(Rows(columns))
    assert rows["advantage"].tolist() == [2.0, -2.0, 1.0] and rows["reward.cut"].tolist() == [1.0, 1.0, 0.0]
    assert Noted(("reward.cut",))(None, rows)["reward.cut"].mean() == pytest.approx(2 / 3)
    run = training(recipes.load("minillm")(bound=0.5))
    assert 0 < one_step(run).metrics["reward.cut"] <= 1


def test_the_released_advantage_is_not_the_papers():
    build = recipes.load("minillm")
    cast = toy_cast(build())
    groups = toy_groups(build(), cast)
    released, paper = (prepare(groups, build(own=own), cast, 0)[0]["advantage"] for own in (True, False))
    assert not torch.allclose(released, paper, atol=1e-2)
    for advantage in (released, paper):
        assert float(advantage.mean()) == pytest.approx(0, abs=1e-12) and float(advantage.std()) == pytest.approx(1)


# -- distillm, distillm2


def test_the_detached_mixture_of_the_released_code_is_another_gradient_of_the_same_loss():
    build = recipes.load("distillm2")
    cast = toy_cast(build())
    rows, sequences = prepare(toy_groups(build(), cast), build(), cast, 0)
    paper, released = (gradients(build(detach=d), cast["student"], rows, sequences) for d in (False, True))
    assert max(float((paper[name] - released[name]).abs().max()) for name in paper) > 1e-3


def test_each_text_has_its_own_divergence_and_its_own_mean():
    """The loss by hand: the mean over answers of their token mean, forward on the teacher's, reverse on the other."""
    method = recipes.load("distillm2")(alpha=0.2, beta=1.5)
    cast = toy_cast(method)
    groups = toy_groups(method, cast)
    assert all([r.author[-1] for r in group.rollouts] == [TEACHER, OTHER] for group in groups)
    rows, sequences = prepare(groups, method, cast, 0)
    total = 0.0
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        tokens = torch.as_tensor(rollout.tokens).long()[None]
        lp, lq = (
            (cast[who].layers_of(tokens)[-1][0] @ cast[who].head.T).log_softmax(-1)[rollout.positions - 1]
            for who in ("student", "teacher")
        )
        p, q = lp.exp(), lq.detach().exp()
        if rollout.author[-1] == TEACHER:
            total = total + 0.5 * (q * (q / (0.2 * q + 0.8 * p)).log()).sum(-1).mean() / len(groups)
        else:
            total = total + 1.5 * (p * (p / (0.8 * q + 0.2 * p)).log()).sum(-1).mean() / len(groups)
    by_hand = dict(zip((n for n, _ in cast["student"].named_parameters()),
                       torch.autograd.grad(total, list(cast["student"].parameters())), strict=True))  # fmt: skip
    ours = gradients(method, cast["student"], rows, sequences)
    assert max(float((ours[name] - by_hand[name]).abs().max()) for name in ours) < 1e-12


def test_the_adaptive_share_is_the_base_at_the_mean_gap_and_less_on_what_is_learned():
    gap = torch.tensor([0.4, 0.2, 0.3], dtype=torch.float64)
    share = maths.adaptive_skew(gap, 0.1)
    assert share.tolist() == pytest.approx([1 - 0.9 * 0.75, 1 - 0.9 * 1.5, 0.1])
    assert maths.adaptive_skew(torch.zeros(3), 0.1).tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("divergence", [maths.skew_kl, maths.skew_reverse_kl])
def test_shares_by_row_are_the_skew_kl_of_each(divergence):
    lp, lq = (
        torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(s)).log_softmax(-1)
        for s in (0, 1)
    )
    lp.requires_grad_()
    shares = torch.tensor([0.01, 0.1, 0.3, 0.9], dtype=torch.float64)
    ours = divergence(lp, lq, shares)
    each = torch.cat([divergence(lp[i : i + 1], lq[i : i + 1], float(shares[i])) for i in range(4)])
    assert torch.allclose(ours, each, atol=1e-15)
    slopes = [torch.autograd.grad(x.sum(), lp)[0] for x in (ours, each)]
    assert torch.allclose(*slopes, atol=1e-15)
    with pytest.raises(ValueError, match="alpha"):
        divergence(lp, lq, torch.tensor([0.1, 0.0, 0.1, 0.1]))


def test_each_writers_answers_have_shares_by_their_own_gaps():
    """By hand, with the gap's sign turned on the student's answers, a row that is masked, and a share that is cut."""
    ours = torch.tensor([0.2, 0.2, 0.4, 0.9, 0.7, 0.001]).log()
    theirs = torch.tensor([0.6, 0.6, 0.6, 0.1, 0.6, 0.9]).log()
    columns = {
        "sequence": torch.tensor([0, 0, 1, 2, 3, 3]), "group": torch.zeros(6), "own.chosen": ours,
        "author": torch.tensor([TEACHER] * 3 + [OTHER] * 3), "teacher.chosen": theirs,
        "keep": torch.tensor([True] * 5 + [False]),
    }  # fmt: skip
    rows = AdaptiveSkew(0.5)(Rows(columns))
    # the teacher's: gaps .4 and .2, mean .3, shares 1 - .5 * .75 and 1 - .5 * 1.5; the other's: .8 and .1, mean .45
    assert rows["skew"].tolist() == pytest.approx([0.5, 0.5, 0.25, 0.5, 0.01, 0.01])
    assert rows["skew.cut"].tolist() == [1, 1, 0, 1, 1, 1]


def test_the_adaptive_alpha_keeps_the_contract_is_measured_and_is_another_method():
    build = recipes.load("distillm2")
    assert len(list(check(lambda: build(adaptive=True)))) > 5
    assert anatomy(lambda: build(adaptive=True)).passes["student reads"] == 1
    cast = toy_cast(build())
    fixed, adaptive = (
        gradients(build(adaptive=a), cast["student"], *prepare(toy_groups(build(), cast), build(adaptive=a), cast, 0))
        for a in (False, True)
    )
    assert max(float((fixed[name] - adaptive[name]).abs().max()) for name in fixed) > 1e-4
    metrics = one_step(training(build(adaptive=True, alpha=0.4))).metrics
    assert 0.01 <= metrics["skew"] < 0.4 and 0 < metrics["skew.cut"] <= 1


def test_who_wrote_marks_kept_rows_only():
    author, keep = torch.tensor([STUDENT, TEACHER, OTHER, TEACHER]), torch.tensor([True, True, True, False])
    rows = Marked("by.teacher", TEACHER, others="by.others")(Rows({"author": author, "keep": keep}))
    assert rows["by.teacher"].tolist() == [False, True, False, False]
    assert rows["by.others"].tolist() == [True, False, True, False]


def test_texts_written_beforehand_stay_the_same_and_fresh_ones_do_not():
    visits = [[Visit(problem, number, 5) for problem in problems(2)] for number in (0, 1)]
    for fresh in (False, True):
        method = recipes.load("distillm2")(fresh=fresh)
        cast = toy_cast(method)
        first, again = ([g.rollouts for g in method.sample(cast, some, 0)] for some in visits)
        same = [np.array_equal(a.tokens, b.tokens) for x, y in zip(first, again, strict=True)
                for a, b in zip(x, y, strict=True)]  # fmt: skip
        assert same[::2] == [True, True] and all(same[1::2]) is not fresh


class Wrote:
    """A sample that notes who was asked; its groups of one text say in which step."""

    def __init__(self, name, asked):
        self.name, self.asked = name, asked

    def __call__(self, cast, visits, step):
        self.asked.append(self.name)
        rollout = Rollout(np.array([1, 2], np.int32), np.array([0, 1], np.int8), visits[0].problem, tags={"step": step})
        return [Group(visit.problem, (rollout,), cast["student"].render) for visit in visits]


def replay(value, new=1.0, size=8):
    asked = []
    rising = Rising(OneTurn(1, writer="teacher"), value)
    return Replay(Wrote("data", asked), Wrote("new", asked), Memory(size), rising, Fading(new, 1)), asked


def test_by_chance_a_batch_is_data_new_text_or_memory():
    cast = toy_cast(Method(sample=OneTurn(1), terms={}))
    visits = [Visit(problem, 0, 5) for problem in problems(4)]

    def steps(sample, n=200):
        return [sample(cast, visits, step) for step in range(n)]

    never, asked = replay(0.0)
    steps(never)
    assert asked == ["data"] * 200
    always, asked = replay(1.0)
    written = steps(always, 6)
    assert asked == ["new"] * 2, "new until memory is full (8 of 4 each); share 0 of new text from step 1 on"
    assert {group.rollouts[0].tags["step"] for groups in written[2:] for group in groups} == {0, 1}
    assert all(len(groups) == 4 for groups in written)
    authors = [{group.rollouts[0].author[-1] for group in groups} for groups in written]
    assert authors == [{STUDENT}] * 2 + [{OTHER}] * 4, "an old text is not by the student as it is now"
    half, asked = replay(0.5)
    steps(half)
    assert 70 <= asked.count("data") <= 130 and asked.count("new") == 2
    both, asked = replay(0.5)
    object.__setattr__(both, "new", lambda step: 0.5)
    steps(both, 400)
    assert 150 <= asked.count("data") <= 250 and 70 <= asked.count("new") <= 130


def test_the_chance_rises_when_the_held_back_loss_does():
    rising = Rising(OneTurn(1, writer="teacher"), every=2, prompts=3)
    cast = toy_cast(Method(sample=OneTurn(1), terms={}))
    assert not rising.is_fitted
    rising.fit(cast, lambda n: [Visit(problem, -3, 5) for problem in problems(6)[:n]])
    start = rising.before
    assert rising.is_fitted and len(rising.held) == 3 and start > 0
    seen = [rising(cast, {}, step) for step in range(2)]
    assert "held_back.loss" not in seen[0] and seen[1]["held_back.loss"] == pytest.approx(start)
    assert rising.value == 0, "a loss that stays the same is no reason"
    worse = copy.deepcopy(cast["student"])
    with torch.no_grad():
        worse.head.mul_(3.0)
    for expected_value in (0.1, 0.1):  # the rise counts once: the higher loss is the new measure
        loss = rising({"student": worse}, {}, 3)["held_back.loss"]
        assert loss > start + 0.1 and rising.value == pytest.approx(expected_value) and rising.before == loss
    rising.value, rising.before = 0.95, start
    rising({"student": worse}, {}, 5)
    assert rising.value == 1.0


def test_groups_survive_a_checkpoint(tmp_path):
    cast = toy_cast(Method(sample=OneTurn(1), terms={}))
    groups = OneTurn(2, Sampling(temperature=0.7, stop=(3,)))(cast, [Visit(p, 0, 5) for p in problems(3)], 0)
    save_state(tmp_path, "memory", packed(groups))
    for one, other in zip(groups, unpacked(load_state(tmp_path, "memory")), strict=True):
        for a, b in zip(one.rollouts, other.rollouts, strict=True):
            assert (a.sampling, a.seed, a.end, a.text, a.problem) == (b.sampling, b.seed, b.end, b.text, b.problem)
            assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.columns["behaviour"], b.columns["behaviour"])


# -- decoupled


def test_both_sequence_divergences_are_sums_over_visited_prefixes():
    logits, lq = tables()
    lp = logits.log_softmax(-1).detach()
    ours, theirs = (x[WHERE].gather(-1, TOKENS[..., None]).squeeze(-1).sum(-1) for x in (lp, lq))
    for writer, divergence, whole in (
        (ours, maths.reverse_kl, (ours.exp() * (ours - theirs)).sum()),
        (theirs, maths.forward_kl, (theirs.exp() * (theirs - ours)).sum()),
    ):
        summed = (writer.exp() * divergence(lp, lq)[WHERE].sum(-1)).sum()
        assert float(summed) == pytest.approx(float(whole), abs=1e-13)


def test_the_immediate_reward_is_the_frozen_prefixes_gradient_and_the_return_the_sequences():
    logits, lq = tables()
    rows = table(logits.log_softmax(-1), lq)
    frozen = expected(logits, rows, [Everywhere(maths.reverse_kl)])
    sequence = exact(logits, lq, maths.reverse_kl)
    for credit, gradient in ((LogRatio(), frozen), (chain(LogRatio(), ReturnToGo(1.0)), sequence)):
        assert torch.allclose(expected(logits, credit(rows), [PolicyGradient()]), gradient, atol=1e-14)
    assert not torch.allclose(frozen, sequence, atol=1e-2), "on-policy distillation as it is run is not the sequence's"


def test_at_a_fixed_prefix_both_gradients_are_expectations_of_the_score():
    logits, lq = tables()
    lp = logits.log_softmax(-1)
    forward = torch.autograd.grad(maths.forward_kl(lp, lq).sum(), logits, retain_graph=True)[0]
    score = torch.autograd.grad(-(lq.exp() * lp).sum(), logits, retain_graph=True)[0]
    assert torch.allclose(forward, score, atol=1e-14)
    reverse = torch.autograd.grad(maths.reverse_kl(lp, lq).sum(), logits, retain_graph=True)[0]
    reward = (lq - lp).detach()
    reinforce = torch.autograd.grad(-(lp.exp().detach() * reward * lp).sum(), logits)[0]
    assert torch.allclose(reverse, reinforce, atol=1e-14)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_all_objectives_vanish_exactly_where_the_models_agree_on_what_is_visited(lam):
    logits, lq = tables()
    lp = logits.log_softmax(-1).detach()
    assert maths.linear_mix(lq, lq, lam).abs().max() < 1e-15 < maths.linear_mix(lp, lq, lam).min()
    ends = {0.0: maths.forward_kl, 1.0: maths.reverse_kl}
    if lam in ends:
        assert torch.equal(maths.linear_mix(lp, lq, lam), ends[lam](lp, lq))
    assert not torch.allclose(maths.linear_mix(lp, lq, 0.5), maths.jsd(lp, lq, 0.5), atol=1e-2)


def test_on_the_teachers_prefixes_its_own_token_is_no_draw_of_the_student():
    """Reverse KL from one token: the teacher's action is biased unless it is weighted by pi / q."""
    logits, lq = tables()
    lp = logits.log_softmax(-1)
    rows = LogRatio()(table(lp, lq, lq))  # the teacher wrote
    whole = expected(logits, rows, [Everywhere(maths.reverse_kl)])
    assert torch.allclose(expected(logits, rows, [PolicyGradient()]), whole, atol=1e-14)
    as_if_drawn = rows.plus(behaviour=rows["untruncated"])
    weight = rows["behaviour"].reshape(-1, T).sum(-1).exp()[SEQUENCE]
    student = TableDist(lp[HERE], TOKEN)
    naive = torch.autograd.grad((weight * PolicyGradient()(student, as_if_drawn)).sum(), logits)[0]
    assert not torch.allclose(naive, whole, atol=1e-2)


def two_modes(loss, source, steps=400):
    """The teacher writes AA or BB; the student has one distribution for both positions, and starts a little at A."""
    eps = 0.001
    after = torch.tensor([[1 - eps, eps], [eps, 1 - eps]]).double().log()
    lq = torch.cat([torch.tensor([[0.5, 0.5]]).double().log(), after])  # start, after A, after B
    logits = torch.tensor([0.2, 0.0], dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        lp = logits.log_softmax(-1)
        first = lp.detach().exp() if source == "student" else lq[0].exp()
        visits = torch.cat([torch.ones(1).double(), first])
        (slope,) = torch.autograd.grad((visits * loss(lp.expand(3, 2), lq)).sum(), logits)
        logits.data -= 0.5 * slope
    return logits.detach().softmax(-1)


def test_a_narrow_student_takes_one_mode_with_reverse_and_both_with_forward_and_reward_then_finds_the_other():
    reverse, forward = (two_modes(loss, "student") for loss in (maths.reverse_kl, maths.forward_kl))
    assert reverse[0] > 0.9 and forward[0] == pytest.approx(0.5, abs=1e-3)
    assert torch.allclose(two_modes(maths.forward_kl, "teacher"), torch.tensor([0.5, 0.5]).double(), atol=1e-3)
    right = lambda p: float(p[0] * p[0] + p[1] * p[1])  # a text of one mode
    assert right(reverse) > right(forward)

    def rewarded(start, steps=4):
        """A few exact steps on the probability of the mode that reverse KL dropped."""
        logits = start.log().requires_grad_()
        for _ in range(steps):
            (slope,) = torch.autograd.grad(logits.softmax(-1)[1] ** 2, logits)
            logits.data += slope
        return float(logits.detach().softmax(-1)[1] ** 2)

    assert rewarded(forward) > 5 * rewarded(reverse)


def climbed(ladder, entropies):
    """The lengths of the batches, each told its entropy."""
    return [ladder({}, {"student.entropy": entropy}, step)["ladder.length"] for step, entropy in enumerate(entropies)]


def test_the_ladder_is_climbed_while_entropy_stays_up_and_one_rung_is_given_back():
    assert climbed(Ladder((4, 8, 16), 0.5, 2), [0.6, 0.4, 0.7, 0.9, 0.9, 0.9, 9, 9]) == [4, 4, 8, 8, 16, 16, 16, 16]
    falling = Ladder((4, 8, 16), 0.5, 2)
    assert climbed(falling, [0.6, 0.6, 0.3, 0.5, 9, 9, 9]) == [4, 4, 8, 8, 4, 4, 4]
    assert falling.stopped and climbed(Ladder((4, 8), 0.5, 1), [0.1, 9, 9]) == [4, 4, 4]
    with pytest.raises(MethodError, match=r"student\.entropy"):
        falling.stopped = False
        falling({}, {}, 0)


def test_the_ladder_stops_under_a_teacher_whose_entropy_falls_with_position():
    lq = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).double() * torch.arange(1, 65)[:, None] / 4
    entropy = maths.entropy(lq.log_softmax(-1))  # of position 1, 2, ...: a student that has learned all of it
    ladder, lengths = Ladder((2, 4, 8, 16, 32, 64), 1.0, 1), []
    for step in range(8):
        lengths.append(ladder.length)
        ladder({}, {"student.entropy": float(entropy[: ladder.length].mean())}, step)
    stable = [n for n in ladder.lengths if entropy[:n].mean() >= 1.0]
    assert ladder.stopped and max(lengths) > ladder.length == max(stable) and 2 < max(stable) < 32


def test_answers_are_as_long_as_the_rung(tmp_path):
    model = engine(tmp_path / "student", max_new=12)
    ladder = Ladder((2, 6), 0.0, 1)
    sample = Climbing(OneTurn(1), ladder)
    sample.check({"student": model})
    visits = [Visit(problem, 0, 5) for problem in problems(6)]
    for length in (2, 6):
        rollouts = [rollout for group in sample({"student": model}, visits, 0) for rollout in group.rollouts]
        assert max(rollout.n for rollout in rollouts) == length
        ladder({}, {"student.entropy": 1.0}, 0)
    with pytest.raises(MethodError, match="--max-new 20"):
        Climbing(OneTurn(1), Ladder((2, 20), 0.0, 1)).check({"student": model})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("decoupled", {"source": "teacher"}), ("decoupled", {"source": "teacher", "ladder": (8, 16)}), ("distillm", {})],
)
def test_a_teacher_that_cannot_write_is_refused_before_step_1(name, parameters):
    method = recipes.load(name)(**parameters)
    cast = toy_cast(method)
    check_capabilities(method, cast)
    cast["teacher"].can = frozenset({"chosen", "dist"})
    with pytest.raises(TeacherError, match="can't write"):
        check_capabilities(method, cast)


# -- hooks and what a checkpoint holds


def test_a_hook_hears_of_every_finished_batch_and_its_numbers_are_recorded():
    heard = []

    def hook(cast, metrics, step):
        heard.append((step, metrics["loss"], sorted(cast)))
        return {"heard": 2.0 * step}

    method = Method(sample=OneTurn(1), terms={"copy": Term(CrossEntropy(), token_mean)}, hooks=(hook,))
    batches = list(train(training(method, steps=3)))
    assert [batch.metrics["heard"] for batch in batches] == [0.0, 2.0, 4.0]
    assert heard == [(batch.step, batch.metrics["loss"], ["student", "teacher"]) for batch in batches]


RESUMED = {
    "decoupled": {"ladder": (2, 3, 4), "entropy_floor": 0.0, "every": 2},
    "distillm": {"start": 0.5, "every": 1, "held": 2, "memory": 6, "fade": 8},
    "distillm2": {},
    "minillm": {},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_is_cut_in_two_takes_the_same_steps(name, tmp_path):
    def fresh():
        method = recipes.load(name)(**RESUMED[name])
        if name == "distillm":
            method.state["rising"].tolerance = -1.0  # every look raises the chance
        return training(method, steps=8)

    def numbers(batches):
        return [{k: v for k, v in batch.metrics.items() if not k.startswith("seconds")} for batch in batches]

    whole = numbers(train(fresh()))
    first, second = fresh(), fresh()
    torn = [batch for _, batch in zip(range(5), train(first), strict=False)]
    for part, state in {"student": first.student, "optimizer": first.optimizer, **first.method.state}.items():
        save_state(tmp_path, part, state.state_dict())
    for part, state in {"student": second.student, "optimizer": second.optimizer, **second.method.state}.items():
        state.load_state_dict(load_state(tmp_path, part))
    second.step, second.source.position = first.step, first.source.position
    assert numbers(torn) + numbers(train(second)) == whole
    if name == "decoupled":
        assert [line["ladder.length"] for line in whole] == [2, 2, 3, 3, 4, 4, 4, 4]
    if name == "distillm":
        assert whole[-1]["written.chance"] == pytest.approx(1.0) and whole[0]["written.chance"] == 0.5


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("minillm", {"mix": 1.5}),
        ("minillm", {"scaling": 0.0}),
        ("minillm", {"bound": -1.0}),
        ("minillm", {"clip": 0.0}),
        ("minillm", {"gamma": 1.1}),
        ("distillm", {"divergence": "kl"}),
        ("distillm", {"alpha": 1.0}),
        ("distillm", {"start": 2.0}),
        ("distillm", {"every": 0}),
        ("distillm", {"memory": 0}),
        ("distillm2", {"alpha": -0.1}),
        ("distillm2", {"beta": 3.0}),
        ("distillm2", {"alpha": 0.0, "adaptive": True}),
        ("decoupled", {"lam": 2.0}),
        ("decoupled", {"ladder": (8, 4)}),
        ("decoupled", {"ladder": (4,), "every": 0}),
    ],
)
def test_impossible_values_are_refused(name, parameters):
    with pytest.raises(OpdError):
        recipes.load(name)(**parameters)


def test_published_defaults():
    known = {name: {p.name: p.default for p in recipes.describe(name).parameters} for name in RESUMED}
    mini, one, two, four = (known[name] for name in ("minillm", "distillm", "distillm2", "decoupled"))
    assert (mini["mix"], mini["scaling"], mini["bound"], mini["gamma"]) == (0.2, 0.5, 100, 0.95)
    assert (mini["clip"], mini["epochs"], mini["single"], mini["own"]) == (0.2, 4, 1.0, True)
    assert (one["alpha"], one["start"], one["memory"]) == (0.1, 0.0, 1000)
    assert (two["alpha"], two["beta"], two["detach"], two["temperature"]) == (0.1, 1.0, False, 0.8)
    assert two["adaptive"] is False
    assert (four["lam"], four["source"], four["top_p"], four["top_k"]) == (1.0, "student", 0.95, 20)
