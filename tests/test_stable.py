"""Solutions beside answers: whose rows they are, who reads them, what they weigh, and what is measured about them."""

import numpy as np
import pytest
import torch
from models import engine
from test_loop import ToyTask, training

from opd.build import check_parts, check_solutions
from opd.contract import distance, gradients, toy_cast, toy_groups
from opd.doctor.case import Case
from opd.errors import DataError, MethodError, SettingError
from opd.lab.toy import STOP, ToyModel, problems
from opd.loop import one_step, repetitive
from opd.method import Method, Term
from opd.parts.losses import PolicyGradient
from opd.parts.means import token_mean
from opd.parts.sample import WithSolutions
from opd.recipes.iw_opd import iw_opd
from opd.recipes.sft import sft
from opd.recipes.stable_opd import stable_opd
from opd.rollout import DATA, STUDENT, Problem, Visit
from opd.step import prepare


def table(method, cast=None):
    cast = cast or toy_cast(method)
    return prepare(toy_groups(method, cast), method, cast, 0), cast


def test_one_solution_per_visit_in_a_group_of_its_own():
    method, student = stable_opd(n=3), ToyModel(seed=1)
    groups = method.sample({"student": student}, [Visit(problem, 0, 5) for problem in problems(4)], 0)
    fresh, golden = groups[:4], groups[4:]
    assert [len(group.rollouts) for group in groups] == [3] * 4 + [1] * 4
    assert all(rollout.written for group in fresh for rollout in group.rollouts)
    for group, problem in zip(golden, problems(4), strict=True):
        (rollout,) = group.rollouts
        assert set(rollout.author[rollout.author > 0]) == {DATA} and not rollout.written
        assert rollout.text == problem.data["solution"] and rollout.decisions[-1] == STOP
        assert rollout.tokens[: -rollout.n].tolist() == student.render(problem.messages).tolist()


def test_nobody_reads_a_solution_and_only_its_term_learns_from_it():
    (rows, _), _ = table(stable_opd())
    golden = rows["author"] == DATA
    assert torch.equal(rows["golden"], golden) and torch.equal(rows["own"], rows["author"] == STUDENT)
    assert torch.equal(rows["teacher.shown"], ~golden) and torch.equal(rows["reference.shown"], ~golden)
    assert torch.equal(rows["advantage"].isnan(), golden) and golden.any()


def test_sft_copies_the_solutions_when_it_is_told_where_they_stand():
    """No teacher is opened, and the loss is the cross-entropy on the texts that came with the problems."""
    method = sft(solution="solution")
    assert method.casting == {"teacher": "none"} and not method.teach
    cast = {"student": ToyModel(seed=1)}
    groups = method.sample(cast, [Visit(problem, 0, 5) for problem in problems(4)], 0)
    assert [rollout.text for group in groups for rollout in group.rollouts] == [p.data["solution"] for p in problems(4)]
    rows, sequences = prepare(toy_groups(method, cast), method, cast, 0)
    alone = gradients(method, cast["student"], rows, sequences)
    beside = stable_opd(gold=1.0, near=0.0)
    (rows, sequences), cast = table(beside)
    both = gradient_of("gold", beside, rows, sequences, cast["student"])
    assert distance(alone, both) < 1e-12
    assert one_step(training(method)).metrics["length"] > 0
    with pytest.raises(SettingError, match="fresh"):
        sft(solution="solution", fresh=True)


def gradient_of(name, method, rows, sequences, student):
    alone = Method(sample=method.sample, terms={name: method.terms[name]})
    return gradients(alone, student, rows, sequences)


def test_every_term_has_a_denominator_of_its_own():
    """The three gradients add up, and that of the solutions is the cross-entropy's, however many answers there are."""
    method = stable_opd(gold=0.3, near=0.2)
    (rows, sequences), cast = table(method)
    student = cast["student"]
    whole = gradients(method, student, rows, sequences)
    parts = [gradient_of(name, method, rows, sequences, student) for name in method.terms]
    assert len(parts) == 3
    for name, gradient in whole.items():
        assert torch.allclose(gradient, sum(part[name] for part in parts), atol=1e-14)
    alone = rows.index(rows["golden"])
    logp = student._forward(
        [sequences[int(s)] for s in alone["sequence"].unique()],
        [alone["position"][alone["sequence"] == s].numpy() for s in alone["sequence"].unique()],
        (),
    )
    chosen = (logp.hidden @ logp.head.T).log_softmax(-1).gather(1, alone["token"][:, None])
    student.zero_grad()
    (-0.3 * chosen.mean()).backward()
    for name, p in student.named_parameters():
        assert torch.allclose(parts[2][name], p.grad, atol=1e-14)


