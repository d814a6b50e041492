"""Asks: one pass per reader and view, the same decisions, and nobody asked for what he can't answer."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from opd.contract import toy_cast, toy_groups
from opd.errors import AlignmentError, DataError, MethodError, TeacherError
from opd.lab.toy import ToyModel, problems
from opd.method import Ask, Method, Term
from opd.parts.losses import CrossEntropy
from opd.parts.means import token_mean
from opd.parts.sample import OneTurn
from opd.parts.views import Privileged, Sibling, told
from opd.protocols import Want
from opd.rollout import Visit
from opd.rows import Rows
from opd.teach import check_capabilities, reads, teach
from opd.teachers.renamed import Renamed

TERMS = {"copy": Term(CrossEntropy(), token_mean)}


def method(*asks):
    return Method(sample=OneTurn(2), teach=asks, terms=TERMS)


def table(m):
    cast = toy_cast(m)
    groups = toy_groups(m, cast)
    return cast, groups, Rows.of(groups, dtype=torch.float64)


def test_three_asks_of_one_reader_are_one_pass():
    asks = (
        Ask("a", "teacher", Want(chosen=True)),
        Ask("b", "teacher", Want(topk=3)),
        Ask("c", "teacher", Want(dist=True)),
    )
    cast, groups, rows = table(method(*asks))
    rows = teach(asks, groups, rows, cast)
    assert cast["teacher"].calls["read"] == 1
    assert torch.equal(rows["a.chosen"], rows.dist("c").chosen)
    assert torch.equal(rows["b.ids"], rows.dist("c").top(3))


def test_ids_that_the_student_names_are_gathered_from_the_teacher():
    asks = (Ask("theirs", "teacher", Want(gather="mine.ids")), Ask("mine", "student", Want(topk=3)))
    cast, groups, rows = table(method(*asks))
    rows = teach(asks, groups, rows, cast)
    whole = teach((Ask("all", "teacher", Want(dist=True)),), groups, rows, cast).dist("all")
    assert torch.equal(rows["theirs.gathered"], whole.at(rows["mine.ids"]))
    assert [read.who for read in reads(asks)] == ["student", "teacher"]


@dataclass(frozen=True)
class Meddling:
    at: int
    drop: bool = False

    def __call__(self, rollout, group):
        tokens, author = rollout.tokens.copy(), rollout.author
        if self.drop:
            return [replace(rollout, tokens=tokens[:-1], author=author[:-1], columns={})]
        tokens[rollout.positions[self.at]] += 1
        return [replace(rollout, tokens=tokens)]


def test_a_view_that_changes_a_decision_is_named_with_rollout_and_position():
    ask = Ask("teacher", "teacher", Want(chosen=True), view=Meddling(1))
    cast, groups, rows = table(method(ask))
    position = int(groups[0].rollouts[0].positions[1])
    with pytest.raises(AlignmentError, match=rf"toy-0 at decision 1 \(token position {position}\)"):
        teach((ask,), groups, rows, cast)


def test_a_view_that_loses_a_decision_is_an_error():
    ask = Ask("teacher", "teacher", Want(chosen=True), view=Meddling(0, drop=True))
    cast, groups, rows = table(method(ask))
    with pytest.raises(AlignmentError, match="got token nothing"):
        teach((ask,), groups, rows, cast)


def test_privileged_view_shows_more_before_the_same_decisions():
    view = Privileged("{prompt} {context}")
    cast, groups, rows = table(method())
    rollout = groups[1].rollouts[0]
    (context,) = view(rollout, groups[1])
    assert np.array_equal(context.decisions, rollout.decisions)
    assert len(context.tokens) > len(rollout.tokens)
    ask = Ask("teacher", "teacher", Want(chosen=True), view=view)
    told = teach((ask,), groups, rows, cast)["teacher.chosen"]
    plain = teach((Ask("teacher", "teacher", Want(chosen=True)),), groups, rows, cast)["teacher.chosen"]
    assert not torch.allclose(told, plain)


def test_braces_in_a_context_stay_as_they_are():
    assert (
        told(({"role": "user", "content": "x{0}"},), "{prompt}|{context}", '{"a": 1}')[0]["content"] == 'x{0}|{"a": 1}'
    )


def test_a_missing_reference_is_named():
    view = Privileged("{prompt} {context}")
    _, groups, _ = table(method())
    bare = replace(groups[0], problem=replace(groups[0].problem, privileged_context=None))
    with pytest.raises(DataError, match="toy-0"):
        view(bare.rollouts[0], bare)


def test_rows_without_evidence_are_not_kept_and_counted():
    only_even = lambda rollout, group: [rollout] if group.problem.id in ("toy-0", "toy-2") else []
    ask = Ask("teacher", "teacher", Want(chosen=True, dist=True), view=only_even)
    cast, groups, rows = table(method(ask))
    rows = teach((ask,), groups, rows, cast)
    expected = torch.isin(rows["group"], torch.tensor([0, 2]))
    assert torch.equal(rows["keep"], expected) and torch.equal(rows["masked.unshown"], ~expected)
    assert torch.equal(torch.isnan(rows["teacher.chosen"]), ~expected)
    plain = teach((Ask("all", "teacher", Want(dist=True)),), groups, rows, cast)
    kept = rows["keep"]
    assert torch.allclose(
        rows.dist("teacher").index(kept).logprobs(), plain.dist("all").index(kept).logprobs(), atol=1e-14
    )


def test_what_a_teacher_cannot_answer_stops_before_the_first_step_and_names_both():
    asks = (Ask("teacher", "teacher", Want(dist=True)),)
    teacher = ToyModel(name="scorer")
    teacher.can = frozenset({"chosen"})
    with pytest.raises(TeacherError, match=r"scorer.*dist.*'teacher'.*chosen"):
        check_capabilities(method(*asks), {"student": ToyModel(), "teacher": teacher})


def test_nobody_in_the_role_is_named():
    with pytest.raises(MethodError, match="judge"):
        check_capabilities(method(Ask("x", "judge", Want(chosen=True))), {"student": ToyModel()})


def test_an_unknown_column_names_the_nearest():
    _, _, rows = table(method())
    with pytest.raises(MethodError, match="behaviour"):
        rows["behavior"]


LABEL = Ask("teacher", "teacher", Want(label=True))


def labelled(*asks, visit=0, n=2):
    m = Method(sample=OneTurn(n), teach=asks, terms=TERMS)
    cast = toy_cast(m)
    groups = m.sample(cast, [Visit(problem, visit, 5) for problem in problems(20)], 0)
    return teach(asks, groups, Rows.of(groups, dtype=torch.float64), cast)


def test_a_label_is_drawn_from_the_teacher_and_depends_on_the_visit_alone():
    rows = labelled(LABEL, n=20)
    assert "teacher" not in rows, "the distribution is not kept when only a label was asked for"
    assert torch.equal(rows["teacher.label"], labelled(LABEL, n=20)["teacher.label"])
    assert not torch.equal(rows["teacher.label"], rows["token"]), "it is not what was written"
    fewer = labelled(LABEL, n=3)  # the same samples among fewer
    same = torch.cat([rows["teacher.label"][rows["sequence"] == s // 3 * 20 + s % 3] for s in range(60)])
    assert torch.equal(fewer["teacher.label"], same)


def test_labels_are_as_frequent_as_the_teacher_finds_them_likely():
    both = labelled(LABEL, Ask("whole", "teacher", Want(dist=True)), n=60)
    expected = both.dist("whole").logprobs().exp()
    counted = torch.nn.functional.one_hot(both["teacher.label"], 7).double()
    error = (expected * (1 - expected)).sum(0).sqrt()
    assert bool(((counted - expected).sum(0).abs() < 4 * error).all())
    own = torch.nn.functional.one_hot(both["token"], 7).double()
    assert bool(((own - expected).sum(0).abs() > 4 * error).any()), "the student's own words would not pass"


def test_a_rollout_without_a_seed_cannot_be_labelled():
    cast, groups, rows = table(method(LABEL))
    bare = [replace(g, rollouts=tuple(replace(r, seed=None) for r in g.rollouts)) for g in groups]
    with pytest.raises(MethodError, match="without a seed"):
        teach((LABEL,), bare, rows, cast)


def test_two_views_of_one_reader_are_one_pass_and_answer_as_two():
    asks = (
        Ask("plain", "teacher", Want(chosen=True)),
        Ask("told", "teacher", Want(chosen=True), Privileged("{prompt}{context}")),
    )
    cast, groups, rows = table(method(*asks))
    together = teach(asks, groups, rows, cast)
    assert cast["teacher"].calls["read"] == 1
    for ask in asks:
        alone = teach((ask,), groups, rows, cast)
        assert torch.equal(alone[f"{ask.into}.chosen"], together[f"{ask.into}.chosen"])
    assert not torch.allclose(together["plain.chosen"], together["told.chosen"])


def answered(*rewards):
    """One group of so many rollouts with these rewards and texts 0, 1, ..."""
    m = Method(sample=OneTurn(len(rewards)), terms=TERMS)
    cast = toy_cast(m)
    (group,) = m.sample(cast, [Visit(problems(1)[0], 0, 5)], 0)
    rollouts = tuple(
        replace(one.tagged(reward=reward), text=str(number))
        for number, (one, reward) in enumerate(zip(group.rollouts, rewards, strict=True))
    )
    return cast, replace(group, rollouts=rollouts)


@dataclass(frozen=True)
class Spy(Sibling):
    """Gives the words that the reader would be shown instead of ids."""

    def words(self, rollout, group):
        seen = []
        render = lambda messages: seen.append(messages[-1]["content"]) or group.render(messages)
        self(rollout, replace(group, render=render))
        return seen


def test_a_sibling_is_of_the_wanted_outcome_never_itself_and_drawn_by_the_rollouts_seed():
    _, group = answered(1.0, 0.0, 1.0, 0.0, 1.0)
    for number, rollout in enumerate(group.rollouts):
        shown = [Spy("{context}", "right", k).words(rollout, group) for k in range(3)]
        right = {"0", "2", "4"} - {str(number)}
        assert {words[0] for words in shown if words} == right
        assert shown == [Spy("{context}", "right", k).words(rollout, group) for k in range(3)]
        wrong = [Spy("{context}", "wrong", k).words(rollout, group) for k in range(2)]
        assert {words[0] for words in wrong if words} == {"1", "3"} - {str(number)}


def test_an_optional_ask_keeps_its_rows_and_says_where_nothing_was_shown():
    cast, group = answered(1.0, 0.0, 0.0)
    rows = Rows.of([group], dtype=torch.float64)
    view = Sibling("{prompt}{context}", "right")
    filled = teach((Ask("told", "teacher", Want(chosen=True, dist=True), view, optional=True),), [group], rows, cast)
    assert filled["keep"].all()
    assert torch.equal(filled["told.shown"], filled["sequence"] > 0)  # the only right one has no right sibling
    assert torch.equal(filled["told.chosen"].isnan(), filled["sequence"] == 0)
    assert len(filled.dist("told").chosen) == len(filled)
    strict = teach((Ask("told", "teacher", Want(chosen=True), view),), [group], rows, cast)
    assert torch.equal(strict["keep"], strict["sequence"] > 0)


def test_what_leaves_the_reader_no_room_is_not_shown_or_names_the_problem():
    cast, group = answered(1.0, 1.0, 0.0)
    first, second, third = group.rollouts
    group = replace(group, rollouts=(first, replace(second, text="a long answer"), third))
    rows = Rows.of([group], dtype=torch.float64)
    ask = Ask("told", "teacher", Want(chosen=True, dist=True), Sibling("{prompt}{context}", "right"), optional=True)
    sizes = [len(context.tokens) for one in group.rollouts for context in ask.view(one, group)]
    before = teach((ask,), [group], rows, cast)
    cast["teacher"].context = max(sizes) - 1
    filled = teach((ask,), [group], rows, cast)
    out = torch.tensor([sizes[s] == max(sizes) for s in rows["sequence"].tolist()])
    assert torch.equal(filled["told.unfit"], out) and not before["told.unfit"].any() and not out.all()
    assert torch.equal(filled["told.shown"], ~out) and filled["keep"].all()
    assert torch.allclose(filled["told.chosen"][~out], before["told.chosen"][~out], atol=1e-12, rtol=0)
    elsewhere = cast | {"teacher": Renamed(cast["teacher"], 1, 2)}
    assert torch.equal(teach((ask,), [group], rows, elsewhere)["told.unfit"], out)
    with pytest.raises(DataError, match=f"shown of problem {group.problem.id} .* do not fit the context of teacher"):
        teach((replace(ask, optional=False),), [group], rows, cast)
    as_written = teach((Ask("plain", "teacher", Want(chosen=True), optional=True),), [group], rows, cast)
    assert as_written["plain.shown"].all()  # whether the answer itself fits is for the reader to say


def test_an_optional_ask_that_shows_nothing_at_all_stops_nobody():
    cast, group = answered(0.0, 0.0)
    rows = Rows.of([group], dtype=torch.float64)
    ask = Ask("told", "teacher", Want(chosen=True, dist=True), Sibling("{context}", "right"), optional=True)
    filled = teach((ask,), [group], rows, cast)
    assert not filled["told.shown"].any() and filled["keep"].all() and filled["told.chosen"].isnan().all()
    with pytest.raises(MethodError, match="nothing in the whole batch"):
        teach((replace(ask, optional=False),), [group], rows, cast)
