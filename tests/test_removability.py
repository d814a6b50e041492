"""Putting the context back: what is counted as harm, and against what."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_evaluate import Table, encode, task_of

from opd.cli.examining import context_lines
from opd.dist import TableDist
from opd.errors import DataError
from opd.evaluate import EXAM, Marks, draws, evaluate, wilson
from opd.lab.toy import ToyModel, problems
from opd.protocols import Answer
from opd.removability import cosines, examine, removability, told
from opd.rollout import Problem, Sampling, Visit


def drawn(*grades, length=4):
    """Greedy draws with these grades; None where nothing could be graded."""
    return draws([Marks(Problem(f"p{i}", "?"), [grade], [length], [False]) for i, grade in enumerate(grades)])


def test_the_numbers_of_the_paper_by_hand():
    """Without the context three of four are right; with it one of these breaks and the fourth is mended."""
    found = removability(drawn(1, 1, 1, 0), drawn(1, 1, 0, 1, length=6))
    shares = {name: getattr(found, name).value for name in ("without", "under", "harm", "both")}
    assert shares == pytest.approx({"without": 0.75, "under": 0.75, "harm": 1 / 3, "both": 0.5})
    assert (found.harm.low, found.harm.high) == pytest.approx(wilson(1, 3))
    assert found.longer == pytest.approx(0.5) and found.problems == 4


def test_where_nothing_was_right_nothing_can_be_harmed():
    found = removability(drawn(0, 0), drawn(1, 0))
    assert found.harm is None and found.both.value == 0
    assert any("nothing was right without it" in line for line in context_lines(found))


def test_only_what_was_graded_both_ways_counts():
    found = removability(drawn(1, None, 1), drawn(None, 1, 0))
    assert (found.problems, found.harm.value) == (1, 1.0)
    with pytest.raises(DataError, match="graded"):
        removability(drawn(None), drawn(1))


def test_the_context_stands_before_the_question():
    bare = Problem("p", "what?", "1", privileged_context="know this")
    assert told([bare])[0].messages[-1]["content"] == "know this\n\nwhat?"
    assert told([bare])[0].answer == "1"
    with pytest.raises(DataError, match="privileged_context"):
        told([Problem("q", "what?")])


class Seeing(Table):
    """Its states are (1, 0) in layer 1; in layer 2, (1, 1) after a prompt that begins with c, (1, 0) after others."""

    def read(self, contexts, want):
        told = torch.cat([torch.full((one.n,), float(one.tokens[0] == encode("c")[0])) for one in contexts])
        tokens = torch.zeros(len(told), dtype=torch.long)
        states = {1: torch.tensor([[1.0, 0.0]]).expand(len(told), 2), 2: torch.stack([torch.ones(len(told)), told], -1)}
        return Answer(dist=TableDist(torch.zeros(len(told), 2), tokens, states))


def test_a_student_is_examined_under_both_prompts():
    task = task_of("1", "1")
    writer = Seeing({"a": ["1."], "b": ["1."], "ca": ["1."], "cb": ["2."]})
    without = evaluate(writer, task, samples=0).greedy
    shown = [replace(problem, prompt="c" + problem.prompt) for problem in task.held_out]
    found = examine(writer, task, task.held_out, shown, without)
    assert (found.without.value, found.under.value, found.harm.value) == (1.0, 0.5, 0.5)
    assert found.cosine == pytest.approx({1: 1.0, 2: 2**-0.5})
    assert "cosine between the two prompts 0.7071 in layer 2 to 1.0000 in layer 1" in context_lines(found)[-1]


def test_states_are_compared_token_by_token_on_the_answers_without_the_context():
    """More problems than one batch holds; the mean is over tokens, not over problems."""
    student, bare = ToyModel(0), problems(11)
    shown = [replace(one, prompt="1234") for one in bare]
    found = cosines(student, bare, shown, max_new=4)
    alike, greedy = {1: [], 2: []}, Sampling(temperature=0.0, max_new=4)
    for one, other in zip(bare, shown, strict=True):
        prompts = [student.render(p.messages) for p in (one, other)]
        ((piece,),) = student.write([prompts[0]], greedy, [[Visit(one, EXAM, 0).seed(0)]])  # the toy draws all the same
        paths = [torch.from_numpy(np.concatenate([p, piece.tokens])).long()[None] for p in prompts]
        states = [[layer[0, -len(piece.tokens) :] for layer in student.layers_of(path)] for path in paths]
        for number in (1, 2):
            a, b = states[0][number - 1], states[1][number - 1]
            alike[number] += ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).tolist()
    assert found == pytest.approx({layer: sum(some) / len(some) for layer, some in alike.items()}, abs=1e-14)
    assert all(value < 0.999 for value in found.values())
    assert cosines(student, bare, bare, max_new=4) == pytest.approx({1: 1.0, 2: 1.0}, abs=1e-15)
