"""Methods whose teacher is shown more than the student: their optima, and what they clip, weigh and leave out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from opd import maths
from opd.contract import check, distance, gradients, toy_cast, toy_groups
from opd.dist import TableDist
from opd.errors import DataError, OpdError
from opd.lab.toy import problems
from opd.loop import grade
from opd.parts.losses import Anchored, Reweighted, Tempered
from opd.parts.support_losses import compared
from opd.parts.views import Begun, Feedback, Sibling, begun, without_thoughts, written
from opd.recipes import load
from opd.rollout import Visit
from opd.rows import Rows
from opd.step import prepare
from opd.tasks.graders import Graded

V = 6


def draw(seed, *shape):
    return torch.randn(*(shape or (V,)), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def table(teacher, **columns):
    """Rows whose teacher says `teacher` [N, V]; every row's token is 0."""
    token = torch.zeros(len(teacher), dtype=torch.long)
    kept = torch.ones(len(teacher), dtype=torch.bool)
    return Rows({"keep": kept, "token": token, "teacher": TableDist(teacher, token), **columns})


def student(logits, n):
    return TableDist(logits.log_softmax(-1).expand(n, -1), torch.zeros(n, dtype=torch.long))


def slope(loss, logits, rows):
    """d/dlogits of the mean loss over the rows."""
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(student(logits, len(rows)), rows).mean(), logits)[0]


def toy(name, **parameters):
    """The gradient of one batch of a method on the toy, and the table."""
    method = load(name)(**parameters)
    cast = toy_cast(method)
    rows, sequences = prepare(toy_groups(method, cast), method, cast, 0)
    return gradients(method, cast["student"], rows, sequences), rows


# ------------------------------------------------------------------------------------------------- opsd, sdft


def test_reverse_kl_learns_the_geometric_mean_of_teachers_and_forward_kl_the_arithmetic_one():
    """Two privileged contexts with different teachers, and a student that sees neither (2605.11182)."""
    teachers = torch.stack([draw(0), draw(1)]).log_softmax(-1)
    rows = table(teachers)
    geometric, arithmetic = teachers.mean(0).log_softmax(-1), teachers.exp().mean(0).log()
    for beta, optimum, other in ((1.0, geometric, arithmetic), (0.0, arithmetic, geometric)):
        loss = load("opsd")(beta=beta, tau=0.0).terms["match"].loss
        assert slope(loss, optimum, rows).abs().max() < 1e-15
        assert slope(loss, other, rows).abs().max() > 1e-2
        least = loss(student(optimum, 2), rows).mean()
        for seed in range(5):
            assert loss(student(optimum + 0.3 * draw(seed + 9), 2), rows).mean() > least


def test_the_clip_is_entry_by_entry():
    lp, lq = draw(0, 4, V).requires_grad_(), draw(1, 4, V).log_softmax(-1)
    ours = maths.clipped_forward_kl(lp.log_softmax(-1), lq, 0.05)
    plain = (lq.exp() * (lq - lp.log_softmax(-1))).clamp(max=0.05).sum(-1)
    assert torch.allclose(ours, plain, atol=1e-15)
    (one,), (other,) = (torch.autograd.grad(x.sum(), lp, retain_graph=True) for x in (ours, plain))
    assert torch.allclose(one, other, atol=1e-15)
    wide = maths.clipped_forward_kl(lp.log_softmax(-1), lq, math.inf)
    assert torch.equal(wide, maths.forward_kl(lp.log_softmax(-1), lq))
    never = torch.tensor([[-math.inf, 0.0]], dtype=torch.float64)
    assert maths.clipped_forward_kl(never, torch.tensor([[0.5, 0.5]]).double().log(), 0.05).isfinite().all()
    with pytest.raises(ValueError, match="tau"):
        maths.clipped_forward_kl(lp, lq, 0.0)


