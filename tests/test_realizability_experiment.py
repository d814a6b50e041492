"""The experiment on realizability has the pairs that it speaks of, and problems that nobody was shown before."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from experiments.realizability import cell, compare, pairs, tasks
from opd.engines.hf_load import load_model


@pytest.fixture(scope="module", params=list(tasks.KINDS))
def study(request, tmp_path_factory):
    """The study of one task with a few problems and models that have hardly learned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "TRAIN", 40)
        patch.setattr(tasks, "HELD_OUT", 16)
        patch.setattr(pairs, "BATCH", 4)
        patch.setattr(pairs, "EVERY", 1)
        torch.set_num_threads(1)
        kind = replace(tasks.KINDS[request.param], teacher=(16, 2), students={"unable": (8, 1)}, steps=3, start=0.0)
        return compare.Study(request.param, kind, tmp_path_factory.mktemp(request.param), 2, rates=(1e-3, 2e-3))


def test_what_there_is_to_learn_is_right_and_can_be_written(study):
    rng, tokenizer = random.Random(0), study.kind.tokenizer()
    for question in map(tasks.question, [*study.task.train, *study.task.held_out]):
        ids = tokenizer(question).input_ids
        assert tokenizer.decode(ids) == question and len(ids) <= 13
    for _ in range(50):
        question, answer, same = study.kind.draw(rng)
        ids = tokenizer(question + answer).input_ids
        assert ids[: len(tokenizer(question).input_ids)] == tokenizer(question).input_ids
        assert len(ids) - len(tokenizer(question).input_ids) < study.kind.max_new
        assert tokenizer.decode(ids) == question + answer and study.kind.same(question) == same
    assert all(cell.marked(study.task).grade(problem, problem.answer) == 1 for problem in study.task.held_out)


def test_every_answer_to_learn_from_is_graded_as_right():
    task = tasks.load_task(f"{tasks.KINDS['countdown'].spec},tags=false,train=1,held_out=1")
    problem = task.train[0]
    entry = problem.data["entry"]["metadata"]
    answers = tasks.SOLUTIONS[tuple(sorted(entry["numbers"]))][entry["target"]]
    assert answers and all(task.grade(problem, answer) == 1 for answer in answers)
    rng = random.Random(0)
    question, answer, _ = tasks.chain_sum(rng)
    assert int(answer.rpartition("\n")[2]) == eval(question.removeprefix(tasks.SUM.partition("{")[0]).rstrip(" ="))


def test_nothing_held_out_is_learned_in_another_order(study):
    held = {study.kind.same(tasks.question(problem)) for problem in study.task.held_out}
    assert not held & {study.kind.same(tasks.question(problem)) for problem in study.task.train}
    tokenizer, rng = study.kind.tokenizer(), random.Random(1)
    texts = pairs.batch(study.kind, tokenizer, rng, held, 4)
    shown = [tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label < 0]) for ids, labels in texts]
    assert len(shown) == 4 and not held & set(map(study.kind.same, shown))
    one, two, three = (
        text.format(numbers=n, target=6)
        for text, n in zip(tasks.COUNTDOWN, ("1, 2, 3", "3, 2, 1", "1, 2, 4"), strict=True)
    )
    assert tasks.same_countdown(one) == tasks.same_countdown(two) != tasks.same_countdown(three)


def test_one_student_is_its_teachers_earlier_self_and_the_other_is_smaller(study):
    shape = {who: AutoConfig.from_pretrained(folder) for who, folder in study.models.items()}
    size = {who: load_model(folder, device="cpu").num_parameters() for who, folder in study.models.items()}
    same = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")
    assert all(getattr(shape[pairs.EARLIER], name) == getattr(shape["teacher"], name) for name in same)
    assert size[pairs.EARLIER] == size["teacher"] > 2 * size["unable"]
    able, teacher = (load_model(study.models[who], device="cpu") for who in (pairs.EARLIER, "teacher"))
    moved = [float((a - b).norm() / b.norm()) for a, b in zip(able.parameters(), teacher.parameters(), strict=True)]
    assert 0 < max(moved) < 1, "the same training, later"


def test_the_methods_differ_in_who_writes_and_in_nothing_that_is_counted(study):
    found = {name: study.run(pairs.EARLIER, name, 1e-3, 0, 1) for name in cell.METHODS}
    assert len({round(one["reverse kl"], 9) for one in found.values()}) == 3
    assert found["SFT"]["tokens"] == found["off-policy KL"]["tokens"]
    assert study.run("teacher", "SFT", 1e-3, 0, 0)["forward kl"] == pytest.approx(0, abs=1e-6)


def test_a_study_runs_to_its_table_and_not_twice(study, capsys):
    methods = ["SFT", "on-policy"]
    runs = [study.start("teacher"), *study.runs("unable", methods, [0])]
    files = {file: file.stat().st_mtime_ns for file in (study.out / "runs").iterdir()}
    assert [run["method"] for run in runs] == [
        "start",
        "start",
        *methods,
        *(f"{m}, {compare.LONG} times as long" for m in methods),
    ]
    assert study.runs("unable", methods, [0]) == runs[1:]
    assert {file: file.stat().st_mtime_ns for file in (study.out / "runs").iterdir()} == files
    text = compare.summary(runs)
    assert "minus SFT" in text and text.count(f"| {study.name} | unable |") == 6
    assert compare.plot(runs).axes
    same = compare.gap(runs[2:3], runs[2:3], "sampled")
    assert (same.low, same.value, same.high) == (0, 0, 0)
