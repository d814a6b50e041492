"""Problems from a JSON-lines or parquet file: one row per problem, in the column names that other frameworks use, too.

    prompt               text, or a list of {role, content}
    messages             the same list; a last message from the assistant is taken off and is the answer
    answer               optional: text or a number
    privileged_context   optional: what only the teacher is shown

Their aliases stand in PROMPT, ANSWER, PRIVILEGED and ROUTE; the first that is present and not null counts. Every other
column is kept in `Problem.data` for the task's own grader. A prompt that occurs twice is kept once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from opd.errors import DataError, SettingError
from opd.jsonlines import lines, type_of
from opd.rollout import Message, Problem
from opd.tasks.graders import Graded, named

PROMPT = ("prompt", "messages", "question", "problem", "query", "input")
ANSWER = ("answer", "reward_model.ground_truth", "ground_truth", "label", "solution", "extra_info.answer")
PRIVILEGED = ("privileged_context", "teacher_prompt", "extra_info.privileged_context")
ROUTE = ("teacher_id", "opd_teacher", "metadata.opd_teacher", "extra_info.teacher_id", "agent_name", "data_source")

EXAMPLE = '{"prompt": ...}'
SHARE, MOST = 0.1, 512  # of the problems, held out where nothing is said about it

Row = dict[str, Any]
MISSING = object()


def load(
    kind: str,
    target: str,
    *,
    train: int | None = None,
    held_out: int | str | None = None,
    seed: int = 0,
    grader: str | None = None,
    input_key: str | None = None,
    label_key: str | None = None,
    teacher_input_key: str | None = None,
) -> Graded:
    """The problems of a file. `held_out` is a count, or a second file; `train` keeps the first so many of the rest.

    A hash of the prompt, not the order of the lines, says who is held out. A prompt that stands in both files is held
    out: it is taken away from `train`. The three keys name columns that no alias knows.
    """
    keys = Keys(input_key, label_key, teacher_input_key)
    everything, notes = distinct(problems(kind, target, keys), target)
    if isinstance(held_out, str):
        exam, more = distinct(problems(suffix_of(held_out) or kind, held_out, keys), held_out)
        learn = without(everything, exam)
        dropped = len(everything) - len(learn)
        notes += more + [f"{dropped} problems of {target} left out: they are held out in {held_out}"] * bool(dropped)
        if not learn:
            raise DataError(f"every problem of {target} stands in {held_out}", expected="something to learn from")
    else:
        learn, exam = split(everything, held_out, seed)
    return Graded(f"{kind}:{target}", first(learn, train, target), exam, named(grader), tuple(notes))


jsonl = partial(load, "jsonl")
parquet = partial(load, "parquet")


# ---- rows of a file


def suffix_of(path: str) -> str:
    return {".jsonl": "jsonl", ".parquet": "parquet"}.get(Path(path).suffix, "")


def problems(kind: str, target: str, keys: Keys) -> Iterator[Problem]:
    """Every problem of a file, in order."""
    if not target:
        raise SettingError(f"task {kind!r} needs a file", remedy=f"Write {kind}:FILE")
    path = Path(target).expanduser()
    if not path.is_file():
        raise DataError(f"there is no file {target}", got="a folder" if path.is_dir() else None, remedy="Check --task")
    empty = True
    for where, row in lines(path, EXAMPLE) if kind == "jsonl" else table(path):
        empty = False
        yield problem(row, where, keys)
    if empty:
        raise DataError(f"{target} holds no problem", expected="at least one row")


def table(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a parquet file, each with its number from 1."""
    if importlib.util.find_spec("pyarrow") is None:
        raise SettingError("parquet files need the package pyarrow", remedy="pip install opd[tasks]")
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} can't be read as parquet", got=f"'{str(error).splitlines()[0]}'") from error


# ---- one row, one problem


@dataclass(frozen=True)
class Keys:
    """The user's own column names; None leaves it to the aliases."""

    prompt: str | None = None
    answer: str | None = None
    privileged: str | None = None