def test_a_word_at_the_bound_is_lowered_although_the_teacher_wants_it():
    rows = table(torch.tensor([[0.6, 0.2, 0.2]], dtype=torch.float64).log())
    logits = torch.tensor([0.1, 0.45, 0.45], dtype=torch.float64).log()
    clipped, whole = (load("opsd")(tau=tau).terms["match"].loss for tau in (0.05, 0.0))
    assert slope(whole, logits, rows)[0] < 0 < slope(clipped, logits, rows)[0]  # descent raises it, and lowers it
    assert slope(load("opsd")(tau=10.0).terms["match"].loss, logits, rows)[0] < 0
    assert clipped.cut(student(logits, 1), rows)["entries.cut"].tolist() == pytest.approx([0.6])


def test_a_tempered_loss_compares_tempered_distributions():
    z, teacher = draw(0), draw(1, 3, V).log_softmax(-1)
    loss, _ = compared(lambda lp, lq: maths.jsd(lp, lq, 0.5), 0)
    rows = table(teacher)
    ours = Tempered(loss, 1.1)(student(z, 3), rows)
    by_hand = maths.jsd((z / 1.1).log_softmax(-1).expand(3, -1), (teacher / 1.1).log_softmax(-1), 0.5)
    assert torch.allclose(ours, by_hand, atol=1e-15)
    assert torch.equal(Tempered(loss, 1.0)(student(z, 3), rows), loss(student(z, 3), rows))


def test_released_variants_are_not_the_papers():
    paper, _ = toy("opsd")
    released = {"beta": 0.5, "tau": 0.0, "loss_temperature": 1.1}
    for parameters in ({"tau": 0.0}, released, {"tau": 0.0, "k": 3}, {"form": "sampled"}):
        assert distance(paper, toy("opsd", **parameters)[0]) > 1e-3
    paper, _ = toy("sdft")
    assert distance(paper, toy("sdft", alpha=0.0)[0]) > 1e-3
    paper, _ = toy("opcd", k=3)
    assert distance(paper, toy("opcd", k=3, renorm=True)[0]) > 1e-3
    paper, _ = toy("sdpo", k=3)
    for parameters in ({"k": 3, "alpha": 1.0}, {"form": "sampled", "alpha": 1.0}):
        assert distance(paper, toy("sdpo", **parameters)[0]) > 1e-3


def test_the_best_tokens_are_enough_when_they_are_all():
    for name, fixed in (("opsd", {"tau": 0.0}), ("sdft", {"alpha": 0.0}), ("opcd", {}), ("sdpo", {})):
        whole, all_of_them = (toy(name, k=k, **fixed)[0] for k in (0, 7))
        assert distance(whole, all_of_them) < 1e-14


def test_a_cross_entropy_to_the_teachers_best_tokens():
    """-sum q^ log softmax(z): unlike the renormalised KL it lowers what is outside of them."""
    z, q, k = draw(0), draw(1, 1, V).log_softmax(-1), 3
    best = q.topk(k).indices[0]
    target = torch.zeros_like(z).index_add(0, best, q[0, best].softmax(-1))
    loss = load("sdft")(alpha=0.0, k=k, outside="target").terms["match"].loss
    assert torch.allclose(slope(loss, z, table(q)), z.softmax(-1) - target, atol=1e-15)
    both = load("sdft")(alpha=0.0, k=k).terms["match"].loss
    assert float(slope(both, z, table(q))[target == 0].abs().max()) < 1e-15
    whole = load("sdft")(alpha=0.0).terms["match"].loss
    everything = load("sdft")(alpha=0.0, k=V, outside="target").terms["match"].loss
    assert torch.allclose(slope(everything, z, table(q)), slope(whole, z, table(q)), atol=1e-15)


@pytest.mark.parametrize("given", [{"k": 3}, {"alpha": 0.0}, {"alpha": 0.5, "k": 3}])
def test_only_a_forward_kl_on_best_tokens_is_that_cross_entropy(given):
    with pytest.raises(OpdError, match="outside=target"):
        load("sdft")(outside="target", **given)


def test_the_first_tokens_are_skipped_and_counted():
    _, rows = toy("sdft")
    assert torch.equal(rows["masked.first"], rows["row"] < 3)
    assert torch.equal(rows["keep"], rows["row"] >= 3)


