"""Do both models mean the same by an id, and do they end their texts alike?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from opd import cast as casting
from opd.doctor.case import Case
from opd.doctor.finding import Finding, finding, tried
from opd.engines.hf import HFModel


def token_map(case: Case) -> Iterator[Finding]:
    """Every id that both have is the same token; from here on both give log-probs over these alone."""
    found = tried("token map", "", casting.share_tokens, case.student, *([case.teacher] if case.teacher else []))
    how = "one tokenizer" if case.reader is None else "every id means the same in both"
    fine = f"{case.student.vocab} tokens, {how}"
    yield found if found.verdict == "fail" else finding("token map", False, fine, tokens=case.student.vocab)


def padding(case: Case) -> Iterator[Finding]:
    """Heads are often larger than the vocabulary; what lies beyond is never sampled and in no log-prob."""
    notes = list[str]()
    for who, model in models(case):
        real = 1 + max(model.tokenizer.get_vocab().values())
        spare = model.head.shape[0] - real
        notes.append(f"{who} {real} tokens in {model.head.shape[0]} rows" if spare else f"{who} {real}, no padding")
    yield finding("padded vocabulary", False, "; ".join(notes))


def stop_tokens(case: Case) -> Iterator[Finding]:
    """Each model's ordinary end of text ends a text for the other one, too, and is a special token."""
    faults, remedy = list[str](), "Set eos_token_id in the folder's generation_config.json"
    for who, model in models(case):
        if not model.stops:
            faults.append(f"{who} has none: its answers end at --max-new")
        if odd := [shown(model, i) for i in sorted(model.stops) if not is_special(model, i)]:
            faults.append(f"{who} ends at {', '.join(odd)}, which is no special token")
    ours, theirs = case.student, case.reader
    how = case.settings.stop_token
    apart = ends_apart(ours, theirs) if theirs is not None else []
    if apart and not faults and how == "keep":
        faults, remedy = apart, "Give --stop-token map, or --stop-token mask"
    note = f" (--stop-token {how})" if apart and how != "keep" else ""
    both = "; ".join(f"{who} {', '.join(shown(m, i) for i in sorted(m.stops))}" for who, m in models(case))
    yield finding("stop tokens", bool(faults), "; ".join(faults) or both + note, remedy)


def ends_apart(ours: HFModel, theirs: HFModel) -> list[str]:
    """Whose own end-of-text token does not end a text for the other."""
    faults = list[str]()
    student, teacher = ("student", ours), ("teacher", theirs)
    for (who, model), (whom, other) in ((student, teacher), (teacher, student)):
        end = model.tokenizer.eos_token_id
        if isinstance(end, int) and end not in other.stops:
            faults.append(f"{who} ends with {shown(model, end)}, which does not end a text for the {whom}")
    return faults


def models(case: Case) -> Iterable[tuple[str, HFModel]]:
    yield "student", case.student
    if case.reader is not None:
        yield "teacher", case.reader


def is_special(model: HFModel, token: int) -> bool:
    return token in {*model.tokenizer.all_special_ids, *added(model).values()}


def added(model: HFModel) -> dict[str, int]:
    """Tokens that were put beside the vocabulary proper, special ones among them."""
    tokenizer: Any = model.tokenizer
    return tokenizer.get_added_vocab()


def shown(model: HFModel, token: int) -> str:
    return f"{model.decode_token(token)!r} ({token})"
