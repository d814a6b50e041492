"""Evaluation: closed forms, a writer that answers from a table, and the KL against numbers worked out by hand."""

import json
import math
import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from opd.dist import TableDist
from opd.errors import DataError, SettingError, TeacherError
from opd.evaluate import clustered, evaluate, pass_at_k, wilson
from opd.protocols import Answer
from opd.rollout import End, Piece, Problem
from opd.tasks.graders import Graded, named

LETTERS = "abcdefgh0123456789."
V = len(LETTERS)


def encode(text):
    return np.array([LETTERS.index(letter) for letter in text], np.int32)


def bigram(seed):
    return torch.randn(V, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)


@dataclass
class Table:
    """Writes what its table says: greedily a prompt's first answer, else one chosen by the seed. Reads as a bigram."""

    answers: dict[str, list[str]]
    table: torch.Tensor = field(default_factory=lambda: bigram(0))
    can: frozenset[str] = frozenset({"dist", "chosen"})
    name: str = "table"
    live: bool = False
    seeds: list[int] = field(default_factory=list)

    def render(self, messages):
        return encode(messages[-1]["content"])

    def decode(self, tokens):
        return "".join(LETTERS[token] for token in tokens).removesuffix(".")

    def write(self, prompts, sampling, seeds):
        self.seeds += [seed for some in seeds for seed in some]
        texts = [self.answers[self.decode(prompt)] for prompt in prompts]
        return [
            [self.piece(prompt, some[0 if sampling.greedy else seed % len(some)]) for seed in own]
            for prompt, some, own in zip(prompts, texts, seeds, strict=True)
        ]

    def piece(self, prompt, text):
        tokens = encode(text)
        before = np.concatenate([prompt[-1:], tokens[:-1]])
        logprob = self.table[torch.from_numpy(before).long(), torch.from_numpy(tokens).long()].numpy()
        return Piece(tokens, logprob, logprob, End.STOP if text.endswith(".") else End.LENGTH)

    def read(self, contexts, want):
        before = np.concatenate([one.tokens[one.positions - 1] for one in contexts])
        tokens = torch.from_numpy(np.concatenate([one.decisions for one in contexts])).long()
        dist = TableDist(self.table[torch.from_numpy(before).long()], tokens)
        return Answer(dist=dist if want.dist else None, chosen=dist.chosen if want.chosen else None)

    def follow(self, student, step): ...


def task_of(*answers):
    problems = [Problem(f"p{i}", "abcdefgh"[i], answer) for i, answer in enumerate(answers)]
    return Graded("toy", problems, problems, named("exact"))


class Moody:
    """Grades 1, but can't grade problem p1, and counts that."""

    def __init__(self):
        self.errors = Counter()

    def __call__(self, problem, text):
        self.errors.update(["moody"] * (problem.id == "p1"))
        return None if problem.id == "p1" else 1.0


# ---- closed forms


def test_wilson_solves_the_equation_that_defines_it():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0
    assert wilson(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)
    for k, n in ((1, 10), (81, 263), (7, 7), (0, 3), (2.5, 7.25)):
        for end in wilson(k, n):
            if 0 < end < 1:  # both ends p solve |k/n - p| = z sqrt(p (1 - p) / n)
                assert abs(k / n - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / n), rel=1e-9)
    with pytest.raises(ValueError):
        wilson(3, 2)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    from itertools import combinations

    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations([1] * c + [0] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(max, subsets)) / len(subsets), abs=1e-12)
    for n, c, k in ((3, 4, 1), (3, 1, 0), (3, 1, 4)):
        with pytest.raises(ValueError):
            pass_at_k(n, c, k)


def test_the_interval_counts_problems_that_repeat_themselves_once():
    assert (lambda s: (s.low, s.high))(clustered([1, 0, 1, 1, 0], 1)) == pytest.approx(wilson(3, 5))
    assert (lambda s: (s.low, s.high))(clustered([8, 0, 8, 8, 0], 8)) == pytest.approx(wilson(3, 5))
    assert (lambda s: (s.low, s.high))(clustered([1, 1, 1, 1], 2)) == pytest.approx(wilson(4, 8))
    assert (lambda s: (s.low, s.high))(clustered([4, 4], 4)) == pytest.approx(wilson(2, 2))