# -------------------------------------------------------------------------------------------------------- opcd


def test_dropped_mass_pushes_the_student_off_its_best_tokens_whatever_the_teacher_says():
    """At a teacher that is the student the released sum has the gradient of p(S), which shrinks as S grows."""
    z = draw(3)
    rows = table(z.log_softmax(-1)[None])
    sizes = []
    for k in (2, 3, 4, 5):
        best = z.topk(k).indices
        logits = z.clone().requires_grad_()
        (mass,) = torch.autograd.grad(logits.softmax(-1)[best].sum(), logits)
        dropped, kept = (load("opcd")(k=k, renorm=renorm).terms["match"].loss for renorm in (False, True))
        assert torch.allclose(slope(dropped, z, rows), mass, atol=1e-15)
        assert slope(kept, z, rows).abs().max() < 1e-15
        sizes.append(float(mass.abs().max()))
    assert sizes == sorted(sizes, reverse=True)


def test_the_best_tokens_of_both_are_each_counted_once():
    """By hand on six words: the student's best are 0 and 1, the teacher's 1 and 2."""
    p = torch.tensor([0.5, 0.3, 0.02, 0.08, 0.06, 0.04], dtype=torch.float64)
    q = torch.tensor([0.1, 0.5, 0.3, 0.05, 0.03, 0.02], dtype=torch.float64)
    rows, merged = table(q.log()[None]), slice(0, 3)
    for renorm in (False, True):
        a, b = (x[merged] / (x[merged].sum() if renorm else 1) for x in (p, q))
        loss = load("opcd")(k=2, support="both", renorm=renorm).terms["match"].loss
        assert loss(student(p.log(), 1), rows).item() == pytest.approx(float((a * (a / b).log()).sum()), abs=1e-15)
        alone = load("opcd")(k=2, renorm=renorm).terms["match"].loss
        assert abs(alone(student(p.log(), 1), rows) - loss(student(p.log(), 1), rows)) > 1e-2
    same = load("opcd")(k=2, support="both").terms["match"].loss
    own = load("opcd")(k=2).terms["match"].loss
    own_rows = table(p.log()[None])
    assert torch.equal(slope(same, p.log(), own_rows), slope(own, p.log(), own_rows))  # one support where they agree
    assert distance(toy("opcd", k=7)[0], toy("opcd", k=7, support="both")[0]) < 1e-14
    assert distance(toy("opcd", k=2)[0], toy("opcd", k=2, support="both")[0]) > 1e-3
    assert len(list(check(lambda: load("opcd")(k=2, support="both")))) > 5
    with pytest.raises(OpdError):
        load("opcd")(support="teacher")


# ------------------------------------------------------------------------------------------------------ ar_opd


def test_the_anchored_target_between_its_two_views():
    part, full = draw(0, 3, V).log_softmax(-1), draw(1, 3, V).log_softmax(-1)
    wide = math.inf
    assert torch.allclose(maths.anchored(part, full, 0.0, 5.0), part, atol=1e-15)
    assert torch.allclose(maths.anchored(part, full, 0.7, 0.0), part, atol=1e-15)
    assert torch.allclose(maths.anchored(part, full, 1.0, wide), full, atol=1e-14)
    assert torch.allclose(maths.anchored(part, part, 1.4, 5.0), part, atol=1e-15)
    between = maths.anchored(part, full, 0.3, wide)
    assert torch.allclose(between, (0.7 * part + 0.3 * full).log_softmax(-1), atol=1e-15)
    assert (maths.anchored(part, full, 0.3, 0.1) - between).abs().max() > 0.1  # the clip bites
    lifted = maths.anchored((part + 3).log_softmax(-1), (full - 2).log_softmax(-1), 0.3, 0.1)
    assert torch.allclose(lifted, maths.anchored(part, full, 0.3, 0.1), atol=1e-14)
    assert maths.anchored(torch.tensor([[-math.inf, 0.0]]), torch.tensor([[-math.inf, 0.0]]), 0.5, wide)[0, 1] == 0


