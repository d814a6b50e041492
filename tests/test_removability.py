"""Putting the context back: what is counted as harm, and against what."""

from dataclasses import replace

import pytest
from test_evaluate import Table, task_of

from opd.cli.examining import context_lines
from opd.errors import DataError
from opd.evaluate import Marks, draws, evaluate, wilson
from opd.removability import examine, removability, told
from opd.rollout import Problem


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


def test_a_student_is_examined_under_both_prompts():
    task = task_of("1", "1")
    writer = Table({"a": ["1."], "b": ["1."], "ca": ["1."], "cb": ["2."]})
    without = evaluate(writer, task, samples=0).greedy
    shown = [replace(problem, prompt="c" + problem.prompt) for problem in task.held_out]
    found = examine(writer, task, shown, without)
    assert (found.without.value, found.under.value, found.harm.value) == (1.0, 0.5, 0.5)
