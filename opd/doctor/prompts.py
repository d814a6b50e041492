"""The student's template writes the prompt that both models see: is it the form that the teacher knows?"""

from __future__ import annotations

import re
from collections.abc import Iterator

import jinja2

from opd.doctor.case import Case
from opd.doctor.finding import Finding, finding
from opd.engines.hf import HFModel
from opd.errors import OpdError
from opd.rollout import Problem

COMPARED = 8  # prompts
THINKING = re.compile(r"<think>\s*(</think>)?\s*$")  # what a template may put behind its generation prompt
MODES = {
    "none": "knows nothing of <think>",
    "template": "leaves <think> to the model",
    "closed": "writes an empty <think></think> into the prompt",
    "open": "opens <think> in the prompt",
}


def chat_template(case: Case) -> Iterator[Finding]:
    """Both would write the same prompt, but for what concerns thinking, which is a check of its own."""
    ours, theirs = case.student, case.reader
    if theirs is None:
        return
    pairs = [(prompt_text(ours, problem), prompt_text(theirs, problem)) for problem in case.problems[:COMPARED]]
    different = [(a, b) for a, b in pairs if THINKING.sub("", a) != THINKING.sub("", b)]
    has = [bool(template_of(model)) for model in (ours, theirs)]
    fine = "both write the same prompt" + ("" if any(has) else ", without a template")
    evidence = f"the teacher reads {where(*different[0])}" if different else fine
    remedy = "Save the student with the teacher's chat_template, or take models of one family"
    yield finding("chat template", bool(different), evidence, remedy, examples=different[0] if different else ())


def where(ours: str, theirs: str) -> str:
    """The first place where two prompts part, a few letters of each."""
    if not theirs:
        return "messages that its own template refuses"
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    start = max(0, at - 8)
    return f"{ours[start : at + 16]!r} where its own template writes {theirs[start : at + 16]!r}"


def thinking(case: Case) -> Iterator[Finding]:
    """A teacher that thinks before it answers finds an answer without thinking improbable, and the other way round."""
    if case.reader is None:
        return
    ours, theirs = (thinking_mode(model, case) for model in (case.student, case.reader))
    fine = f"both: the template {MODES[ours]}"
    evidence = f"the student's template {MODES[ours]}, the teacher's {MODES[theirs]}"
    remedy = "Give both folders a chat_template of the same mode, or take a teacher of the student's mode"
    yield finding("thinking", ours != theirs, evidence if ours != theirs else fine, remedy)


def thinking_mode(model: HFModel, case: Case) -> str:
    """A key of MODES."""
    prompt = prompt_text(model, case.problems[0]) if case.problems else ""
    if found := THINKING.search(prompt):
        return "closed" if found[1] else "open"
    return "template" if "<think>" in template_of(model) else "none"


def prompt_text(model: HFModel, problem: Problem) -> str:
    """The prompt as this model would write it, special tokens included; '' where its template refuses."""
    try:
        return str(model.tokenizer.decode(model.render(problem.messages).tolist()))
    except (jinja2.TemplateError, OpdError):
        return ""


def template_of(model: HFModel) -> str:
    """The chat template, or all of them where a tokenizer has several; '' for none."""
    found = model.tokenizer.chat_template or ""
    return found if isinstance(found, str) else "\n".join(map(str, found.values()))