def test_without_its_two_terms_it_is_clipped_distillation():
    bare = stable_opd(gold=0.0, near=0.0)
    assert bare.roles == ["student", "teacher"] and list(bare.terms) == ["advantage"]
    (rows, sequences), cast = table(bare)
    plain = Method(sample=bare.sample, terms={"advantage": Term(PolicyGradient(0.2, "untruncated"), token_mean)})
    one, other = (gradients(m, cast["student"], rows, sequences) for m in (bare, plain))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert bare.terms["advantage"].loss == iw_opd().terms["advantage"].loss


def test_a_row_that_is_masked_is_not_learned_from_by_any_term():
    """A run's masks come before the method's credit, and both marks heed them."""
    method = stable_opd()
    (rows, _), _ = table(method)
    masked = method.credit(rows.plus(keep=rows["row"] > 0))
    for name in ("own", "golden"):
        assert torch.equal(masked[name], rows[name] & (rows["row"] > 0)) and masked[name].any()


def test_numbers_of_a_batch_are_about_what_was_written():
    t = training(stable_opd(n=2))
    batch = one_step(t)
    written = [rollout for group in batch.groups for rollout in group.rollouts if rollout.written]
    assert len(written) == 8 and len(batch.groups) == 8
    assert batch.metrics["tokens"] == sum(rollout.n for rollout in written) < len(batch.rows)
    assert batch.metrics["truncated"] == np.mean([rollout.end == "length" for rollout in written])
    assert batch.metrics["reward"] == np.mean([t.task.grade(r.problem, r.text) for r in written])
    assert batch.metrics["length.max"] == max(rollout.n for rollout in written) < float(batch.rows["length"].max())
    assert {"loss.advantage", "loss.near", "loss.gold", "repetitive"} <= set(batch.metrics)
    assert np.isfinite(batch.metrics["clipped"]) and np.isfinite(batch.metrics["reverse_kl"])
    golden = batch.rows["golden"]
    assert batch.rows["reverse_kl"][golden].isnan().all() and not batch.rows["reverse_kl"][~golden].isnan().any()


def test_repetition_is_what_compresses_more_than_tenfold():
    assert repetitive("wait, let me check. " * 500)
    assert repetitive(" ".join(map(str, range(3000))) + "no " * 4000), "only the end is looked at"
    assert not repetitive(" ".join(map(str, range(3000))))
    assert not repetitive("no " * 20) and not repetitive("")


def test_a_problem_without_a_solution_stops_before_the_first_step():
    method, cast = stable_opd(), toy_cast(stable_opd())
    task = ToyTask()
    check_solutions(method, task, cast)
    task.train = [*problems(2), Problem("bare", "ab", "2", data={"other": "x", "number": 3})]
    with pytest.raises(DataError, match=r"problem bare has no solution in 'solution'.*got \['answer', 'other'\]"):
        check_solutions(method, task, cast)
    task.train = [Problem("bare", "ab", "2", "the reference")]
    for name, text in (("answer", "2"), ("privileged_context", "the reference")):
        check_solutions(stable_opd(solution=name), task, cast)
        groups = WithSolutions(name, fresh=stable_opd().sample.fresh)(cast, [Visit(task.train[0], 0, 1)], 0)
        assert groups[1].rollouts[0].text == text


def test_a_solution_that_does_not_fit_and_a_student_that_cannot_spell_are_refused(tmp_path):
    student = engine(tmp_path, context=16)
    task = ToyTask()
    task.train = [Problem("long", "1+1=", data={"solution": "1" * 20})]
    with pytest.raises(DataError, match=r"got 2[0-9] tokens, expected at most 16"):
        check_solutions(stable_opd(), task, {"student": student})
    policy = type("Policy", (), {"name": "table"})()
    with pytest.raises(MethodError, match="table cannot be given a solution"):
        check_parts(stable_opd(near=0.0), {"student": policy, "teacher": None})


def test_a_model_spells_as_it_would_have_written(tmp_path):
    student = engine(tmp_path)
    ids = student.encode("12 + 3")
    assert student.decode(ids) == "12 + 3" and int(ids[-1]) == student.tokenizer.eos_token_id
    assert (ids[:-1] != ids[-1]).all() and ids.dtype == np.int32


def test_the_doctor_looks_at_the_answers_and_not_at_the_solutions():
    case = Case(None, stable_opd(n=7), ToyTask(), {})
    assert case.writing.n == 7 and not case.shown_more