def test_the_geometric_mixture_is_nearest_to_both_views():
    part, full = draw(0, 1, V).log_softmax(-1), draw(1, 1, V).log_softmax(-1)

    def cost(r, lam):
        return (1 - lam) * maths.reverse_kl(r, part) + lam * maths.reverse_kl(r, full)

    for lam in (0.2, 0.8):
        mixed = maths.anchored(part, full, lam, math.inf)
        logits = mixed.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cost(logits.log_softmax(-1), lam).sum(), logits)
        assert gradient.abs().max() < 1e-15
        for seed in range(5):
            assert cost((mixed + 0.2 * draw(seed + 5)).log_softmax(-1), lam) > cost(mixed, lam)


def anchored(loss=None, **parameters):
    """One gradient of ar_opd on the toy, whose memory is short: the reference stands right before the answer."""
    method = load("ar_opd")(skip=1, **parameters)
    asks = tuple(replace(ask, view=replace(ask.view, template="{answer}{prompt}{context}")) for ask in method.teach)
    term = replace(method.terms["match"], loss=loss or method.terms["match"].loss)
    method = replace(method, teach=asks, terms={"match": term})
    cast = toy_cast(method)
    rows, sequences = prepare(toy_groups(method, cast), method, cast, 0)
    return gradients(method, cast["student"], rows, sequences)


def test_ar_opd_is_one_view_or_the_other_at_its_ends():
    full, partial = (anchored(compared(maths.forward_kl, 0, teacher=who)[0]) for who in ("teacher", "partial"))
    assert distance(anchored(lam=0.0), partial) < 1e-14
    assert distance(anchored(lam=1.0, clip=1e9), full) < 1e-14
    assert distance(full, partial) > 1e-3


def test_with_all_of_the_reference_in_both_views_lam_does_not_matter():
    one, other = (anchored(rho=1.0, lam=lam) for lam in (0.2, 1.4))
    assert distance(one, other) < 1e-14
    assert distance(anchored(lam=0.2), anchored(lam=1.4)) > 1e-3


def test_a_residual_that_is_cut_is_counted():
    part, full = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.7, 0.2, 0.1], [0.1, 0.2, 0.7]))
    rows = table(full, partial=TableDist(part, torch.zeros(1, dtype=torch.long)))
    assert Anchored(0.8, 1.0).cut(student(draw(0, 3), 1), rows)["entries.cut"].tolist() == pytest.approx([0.8])


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.01, "one"), (0.25, "one two"), (0.4, "one two"), (0.45, "one two three"), (1.0, "one two three four")],
)
def test_the_partial_view_ends_with_a_whole_word_and_the_answer(share, shown):
    method = load("opsd")()
    (group, *_) = toy_groups(method, toy_cast(method))
    told = []
    group = replace(
        group,
        problem=replace(group.problem, prompt="q", privileged_context=" one two three four ", answer="4"),
        render=lambda messages: told.append(messages[-1]["content"]) or np.array([1]),
    )
    Begun("{prompt}|{context}|{answer}", share)(group.rollouts[0], group)
    assert told == [f"q|{shown}|4"]


ENGLISH = "First add three and four to get seven. Then multiply seven by two to get fourteen in total."
FORMULA = r"We have \frac{x^2-1}{x-1}=\frac{(x-1)(x+1)}{x-1}=x+1=5\Rightarrow\boxed{x=4} so done."
CODE = "def f(xs): return sum(int(d)for(x)in(xs)for(d)in(str(abs(x)))if(d!='0'))%9or(9if(any(xs))else(0)) # done"
LIST = "step one:3+4=7,then:7*2=14,then:14-5=9,then:9/3=3,finally:3+8=11 end"
CHINESE = "先把三和四相加，得到七，记作甲。\n然后把七乘以二，得到十四，记作乙。\n所以答案是十四，最后检查一遍。"


@pytest.mark.parametrize("text", [ENGLISH, FORMULA, CODE, LIST, CHINESE])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_partial_view_is_about_its_share_of_any_kind_of_text(text, share):
    shown = begun(text, share)
    assert text.startswith(shown) and share - 0.02 < len(shown) / len(text) < share + 0.1


