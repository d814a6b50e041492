"""Graders: what counts as the same answer, and that what can't be graded is never a 0."""

import threading

import pytest

from opd.errors import DataError, SettingError
from opd.rollout import Problem
from opd.stated import final_answer
from opd.tasks.graders import Graded, MathVerify, named


def asked(answer):
    return Problem("p", "q", answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("72", "72"),
        (" so\nit is\n 72 \n", "72"),
        ("I think <answer> 72 </answer> is right", "72"),
        ("<answer>1</answer> no, <answer>72</answer>", "72"),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{72", r"\boxed{1} and \boxed{72"),
        ("reasons\n#### 72", "72"),
        ("The answer is 72.", "72"),
        ("**Answer:** new  york", "new  york"),
        ("<think>\\boxed{1}</think>\n72", "72"),
        ("", ""),
    ],
)
def test_the_final_answer_of_a_text(text, answer):
    assert final_answer(text) == answer


def test_exact_ignores_white_space_only():
    exact = named("exact")
    assert exact(asked("New  York"), "it is\nNew York ") == 1.0
    assert exact(asked("New York"), "new york") == 0.0
    assert exact(asked("1 2\n3 4"), "1 2\n3 4") == 1.0
    assert exact(asked("2 + 2\n#### 4"), "The answer is 4.") == 1.0
    assert exact(asked("7"), "") == 0.0
    assert exact(asked("7"), "17") == 0.0


def test_without_an_answer_nothing_is_graded():
    for name in (None, "exact", "none", "math_verify"):
        assert named(name)(asked(None), "7") is None
    assert named("none")(asked("7"), "7") is None


# ---- a grader of the user's own


def test_a_grader_of_ones_own_is_imported_and_checked(tmp_path, monkeypatch):
    grades = {"half": 0.5, "bad": 2, "silent": None}
    source = "".join(f"def {name}(problem, text): return {grade}\n" for name, grade in grades.items())
    (tmp_path / "my_graders.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert named("my_graders:half")(asked(None), "x") == 0.5
    assert named("my_graders:silent")(asked(None), "x") is None
    with pytest.raises(DataError, match=r"on problem p: got 2, expected a number in \[0, 1\]"):
        named("my_graders:bad")(asked(None), "x")
    with pytest.raises(SettingError, match="Did you mean 'half'"):
        named("my_graders:hafl")
    with pytest.raises(SettingError, match="PYTHONPATH"):
        named("no_such_graders:half")


def test_a_module_may_say_what_is_wrong(tmp_path, monkeypatch):
    file = tmp_path / "wordy_graders.py"
    file.write_text(
        "def grade(problem, text): return 0.0\n"
        "def grade_feedback(problem, text): return f'{text} is too short'\n"
        "def bad(problem, text): return 0.0\n"
        "def bad_feedback(problem, text): return None\n"
        "def silent(problem, text): return 0.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    said = lambda name: Graded("t", [], [], named(f"wordy_graders:{name}")).feedback(asked(None), "x")
    assert said("grade") == "x is too short" and said("silent") == ""
    assert Graded("t", [], [], named("exact")).feedback(asked(None), "x") == ""
    with pytest.raises(DataError, match="feedback of grader 'wordy_graders:bad' on problem p: got None"):
        said("bad")


# ---- math_verify


@pytest.fixture(scope="module")
def equal():
    pytest.importorskip("math_verify")
    return MathVerify()


@pytest.mark.parametrize(
    ("answer", "text", "grade"),
    [
        ("1/2", "so it is 0.5", 1.0),
        (r"\frac{1}{2}", r"thus $\boxed{0.5}$", 1.0),
        ("long reasons\n#### 1,234", "The answer is 1234.", 1.0),
        (r"we get \boxed{x^2+1}", r"\boxed{1 + x^2}", 1.0),
        ("72", "<think>72</think> 71", 0.0),
        ("72", "no idea", 0.0),
        ("72", "", 0.0),
        ("72", "<answer>72</answer>, not 5", 1.0),
    ],
)
def test_mathematical_equality(equal, answer, text, grade):
    assert equal(asked(answer), text) == grade


def test_it_works_in_other_threads(equal):
    grades = []
    threads = [threading.Thread(target=lambda: grades.append(equal(asked("1/2"), "0.5"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert grades == [1.0] * 4 and not equal.errors


def test_what_can_not_be_graded_is_counted_and_the_next_answer_is_graded(equal):
    assert equal(asked(r"\boxed{}"), "7") is None
    assert equal.errors == {"unreadable expected answer": 1}
    equal.limit = 0.001
    assert equal(asked("7"), "7 " * 2_000_000) == 0.0
    equal.limit = 20.0
    assert equal.errors["no verdict"] == 1
    assert equal(asked("7"), "7") == 1.0
