"""examples/minimal.py is the package without the package: same batch, same gradient."""

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from opd.cast import located
from opd.engines.hf import HFModel, load_model, load_tokenizer
from opd.recipes import load
from opd.rollout import Group, Problem, Rollout
from opd.step import gradient, prepare
from opd.teachers.local import LocalTeacher

FILE = Path(__file__).parent.parent / "examples" / "minimal.py"


@pytest.fixture(scope="module")
def minimal():
    spec = importlib.util.spec_from_file_location("minimal", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def opened(name):
    path = located(f"embedded:{name}")
    return HFModel(load_model(path, dtype=torch.float64), load_tokenizer(path), name)


def test_same_gradient_as_the_package(minimal):
    student, teacher = opened("student"), opened("teacher")
    tokenizer = student.tokenizer
    prompts, _ = minimal.batch(tokenizer, random.Random(0), 5)
    generator = torch.Generator().manual_seed(0)
    tokens, decided = minimal.write(student.model, prompts, tokenizer.eos_token_id, 1.5, generator)
    loss = minimal.reverse_kl(student.model, teacher.model, tokens, decided)
    loss.backward()
    theirs = {name: p.grad.clone() for name, p in student.model.named_parameters()}

    method = load("gkd")(lam=1.0, beta=1.0, mean="token_mean")
    groups = []
    for number, (row, mask) in enumerate(zip(tokens, decided, strict=True)):
        n, first = int(mask.sum()), prompts.shape[1]
        author = np.r_[np.zeros(first, np.int8), np.ones(n, np.int8)]
        rollout = Rollout(row[: first + n].numpy().astype(np.int32), author, Problem(str(number), ""))
        groups.append(Group(rollout.problem, (rollout,), student.render))
    rows, sequences = prepare(groups, method, {"student": student, "teacher": LocalTeacher(teacher)}, 0)
    student.model.zero_grad()
    outcome = gradient(student, rows, sequences, method, micro_tokens=40, chunk=7)
    assert outcome.loss == pytest.approx(loss.item(), abs=1e-12)
    worst = max(float((p.grad - theirs[name]).abs().max()) for name, p in student.model.named_parameters())
    assert worst < 1e-12


def test_its_questions_are_those_of_the_embedded_task(minimal):
    from opd.tasks import sums

    text, totals = minimal.question(random.Random(3))
    terms = sums.question(random.Random(3))
    assert (text, totals) == (sums.question_text(terms), sums.totals(terms))
    assert minimal.right(sums.chain_text(totals), totals) and not minimal.right(" 5, 8", totals)


def test_it_does_not_import_the_package():
    assert "import opd" not in FILE.read_text() and "from opd" not in FILE.read_text()
    assert len(FILE.read_text().splitlines()) <= 160