def test_the_partial_view_cuts_no_word_and_shows_so_little_as_two_words_whole():
    assert begun(ENGLISH, 0.5).endswith("Then multiply")
    assert begun(FORMULA, 0.1).endswith(r"\frac")  # not in the middle of its name
    assert begun(LIST, 0.25).endswith(",then")
    assert begun("3+4=7;7*2=14;14-5=9", 0.5) == "3+4=7;7*2=14;14-5=9"  # one word, as far as blanks tell
    assert begun("seven fourteen", 0.1) == "seven fourteen" and begun("seven or fourteen", 0.1) == "seven"
    assert begun("", 0.5) == ""


def test_a_missing_answer_stops_before_step_1():
    method = load("ar_opd")()
    (group, *_) = toy_groups(method, toy_cast(method))
    with pytest.raises(DataError, match="toy-0 has no answer"):
        method.teach[0].view.check(replace(group.problem, answer=None))
    with pytest.raises(DataError, match="toy-0 has no privileged context"):
        method.teach[1].view.check(replace(group.problem, privileged_context=None))


# -------------------------------------------------------------------------------------------------------- sdpo


def test_the_weight_is_a_truncated_constant():
    lp = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    behaviour = torch.tensor([0.5, 0.1, 0.4], dtype=torch.float64).log()[:, None]  # one row each: ratios 1, 5, 1.25
    for old, weight, cut in zip(behaviour, (1.0, 2.0, 1.25), (0, 1, 0), strict=True):
        rows = table(draw(1, 1, 3).log_softmax(-1), behaviour=old)
        plain, _ = compared(maths.reverse_kl, 0)
        ours = Reweighted(plain, 2.0)
        assert ours.cut(student(lp, 1), rows)["weight.cut"].tolist() == [cut]
        assert torch.allclose(slope(ours, lp, rows), weight * slope(plain, lp, rows), atol=1e-15)


