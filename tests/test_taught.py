"""Worlds made for a claim: what is drawn is what the claim needs, and what is made is a model, or a task."""

from functools import partial
from random import Random

import torch

from opd.claims import taught
from opd.engines.hf_load import load_model
from opd.tasks import load_task


def quiet(text):
    pass


def test_counting_ends_where_the_question_says():
    for seed in range(20):
        question, answer = taught.counting(Random(seed))
        first, last = (int(number) for number in question.removesuffix(" =").split(" .. "))
        assert [int(number) for number in answer.split(",")] == list(range(first, last + 1))


def test_two_ways_of_writing_are_equally_likely_and_never_mixed():
    answers = [taught.either(Random(seed))[1] for seed in range(200)]
    assert all((";" in answer) != ("," in answer) for answer in answers)
    assert 70 < sum(";" in answer for answer in answers) < 130


def test_records_slip_as_often_as_they_should_and_slips_are_seen(tmp_path):
    taught.posing(tmp_path, quiet, taught.STUDENT, taught.record, 4, 1e-3, taught.record)
    task = load_task(f"jsonl:{tmp_path}/problems.jsonl,held_out=100,grader=opd.claims.taught:is_record")
    problem = task.held_out[0]
    assert task.grade(problem, " " + str(problem.answer)) == 1 and task.grade(problem, str(problem.answer)[:-1]) == 0
    right, slipped = [taught.record(Random(seed)) for seed in range(300)], taught.slipping(0.1)
    changed = [slipped(Random(seed)) for seed in range(300)]
    form = sum(c in taught.FORM for _, answer in right for c in answer[1:])
    pairs = [
        (a, b) for (_, one), (_, other) in zip(right, changed, strict=True) for a, b in zip(one, other, strict=True)
    ]
    assert abs(sum(a != b for a, b in pairs) / form - 0.1) < 0.02
    assert all(a in taught.FORM for a, b in pairs if a != b)


def test_a_bad_head_leaves_the_states_alone(tmp_path, monkeypatch):
    grown = partial(taught.taught, start=taught.STUDENT, draw=taught.chain, steps=4, rate=1e-3)
    monkeypatch.setitem(taught.TAUGHT, "grown", grown)
    grown(tmp_path / "grown", quiet)
    taught.bad_head(tmp_path / "bad", quiet)
    good, bad = (load_model(str(tmp_path / name), torch.float32, "cpu") for name in ("grown", "bad"))
    ids = torch.tensor([[5, 6, 7, 8]])
    a, b = (model(ids, output_hidden_states=True) for model in (good, bad))
    assert torch.equal(a.hidden_states[-1], b.hidden_states[-1])
    assert not torch.allclose(a.logits, b.logits, atol=0.1)