def problem(row: Row, where: str, keys: Keys) -> Problem:
    """The problem that a row describes."""
    column, value = pick(row, keys.prompt, PROMPT)
    if column is None:
        accepted = keys.prompt or ", ".join(PROMPT)
        raise DataError(f"{where} has no prompt", got=f"columns {sorted(row)}", expected=f"one of: {accepted}")
    prompt = worded(value, f"{where}, column {column!r}")
    final = None
    if column == "messages" and isinstance(prompt, tuple) and prompt[-1]["role"] == "assistant":
        prompt, final = prompt[:-1], prompt[-1]["content"]
        if not prompt:
            raise DataError(f"{where} holds only an answer", expected="a message before the assistant's")
    said, answer = pick(row, keys.answer, ANSWER)
    shown, privileged = pick(row, keys.privileged, PRIVILEGED)
    return Problem(
        id=identity(prompt),
        prompt=prompt,
        answer=text_or_none(answer, f"{where}, column {said!r}", "label_key") or final,
        privileged_context=text_or_none(privileged, f"{where}, column {shown!r}", "teacher_input_key"),
        data={name: rest for name, rest in row.items() if name not in (column, said, shown)} | route(row),
    )


def pick(row: Row, own: str | None, aliases: Sequence[str]) -> tuple[str | None, Any]:
    """The first column that is there and not null, with its value; a null one if there is no better."""
    null: str | None = None
    for name in (own,) if own else aliases:
        value: Any = row
        for part in (name,) if name in row else name.split("."):
            value = value.get(part, MISSING) if isinstance(value, dict) else MISSING
        if value is not MISSING and value is not None:
            return name, value
        null = null or (name if value is None else None)
    return null, None


def worded(value: Any, where: str) -> str | tuple[Message, ...]:
    """A prompt as text or messages, checked."""
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where} is empty", expected="a prompt")
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise DataError(f"{where} is no prompt", got=type_of(value), expected="text or a list of {role, content}")
    return tuple(message(one, f"{where}, message {number}") for number, one in enumerate(value, 1))


def message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{where} is no message", got=type_of(value), expected="{role, content}")
    for key in ("role", "content"):
        if not isinstance(value.get(key), str):
            raise DataError(f"{where} has no {key}", got=type_of(value.get(key)), expected=f"text in {key!r}")
    return {"role": value["role"], "content": value["content"]}


def text_or_none(value: Any, where: str, option: str) -> str | None:
    """A text or number as text; null and the empty text are nothing."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        remedy = f"Name another column with {option}="
        raise DataError(f"{where} has the wrong type", got=type_of(value), expected="text or a number", remedy=remedy)
    return str(value)


def route(row: Row) -> Row:
    """The name of the teacher that a row asks for, under the one name `teacher_id`."""
    _, teacher = pick(row, None, ROUTE)
    return {"teacher_id": teacher} if isinstance(teacher, str) else {}


# ---- which problems, and who is held out


def identity(prompt: str | tuple[Message, ...]) -> str:
    """A hash of the prompt alone, so that it does not change with the order of the lines; text is one user message."""
    messages = Problem("", prompt).messages
    key = json.dumps([[m["role"], m["content"]] for m in messages])
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def distinct(found: Iterator[Problem], target: str) -> tuple[list[Problem], list[str]]:
    """The first problem of every prompt, and a sentence about the others."""
    kept: dict[str, Problem] = {}
    again = otherwise = 0
    for one in found:
        before = kept.setdefault(one.id, one)
        again += before is not one
        otherwise += before is not one and before.answer != one.answer
    note = f"{again} rows of {target} left out: their prompt stands there already ({otherwise} with another answer)"
    return list(kept.values()), [note] * bool(again)


def without(some: Sequence[Problem], others: Sequence[Problem]) -> list[Problem]:
    taken = {one.id for one in others}
    return [one for one in some if one.id not in taken]


def split(everything: Sequence[Problem], count: int | None, seed: int) -> tuple[list[Problem], list[Problem]]:
    """(train, held out), each in file order; the smallest hashes are held out, by default those below 0.1."""
    place = {one.id: draw(one.id, seed) for one in everything}
    if count is None:
        below = sum(value < SHARE for value in place.values())
        count = min(max(below, 1), MOST, len(everything) - 1)
    if count >= len(everything):
        what = f"held_out={count} leaves nothing to learn from"
        raise SettingError(what, got=f"{len(everything)} different problems", expected=f"at most {len(everything) - 1}")
    exam = set(sorted(place, key=lambda name: (place[name], name))[:count])
    return [p for p in everything if p.id not in exam], [p for p in everything if p.id in exam]


def draw(name: str, seed: int) -> float:
    """A number in [0, 1) from a problem's id and the seed."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") / 2**64


def first(some: list[Problem], count: int | None, target: str) -> list[Problem]:
    if count is not None and count > len(some):
        raise SettingError(f"train={count} asks too much of {target}", got=f"{len(some)} problems to learn from")
    return some[:count]