def test_only_answers_with_another_right_one_are_learned_from():
    method = load("sdpo")(k=3, n=4)
    cast = toy_cast(method)
    groups = toy_groups(method, cast)
    rewards = [[0, 0, 0, 0], [1, 0, 0, 0], [0.5, 1, 0, 0.4], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    groups = [
        replace(g, rollouts=tuple(r.tagged(reward=float(x)) for r, x in zip(g.rollouts, some, strict=True)))
        for g, some in zip(groups, rewards, strict=True)
    ]
    rows, _ = prepare(groups, method, cast, 0)
    learned = {int(one) for one in rows["sequence"][rows["keep"]]}
    assert learned == {5, 6, 7, 8, 9, 10, 11}  # the only right one has no sibling; 0.5 is right
    assert torch.equal(rows["masked.unshown"], ~rows["keep"])
    nobody = [replace(g, rollouts=tuple(r.tagged(reward=0.0) for r in g.rollouts)) for g in groups]
    assert not prepare(nobody, method, cast, 0)[0]["keep"].any()


def test_where_no_sibling_was_right_the_words_of_the_grader_are_shown():
    method = load("sdpo")(k=3, n=2)
    cast = toy_cast(method)
    groups = method.sample(cast, [Visit(problem, 0, 5) for problem in problems(3)], 0)
    grades = iter([0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    task = Graded("toy", [], [], Wordy(grades))
    told = []

    def render(messages):
        told.append(messages[-1]["content"])
        return cast["student"].render(messages)

    groups = [replace(group, render=render) for group in grade(task, groups)]
    rows, _ = prepare(groups, method, cast, 0)
    assert set(rows["sequence"][rows["keep"]].tolist()) == {0, 1, 2}  # two failures with words, one with a sibling
    assert [("too short" in text, "correct answer" in text) for text in told] == [(True, False)] * 2 + [(False, True)]
    rows, _ = prepare(groups, load("sdpo")(k=3, n=2, feedback=False), cast, 0)
    assert set(rows["sequence"][rows["keep"]].tolist()) == {2}


def test_words_about_an_answer_that_was_not_wrong_are_not_shown():
    """They would stand under a sentence that says it was; of an ungraded one nobody knows."""
    method = load("sdpo")(k=3, n=2)
    cast = toy_cast(method)
    grades = iter([0.49, 0.5, 1.0, math.nan, 1.0, 0.0])
    said = [
        replace(g, rollouts=tuple(replace(r.tagged(reward=next(grades)), feedback="7 tests") for r in g.rollouts))
        for g in method.sample(cast, [Visit(problem, 0, 5) for problem in problems(3)], 0)
    ]
    told = []
    said = [replace(g, render=lambda messages: told.append(messages[-1]["content"]) or np.array([2])) for g in said]
    rows, _ = prepare(said, method, cast, 0)
    assert not any("7 tests" in text for text in told)  # the two that were wrong are shown the one that was right
    assert set(rows["sequence"][rows["masked.unshown"]].tolist()) == {1, 2, 4}
    view = Feedback("{context}", threshold=0.5)
    shown = [bool(view(rollout, group)) for group in said for rollout in group.rollouts]
    assert shown == [True, False, False, False, False, True]


class Wordy:
    """Grades as it is told, and has words for the wrong answers of the first problem only."""

    def __init__(self, grades):
        self.grades = grades

    def __call__(self, problem, text):
        return next(self.grades)

    def feedback(self, problem, text):
        return "too short" if problem.id == "toy-0" else ""


def test_a_demonstration_is_shown_without_its_thoughts():
    method = load("sdpo")(n=2)
    (group, *_) = toy_groups(method, toy_cast(method))
    told = []
    first, second = (replace(r, text="<think>a\nb</think> c").tagged(reward=1.0) for r in group.rollouts)
    group = replace(group, rollouts=(first, second), render=lambda m: told.append(m[-1]["content"]) or np.array([1]))
    for shows in (without_thoughts, written):
        Sibling("{context}", shows=shows)(first, group)
    assert told == ["c", "<think>a\nb</think> c"]


@pytest.mark.parametrize(
    "text, shown",
    [
        ("<think>a b</think>\n42", "42"),
        ("a b</think>\n42", "42"),  # the chat template has opened it
        ("a</think> b <think>c</think> 42", "b 42"),
        ("x <think>a</think> 42", "x 42"),
        (" 42", " 42"),
        ("42 <think>was that", "42 "),
        ("<think>a</think>b<think>cut off", "b"),
        ("<think>so far", None),
        ("so far</think>\n", None),
    ],
)
def test_only_what_is_no_thought_is_shown_of_a_sibling(text, shown):
    method = load("sdpo")(n=2)
    rollout = toy_groups(method, toy_cast(method), 1)[0].rollouts[0]
    assert without_thoughts(replace(rollout, text=text)) == shown


def test_the_divergence_is_the_released_one():
    """alpha KL(q||m) + (1 - alpha) KL(p||m), m = alpha q + (1 - alpha) p, over the best K and one bucket."""
    z, q, alpha, k = draw(0), draw(1, 1, V).log_softmax(-1), 0.3, 3
    p = z.softmax(-1)
    best = p.topk(k).indices
    inside = [torch.cat([x[best], (1 - x[best].sum())[None]]) for x in (p, q[0].exp())]
    m = alpha * inside[1] + (1 - alpha) * inside[0]
    to_p, to_q = ((x * (x / m).log()).sum() for x in inside)
    loss = load("sdpo")(alpha=alpha, k=k).terms["match"].loss
    found = loss(student(z, 1), table(q, behaviour=p.log()[:1]))
    assert found.item() == pytest.approx(float(alpha * to_q + (1 - alpha) * to_p), abs=1e-14)


def test_a_support_inside_another_loss_is_known_before_step_1():
    assert load("sdpo")().support == 100
    assert load("opsd")(tau=0.0, k=50, loss_temperature=1.1).support == 50


def test_rewards_are_asked_for():
    assert load("sdpo")().needs_reward and not load("opsd")().needs_reward
    with pytest.raises(OpdError):
        load("sdpo")(n=1)
