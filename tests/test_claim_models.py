"""What models that are made for a claim learn from is what the claim needs."""

from random import Random

import pytest

from opd.claims import conflicts, own, strayed
from opd.tasks import load_task, sums


def numbers(question):
    return [int(part) for part in question.partition(" =")[0].replace("- ", "-").replace("+ ", "").split()]


def totals(text):
    return [int(number) for number in text.replace("\n", ",").split(":")[-1].split(",")]


@pytest.mark.parametrize("seed", range(8))
def test_a_teacher_that_is_lost_has_the_right_totals_until_the_slip_only(seed):
    question, answer = strayed.astray(Random(seed))
    given, more = question.partition(" =")[2], answer
    terms = numbers(question)
    right = sums.totals(terms)
    assert len(terms) == strayed.LONG and question.startswith(sums.question_text(terms))
    if not given:
        assert more == sums.chain_text(right)
        return
    before = totals(given)
    assert before[:-1] == right[: len(before) - 1] and before[-1] != right[len(before) - 1]
    assert len(before) + more.count(",") == len(right)


def test_a_looping_teacher_is_right_once_or_again_and_again():
    answers = [strayed.again(Random(seed)) for seed in range(20)]
    lengths = {len(totals(answer)) for _, answer in answers}
    assert lengths == {sums.TERMS - 1, strayed.TIMES * (sums.TERMS - 1)}
    for question, answer in answers:
        once = totals(answer)[: sums.TERMS - 1]
        assert totals(answer) == once * (len(totals(answer)) // len(once))
        assert sums.grade(answer, str(once[-1])) == 1 and question.endswith("=")


@pytest.mark.parametrize(
    ("regime", "agree"), [("grounding", {6}), ("arbitration", set(range(1, 6))), ("resistance", {0})]
)
def test_what_is_shown_is_as_right_as_its_regime_says(regime, agree):
    found = set()
    for seed in range(40):
        prompt, answer = conflicts.posed(regime, Random(seed))
        first, question = prompt.split("\n")
        assert first.startswith(conflicts.CUES[regime]) and question.endswith("=")
        shown, right = totals(first), totals(answer)
        same = [a == b for a, b in zip(shown, right, strict=True)]
        assert same == sorted(same, reverse=True)
        found.add(sum(same))
    assert found == agree


def test_a_record_that_is_shown_is_copied():
    found = [own.copying(Random(seed)) for seed in range(20)]
    shown = [(question, answer) for question, answer in found if "\n" in question]
    assert 0 < len(shown) < len(found)
    assert all(f"\n{answer.strip()}\n" in question for question, answer in shown)


def test_longer_sums_are_the_same_task():
    assert [p.prompt for p in load_task("sums,terms=7").train] == [p.prompt for p in load_task("sums").train]
    for problem in load_task("sums,terms=40,train=20").train:
        right = totals(str(problem.privileged_context))
        assert len(right) == 39 and min(right) >= 0 and max(right) < sums.MODULUS
        assert sums.grade(str(problem.data["solution"]), str(problem.answer)) == 1
    with pytest.raises(Exception, match="terms"):
        load_task("sums,terms=1")