def test_the_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        rates = rng.beta(0.7, 1.3, size=60)  # mean 0.35
        share = clustered(list(rng.binomial(4, rates)), 4)
        hits += share.low <= 0.35 <= share.high
    assert 925 <= hits <= 980


# ---- answers


def test_greedy_and_sampled_numbers_by_hand():
    writer = Table({"a": ["1."], "b": ["2.", "22."], "c": ["33"], "d": ["4."]})
    done = evaluate(writer, task_of("1", "2", "3", None), samples=64, batch=3)
    greedy, sampled = done.greedy, done.sampled
    assert greedy and sampled and greedy.accuracy and sampled.accuracy
    assert (greedy.graded, greedy.samples, done.problems) == (3, 1, 4)
    assert greedy.accuracy.value == pytest.approx(2 / 3)
    assert (greedy.accuracy.low, greedy.accuracy.high) == pytest.approx(wilson(2, 3))
    assert (greedy.length, greedy.truncated) == (2.0, 0.25)
    assert greedy.pass_at == {1: pytest.approx(2 / 3)}
    share = sampled.by_problem["p1"]
    assert 0.3 < share < 0.7 and sampled.by_problem == {"p0": 1.0, "p1": share, "p2": 0.0}
    assert sampled.accuracy.value == sampled.pass_at[1] == pytest.approx((1 + share) / 3)
    assert list(sampled.pass_at) == [1, 2, 4, 8, 16, 32, 64]
    assert sampled.pass_at[64] == pytest.approx(2 / 3)
    assert json.loads(json.dumps(done.to_json())) == done.to_json()


def test_a_task_without_answers_has_no_accuracy():
    done = evaluate(Table({"a": ["1."]}), task_of(None))
    assert done.greedy and done.greedy.accuracy is None and done.greedy.grade is None and done.greedy.pass_at == {}
    assert done.greedy.graded == 0 and done.greedy.length == 2.0
    assert done.to_json()["sampled"]["accuracy"] is None


def test_it_depends_on_the_seed_alone():
    answers = {letter: ["1.", "2.", "3.", "4."] for letter in "abcdefgh"}
    task = task_of(*["1"] * 8)
    before, numpy_before, torch_before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    done = evaluate(Table(answers), task, samples=5, teacher=Table({}, bigram(1)))
    assert evaluate(Table(answers), task, samples=5, teacher=Table({}, bigram(1)), batch=3) == done
    assert evaluate(Table(answers), task, samples=5, seed=1).sampled != done.sampled
    assert before == random.getstate() and (numpy_before == np.random.get_state()[1]).all()
    assert torch.equal(torch_before, torch.get_rng_state())


def test_every_sample_has_its_own_seed_and_progress_is_told():
    writer, told = Table({letter: ["1."] for letter in "abcde"}), []
    evaluate(writer, task_of(*["1"] * 5), samples=3, greedy=False, batch=2, progress=lambda *at: told.append(at))
    assert len(set(writer.seeds)) == 15
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_some_problems_only_and_grader_errors_counted():
    task = task_of("1", "2")
    writer = Table({"a": ["1."], "b": ["1."]})
    done = evaluate(writer, task, task.held_out[:1], samples=0)
    assert done.problems == 1 and done.sampled is None and done.grader_errors == {}
    grader = Moody()
    grader(task.train[1], "an answer before the evaluation")
    done = evaluate(writer, Graded("toy", task.train, task.held_out, grader), samples=0)
    assert done.greedy and done.greedy.graded == 1
    assert done.grader_errors == {"moody": 1}


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"problems": []}, DataError),
        ({"samples": 0, "greedy": False}, SettingError),
        ({"samples": -1}, SettingError),
        ({"batch": 0}, SettingError),
        ({"temperature": 0.0}, SettingError),
        ({"top_p": 0.0}, SettingError),
        ({"samples": 0, "teacher": Table({})}, SettingError),
        ({"teacher": Table({}, can=frozenset({"text"}))}, TeacherError),
        ({"teacher": Table({}, can=frozenset({"chosen"})), "temperature": 0.7}, SettingError),
    ],
)
def test_what_can_not_be_evaluated_stops_before_anything_is_written(settings, error):
    writer = Table({"a": ["1."]})
    with pytest.raises(error):
        evaluate(writer, task_of("1"), **settings)
    assert not writer.seeds


