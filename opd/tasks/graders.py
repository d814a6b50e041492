"""A grader looks at a problem and an answer and gives a number in [0, 1], or None where it can't tell: never a fake 0.

    exact             the final answer is the expected text, up to white space
    math_verify       the final answer is mathematically equal (package math-verify)
    none              nothing is graded, accuracy is not reported
    module:function   your own (problem, text) -> number in [0, 1] or None

A module may also say in words what is wrong with an answer, for methods that show this: module:function_feedback, a
function (problem, text) -> text, empty where there is nothing to say.

A final answer stands in <answer>..</answer>, in \\boxed{..}, after ####, after "answer is", or in the last line.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from opd.errors import DataError, SettingError, nearest
from opd.rollout import Problem
from opd.stated import TAG, final_answer, marked

Grader = Callable[[Problem, str], float | None]
NAMES = ("exact", "math_verify", "none", "module:function")


@dataclass(frozen=True)
class Graded:
    """The task that is two lists of problems and a grader. `notes` say what the loader left out, one sentence each."""

    name: str
    train: Sequence[Problem]
    held_out: Sequence[Problem]
    grader: Grader
    notes: tuple[str, ...] = ()

    def grade(self, problem: Problem, text: str) -> float | None:
        return self.grader(problem, text)

    def feedback(self, problem: Problem, text: str) -> str:
        """What the grader says of an answer in words; most say nothing."""
        says = getattr(self.grader, "feedback", None)
        return says(problem, text) if says else ""

    @property
    def errors(self) -> Counter[str]:
        """What kept the grader from grading, counted."""
        return Counter(getattr(self.grader, "errors", {}))


def named(name: str | None) -> Grader:
    """The grader of that name; `exact` when none is named, which grades nothing where there is no answer."""
    if name is None or name == "exact":
        return exact
    if name == "none":
        return none
    if name == "math_verify":
        return MathVerify()
    if ":" in name:
        return Imported(name)
    raise SettingError(f"unknown grader {name!r}", remedy=nearest(name, NAMES))


def none(problem: Problem, text: str) -> None:
    """Grades nothing."""


# ---- exact


def exact(problem: Problem, text: str) -> float | None:
    """1 if the final answer of the text, or the whole text, is the expected answer up to white space."""
    if problem.answer is None:
        return None
    expected = squeeze(marked(problem.answer) or problem.answer)
    return float(expected in (squeeze(final_answer(text)), squeeze(text)))


def squeeze(text: str) -> str:
    return " ".join(text.split())


# ---- a grader of the user's own


class Imported:
    """The grader `module:function`, whose every grade is checked."""

    def __init__(self, name: str) -> None:
        self.name = name
        module, _, function = name.partition(":")
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            remedy = "Name an importable module as module:function; its folder must be on PYTHONPATH"
            raise SettingError(f"grader {name!r} can't be imported", got=f"'{error}'", remedy=remedy) from error
        if not callable(getattr(found, function, None)):
            names = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            raise SettingError(f"module {module!r} has no grader {function!r}", remedy=nearest(function, names))
        self.function: Callable[[Problem, str], Any] = getattr(found, function)
        self.says: Callable[[Problem, str], Any] | None = getattr(found, f"{function}_feedback", None)

    def feedback(self, problem: Problem, text: str) -> str:
        """What the module says of an answer in words, where it has a function for that."""
        said = self.says(problem, text) if self.says else ""
        if not isinstance(said, str):
            what = f"feedback of grader {self.name!r} on problem {problem.id}"
            raise DataError(what, got=repr(said), expected="a text, empty where there is nothing to say")
        return said

    def __call__(self, problem: Problem, text: str) -> float | None:
        grade = self.function(problem, text)
        if grade is None or (isinstance(grade, int | float) and 0 <= grade <= 1):
            return None if grade is None else float(grade)
        what = f"grader {self.name!r} on problem {problem.id}"
        raise DataError(what, got=repr(grade), expected="a number in [0, 1], or None where it can't tell")


# ---- math_verify


class MathVerify:
    """Mathematical equality, computed in one helper process, so that it works in any thread and can always be stopped.

    The package bounds its time by signals, which exist in main threads only and can't interrupt one long operation. The
    helper has a main thread of its own, and is ended and started anew when it gives no verdict within `limit` seconds.
    An expected answer that can't be read is not graded; an answer that breaks or outlasts the comparison is wrong.
    Both are counted in `errors`.
    """

    def __init__(self, limit: float = 20.0) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise SettingError("grader 'math_verify' needs the package math-verify", remedy="pip install opd[tasks]")
        self.limit = limit
        self.errors: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[str] | None = None

    def __call__(self, problem: Problem, text: str) -> float | None:
        if problem.answer is None:
            return None
        with self._lock:
            verdict = self._ask(problem.answer, text)
            if verdict not in ("right", "wrong"):
                self.errors[verdict] += 1
        return None if verdict == "unreadable expected answer" else float(verdict == "right")

    def _ask(self, expected: str, text: str) -> str:
        helper = self._helper = self._helper or self._start()
        assert helper.stdin and helper.stdout
        alarm = threading.Timer(self.limit, helper.kill)
        alarm.start()
        try:
            helper.stdin.write(json.dumps([expected, text]) + "\n")
            helper.stdin.flush()
            verdict = helper.stdout.readline().strip()
        except BrokenPipeError:
            verdict = ""
        finally:
            alarm.cancel()
        if not verdict:
            self._end()
            self._helper = None
        return verdict or "no verdict"

    def _start(self) -> subprocess.Popen[str]:
        helper = subprocess.Popen(
            [sys.executable, "-c", "from opd.tasks.graders import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"},
        )
        self._end = weakref.finalize(self, end, helper)
        assert helper.stdout
        if helper.stdout.readline().strip() != "ready":
            self._end()
            raise SettingError("the helper of grader 'math_verify' did not start", remedy="Its error stands above")
        return helper


def end(helper: subprocess.Popen[str]) -> None:
    """Ends a helper and closes its pipes."""
    helper.kill()
    helper.communicate()


def serve() -> None:
    """The helper: one [expected, text] per line in, one verdict per line out."""
    verdicts, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no verdict
    import math_verify  # noqa: F401

    print("ready", file=verdicts, flush=True)
    for line in sys.stdin:
        print(verdict(*json.loads(line)), file=verdicts, flush=True)


def verdict(expected: str, text: str) -> str:
    """right, wrong, or what went wrong. The expected answer stands in \\boxed{..} unless it is marked up already."""
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    expected = marked(expected) or expected.strip()
    wrapped = expected if "$" in expected else f"\\boxed{{{expected}}}"
    text = text.rpartition("</think>")[2]
    tags = TAG.findall(text)
    try:
        target = parse(wrapped, raise_on_error=True)
        if not target:
            return "unreadable expected answer"
    except (Exception, TimeoutException):  # the caller counts what is returned
        return "unreadable expected answer"
    try:
        answer = parse(tags[-1] if tags else text, raise_on_error=True)
        return "right" if verify(target, answer, raise_on_error=True) else "wrong"
    except TimeoutException:
        return "timeout"
    except Exception as error:
        return f"{type(error).__name__} while comparing"
