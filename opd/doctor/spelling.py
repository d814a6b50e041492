"""A marker such as <think> that one model writes as a token and the other as pieces is improbable where it is due.

The case in point (2603.25562, section on mismatch): the student writes `<`, `think`, `>` and the teacher expects `<th`,
`ink`, `>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from opd.doctor.case import Case
from opd.doctor.finding import Finding, finding
from opd.doctor.prompts import prompt_text, template_of
from opd.doctor.tokens import added
from opd.doctor.trial import Trial
from opd.engines.hf import HFModel
from opd.rollout import Array

NAMED = re.compile(r"<[^\s<>{}%'\"]+>")  # <think>, </answer>, <|im_end|>
THINK = ("<think>", "</think>")


def markers(case: Case) -> Iterator[Finding]:
    """A marker that is one token for the teacher and pieces for the student gets no probability where it is due.

    Only markers that occur count: in a prompt as either of them writes it, in an answer, or in a template.
    """
    if case.reader is None:
        return
    apart = {marker: how for marker in spelled(case.reader) if (how := spelled_apart(case, marker))}
    seen = [marker for marker in apart if any(marker in text for text in texts(case))]
    what = f"{apart[seen[0]]}; seen in prompts or answers" if seen else ""
    more = f" (and {len(seen) - 1} more)" if len(seen) > 1 else ""
    rest = f"{len(apart)} markers are spelled differently, none occurs here" if apart else "both spell them alike"
    remedy = "Name the pieces in --mask, or add the token to the student's tokenizer"
    yield finding("markers", bool(seen), what + more if seen else rest, remedy, examples=tuple(seen), apart=len(apart))


def spelled(model: HFModel) -> list[str]:
    """What may be a marker: tokens that were added to the vocabulary, and <names> in the template."""
    return list(dict.fromkeys([*added(model), *NAMED.findall(template_of(model))]))


def spelled_apart(case: Case, marker: str) -> str:
    """How the two spell a marker, where they differ."""
    assert case.reader is not None
    ours, theirs = (encoded(model, marker) for model in (case.student, case.reader))
    if ours == theirs:
        return ""
    return (
        f"the student spells {marker!r} as {pieces(case.student, ours)}, the teacher as {pieces(case.reader, theirs)}"
    )


def pieces(model: HFModel, ids: Sequence[int]) -> str:
    return " ".join(repr(model.decode_token(i)) for i in ids)


def encoded(model: HFModel, text: str) -> list[int]:
    return model.tokenizer.encode(text, add_special_tokens=False)


def texts(case: Case) -> Iterator[str]:
    """Prompts as either model would write them, answers, and what only the teacher is shown."""
    assert case.reader is not None
    for problem in case.problems:
        yield prompt_text(case.student, problem)
        yield prompt_text(case.reader, problem)
        yield from filter(None, (problem.answer, problem.privileged_context))


def written_markers(trial: Trial) -> Iterator[Finding]:
    """Markers in what the student wrote are spelled as the teacher would spell them."""
    reader = trial.case.reader
    if reader is None:
        return
    if not reader.tokenizer.is_fast:
        yield finding("markers written", False, "not looked at: the teacher's tokenizer is a slow one without offsets")
        return
    names = {*spelled(reader), *spelled(trial.case.student), *THINK}
    names = {name for name in names if NAMED.fullmatch(name)}
    size = sum(answer.n for answer in trial.answers)
    learned = np.where(trial.kept, trial.everywhere, np.nan) if trial.rows is not None else np.zeros(size)
    ends = np.cumsum([0, *(answer.n for answer in trial.answers)])
    found = list[tuple[str, str, float]]()
    for start, answer in zip(ends, trial.answers, strict=False):
        ratio = learned[start : start + answer.n]
        found += differing(trial.case.student, reader, answer.decisions.tolist(), ratio, names)
    evidence = "every marker in the answers is spelled as the teacher would"
    if found:
        name, how, worst = min(found, key=lambda one: one[2])
        evidence = f"{name!r} is written as {how} {len(found)} times, log-ratio down to {worst:.1f}"
    remedy = "Name the pieces in --mask (--mask-which first), or learn by local_support"
    examples = tuple(how for _, how, _ in found[:3])
    yield finding("markers written", bool(found), evidence, remedy, examples=examples, count=len(found))


def differing(
    student: HFModel, reader: HFModel, ids: list[int], ratio: Array, names: set[str]
) -> Iterator[tuple[str, str, float]]:
    """Markers of a text whose ids are not those that the teacher's tokenizer gives the same text.

    ratio [n]: nan where a token is masked; a marker that is masked as a whole does no harm.
    """
    text = str(student.tokenizer.decode(ids))
    if not any(name in text for name in names):
        return
    starts = [len(str(student.tokenizer.decode(ids[:i]))) for i in range(len(ids) + 1)]
    # after a line break, because some tokenizers put a space before the first word of a text
    theirs = reader.tokenizer(f"\n{text}", add_special_tokens=False, return_offsets_mapping=True)
    for name in sorted(names):
        at = text.find(name)
        while at >= 0:
            span = (at, at + len(name))
            mine = [i for i in range(len(ids)) if starts[i] < span[1] and starts[i + 1] > span[0]]
            pairs = zip(theirs["input_ids"], theirs["offset_mapping"], strict=True)
            yours = [i for i, (a, b) in pairs if a - 1 < span[1] and b - 1 > span[0]]
            if [ids[i] for i in mine] != yours and not np.isnan(ratio[mine]).all():
                yield name, pieces(student, [ids[i] for i in mine]), float(np.nanmin(ratio[mine]))
            at = text.find(name, span[1])