# ---- the distance from the teacher


def test_the_kl_by_hand():
    student, teacher = Table({"a": ["12."], "b": ["3."]}), Table({}, bigram(1))
    kl = evaluate(student, task_of("1", "2"), teacher=teacher).kl
    per_letter = (student.table.exp() * (student.table - teacher.table)).sum(-1)
    p0, p1 = (sum(float(per_letter[LETTERS.index(x)]) for x in before) for before in ("a12", "b3"))
    assert kl and kl.estimator == "exact" and kl.tokens == 5
    assert kl.per_token == pytest.approx((p0 + p1) / 5)
    assert kl.per_sequence == pytest.approx((p0 + p1) / 2)
    assert kl.per_sequence_error == pytest.approx(abs(p0 - p1) / 2)
    assert kl.per_token_error == pytest.approx(abs(p0 - kl.per_token * 3) * 2 / 5)
    one = evaluate(student, task_of("1"), teacher=teacher).kl
    assert one and one.per_token_error is None and one.per_sequence_error is None


def test_a_teacher_equal_to_the_student_is_at_distance_zero():
    student = Table({"a": ["12."], "b": ["3."]})
    kl = evaluate(student, task_of("1", "2"), teacher=Table({})).kl
    assert kl and kl.per_token == pytest.approx(0, abs=1e-12)


def test_a_teacher_of_sampled_tokens_gives_k1_and_says_so():
    student, teacher = Table({"a": ["12."]}), Table({}, bigram(1), can=frozenset({"chosen"}))
    kl = evaluate(student, task_of("1"), teacher=teacher).kl
    steps = [(LETTERS.index(x), LETTERS.index(y)) for x, y in ("a1", "12", "2.")]
    assert kl and kl.estimator == "k1"
    assert kl.per_sequence == pytest.approx(sum(float(student.table[s] - teacher.table[s]) for s in steps))


def test_the_entropy_by_hand_with_and_without_a_teacher():
    student = Table({"a": ["12."], "b": ["3."]})
    per_letter = -(student.table.exp() * student.table).sum(-1)
    h0, h1 = (sum(float(per_letter[LETTERS.index(x)]) for x in before) for before in ("a12", "b3"))
    for teacher in (None, Table({}, bigram(1)), Table({}, bigram(1), can=frozenset({"chosen"}))):
        found = evaluate(student, task_of("1", "2"), teacher=teacher).entropy
        assert found and found.estimator == "exact" and found.tokens == 5
        assert found.per_token == pytest.approx((h0 + h1) / 5)
        assert found.per_sequence == pytest.approx((h0 + h1) / 2)
        assert found.per_token_error == pytest.approx(abs(h0 - found.per_token * 3) * 2 / 5)
    assert evaluate(student, task_of("1", "2"), samples=0).entropy is None
    assert evaluate(Table({"a": ["1."]}, can=frozenset({"text"})), task_of("1")).entropy is None


def test_a_teacher_of_another_vocabulary_is_refused():
    with pytest.raises(TeacherError, match="another vocabulary"):
        evaluate(Table({"a": ["1."]}), task_of("1"), teacher=Table({}, torch.zeros(V, V + 1).log_softmax(-1)))


def test_answers_without_a_token_are_no_crash():
    done = evaluate(Table({"a": [""], "b": ["1."]}), task_of("1", "1"), teacher=Table({}, bigram(1)))
    assert (
        done.kl
        and done.entropy
        and done.kl.tokens == done.entropy.tokens == 2
        and done.sampled
        and done.sampled.length == 1.0
    )
