"""A teacher that is asked about the student's best tokens alone teaches what it teaches when it says everything."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from opd import maths, recipes
from opd.contract import anatomy, check, distance, gradients, toy_cast, toy_groups
from opd.dist import TopDist
from opd.errors import TeacherError
from opd.method import Updates
from opd.step import gradient, prepare
from opd.teach import check_capabilities

K = 3
VARIANTS = [
    ("local_support", {}),
    ("local_support", {"sampled": True}),
    ("local_support", {"outside": "tail"}),
    ("local_support", {"outside": "drop", "sampled": True}),
    ("local_support", {"outside": "sampled_tail", "cap": 0.9}),
    ("local_support", {"outside": "published_sampled_tail"}),
    ("rethinking", {"form": "released"}),
    ("rethinking", {"form": "released", "weight": "teacher_p", "dual": 0.0}),
    ("rethinking", {}),
    ("rethinking", {"reward": 0.5}),
    ("opcd", {}),
    ("opcd", {"renorm": True}),
]


def method_of(name, only_named=True, **options):
    source = {"source": "student"} if name == "local_support" else {}
    return recipes.load(name)(**{"k": K, **source, **options, "only_named": only_named})


def batch(method):
    """The cast, and the table of a batch that the student is to learn from."""
    cast = toy_cast(method)
    return cast, *prepare(toy_groups(method, cast), method, cast, 0)


def moved(student):
    """The student after an update that changed which tokens it finds best."""
    with torch.no_grad():
        noise = torch.Generator().manual_seed(5)
        student.head += 0.7 * torch.randn(student.head.shape, dtype=torch.float64, generator=noise)


def both(name, options, move=False, **more):
    """Loss and gradient of one update, the teacher asked for everything and about the named tokens."""
    for only_named in (False, True):
        method = method_of(name, only_named, **{**options, **more})
        cast, rows, sequences = batch(method)
        if move:
            moved(cast["student"])
        loss = gradient(cast["student"], rows, sequences, method).loss
        yield loss, gradients(method, cast["student"], rows, sequences)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_the_first_update_of_a_batch_is_the_same(name, options):
    (loss, slope), (named, its) = both(name, options, **({} if name == "opcd" else {"updates": 1}))
    assert abs(loss - named) < 1e-12 and distance(slope, its) < 1e-12
    assert max(float(g.abs().max()) for g in slope.values()) > 1e-3


@pytest.mark.parametrize("name", ["local_support", "rethinking"])
def test_later_updates_keep_the_support_of_the_start_by_enumeration(name):
    method = method_of(name, updates=2)
    cast, rows, sequences = batch(method)
    whole = replace(method_of(name, False), updates=Updates())
    _, everything, _ = batch(whole)
    start = rows.dist("own").top(K)
    moved(cast["student"])
    contexts = [r for g in toy_groups(method, toy_cast(method)) for r in g.rollouts]
    now = cast["student"].read(contexts, whole.teach[0].want).dist
    lp, lq = now.logprobs(), everything.dist("teacher").logprobs()
    assert not torch.equal(start.sort(-1).values, now.top(K).sort(-1).values), "the support of now is another one"
    expected = lambda ids: maths.reverse_kl(*(x.gather(-1, ids).log_softmax(-1) for x in (lp, lq))).mean()
    loss = gradient(cast["student"], rows, sequences, method).loss
    assert abs(loss - float(expected(start))) < 1e-12
    student = cast["student"]
    assert abs(gradient(student, everything, sequences, whole).loss - float(expected(now.top(K)))) < 1e-12
    assert abs(float(expected(start) - expected(now.top(K)))) > 1e-3


@pytest.mark.parametrize("options", [{"form": "released"}, {"form": "released", "weight": "none"}])
def test_a_support_that_is_that_of_the_start_anyway_is_the_same_at_every_update(options):
    (loss, slope), (named, its) = both("rethinking", options, move=True, updates=2)
    assert abs(loss - named) < 1e-12 and distance(slope, its) < 1e-12


@pytest.mark.parametrize(("name", "options"), VARIANTS[1::3])
def test_it_keeps_the_contract(name, options):
    assert len([what for what, _ in check(partial(method_of, name, **options))]) == 8


@pytest.mark.parametrize("name", ["local_support", "rethinking", "opcd"])
def test_the_teacher_is_asked_for_no_more_and_what_it_says_is_measured(name):
    seen = anatomy(partial(method_of, name))
    assert seen.passes["teacher reads"] == seen.passes["student reads"] == 1
    assert set(seen.measures) == {"student.chosen", "student.entropy"} and "teacher.chosen" in seen.writes
    _, rows, _ = batch(method_of(name))
    assert isinstance(rows.dist("teacher"), TopDist) and rows["teacher.gathered"].shape[1] == K
    assert torch.equal(rows.dist("teacher").ids, rows["own.ids"])


def test_a_teacher_that_answers_about_fewer_named_tokens_is_refused():
    method = method_of("rethinking")
    cast = toy_cast(method)
    cast["teacher"].most = {"topk": 1, "gather": K}
    check_capabilities(method, cast)
    cast["teacher"].most["gather"] = K - 1
    with pytest.raises(TeacherError, match=rf"fewer named tokens.*K={K - 1}, expected K={K}"):
        check_capabilities(method, cast)
    cast["teacher"].can = frozenset({"chosen", "topk"})
    with pytest.raises(TeacherError, match=r"can't answer .'gather'.*--teacher-misses"):
        check_capabilities(method, cast)
