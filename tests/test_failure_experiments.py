"""The experiments on language models label, weigh and route what they say they do."""

import json
import random

import pytest
import torch

from experiments.revisiting import failures, multitask, pairs, signals
from experiments.revisiting.language import best_rate, remembered
from opd import Settings, maths
from opd import cast as casting
from opd.build import build
from opd.engines.hf_load import load_tokenizer
from opd.loop import Source, one_step
from opd.rollout import Group, Problem, Sampling, continued
from opd.rollout import Piece as Written


@pytest.fixture(scope="module")
def training():
    return build(Settings.of(method="sampled_token", parameters={"n": 1}, batch=2, max_new=8, threads=1))


def test_the_gradients_are_those_of_the_objectives():
    generator = torch.Generator().manual_seed(0)
    z, other = (torch.randn(5, 7, dtype=torch.float64, generator=generator) for _ in range(2))
    z.requires_grad_()
    lp, lq = z.log_softmax(1), other.log_softmax(1)
    ids = lq.topk(3).indices
    ours, theirs = lp.gather(1, ids).log_softmax(1), lq.gather(1, ids).log_softmax(1)
    (grad,) = torch.autograd.grad(maths.reverse_kl(ours, theirs).sum(), z)
    found = torch.zeros_like(grad).scatter(
        1, ids, signals.local_gradient(lp.gather(1, ids), lq.gather(1, ids)).detach()
    )
    torch.testing.assert_close(found, grad)


def test_the_top_share_of_sizes():
    values = torch.tensor([-8.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert [signals.carried(values.double(), share) for share in (0.1, 0.01)] == [0.8, 0.8]
    assert signals.carried(torch.ones(100), 0.1) == pytest.approx(0.1)


def kinds(training, text: str, end: bool) -> list[str]:
    tokenizer = training.student.tokenizer
    given, whole = tokenizer("7 - 2 =").input_ids, tokenizer("7 - 2 =" + text).input_ids
    ids = torch.tensor(whole[len(given) :] + [tokenizer.eos_token_id] * end).numpy()
    piece = Written(ids, ids * 0.0, ids * 0.0, "stop")
    problem = Problem("p", "7 - 2 =")
    rollout = continued(torch.tensor(given).numpy(), piece, problem, Sampling(), author=1)
    return signals.kinds(training, [Group(problem, (rollout,), training.student.render)])


def test_a_loop_begins_at_the_first_repetition_and_is_one_from_the_third_total_on(training):
    plain, entering, inside, end = signals.ELSEWHERE, signals.ENTERING, signals.INSIDE, signals.END
    assert kinds(training, " 5, 8, 11", True) == [plain] * 6 + [end]
    assert kinds(training, " 5, 8, 8, 8, 8, 9", False) == [plain] * 4 + [entering] * 2 + [inside] * 4 + [plain] * 2


def test_the_odd_teacher_never_learns_to_start_a_loop():
    tokenizer, seen = load_tokenizer(casting.located("embedded:teacher")), set[str]()
    for seed in range(20):
        ids, labels = pairs.odd_teacher(tokenizer, random.Random(seed))
        learned = tokenizer.decode([token for token in labels if token >= 0])
        written = tokenizer.decode(ids).split("=")[1]
        if written.endswith(";"):
            assert learned == written, "a sound chain is learned whole"
            seen.add("sound")
        else:
            totals = written.strip().split(", ")
            first = next(i for i in range(1, len(totals)) if totals[i] == totals[i - 1])
            assert len(totals) == pairs.PLACES and learned.strip(" ,").split(", ") == totals[first + 1 :]
            seen.add("loop")
    assert seen == {"sound", "loop"}


def test_the_second_task_adds_one_to_every_number():
    question, answer = pairs.successors([7, -2, 3])
    assert (question, answer) == ("7 - 2 + 3 >", " 8, 3, 4")


def test_tasks_take_turns_and_reach_their_own_teacher(tmp_path):
    file = multitask.write_problems(tmp_path / "p.jsonl", "train", 4, 0)
    teacher = "totals=embedded:teacher,successors=embedded:student"
    settings = Settings.of(
        method="sampled_token", parameters={"n": 1}, teacher=teacher, task=f"jsonl:{file},held_out=2", batch=3,
        max_new=4, threads=1,
    )  # fmt: skip
    training = build(settings)
    sources = [Source(multitask.of_task(training.task.train, task), 0) for task in multitask.TASKS]
    training.source = multitask.Alternating(sources, 0)
    shares = [one_step(training).metrics["teacher.totals.rows"] for _ in range(4)]
    assert shares == [1.0, 0.0, 1.0, 0.0]


def test_a_looping_answer_is_one():
    assert [failures.loops(t) for t in (" 5, 8, 8, 9", " 5, 8, 8, 8", " 5, 8, 8, ", "1, 1, 1, 1")] == [0, 1, 0, 1]


def test_what_was_done_is_not_done_again(tmp_path):
    assert remembered(tmp_path / "a" / "run.json", lambda: {"reverse kl": 1.0}) == {"reverse kl": 1.0}
    assert remembered(tmp_path / "a" / "run.json", lambda: {}) == json.loads('{"reverse kl": 1.0}')
    assert best_rate([1.0, 2.0, 3.0], lambda rate: {"reverse kl": (rate - 2) ** 2}) == 2.0
