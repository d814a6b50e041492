"""From settings to a training: whatever cannot be stops here, before anything is written and before step 1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from opd import cast as casting
from opd.errors import DataError, SettingError
from opd.loop import Source, Training
from opd.masks import masks
from opd.measure import Kinds, Measures
from opd.method import Method, chain
from opd.observe import measured
from opd.protocols import Cast, Task, resolve_layers
from opd.settings import Settings
from opd.tasks import load_task
from opd.teach import check_capabilities


def build(settings: Settings) -> Training:
    """Models, task, method and optimizer; whatever cannot be stops here, before step 1."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    method: Method = settings.build_method()
    task = load_task(settings.task)
    cast = casting.build(settings, method)
    student = cast["student"]
    method = replace(method, credit=chain(*masks(settings, student), method.credit))
    check_capabilities(method, cast)
    check_support(method, student.vocab)
    check_layers(method, cast)
    check_losses(method, cast)
    check_task(task, student)
    check_routes(cast, task)
    check_views(method, task)
    method = measured(method, cast)
    parameters = [{"params": list(student.parameters())}]
    own = [
        p for term in method.terms.values() if isinstance(term.loss, torch.nn.Module) for p in term.loss.parameters()
    ]
    optimizer = torch.optim.AdamW(
        parameters + ([{"params": own}] if own else []),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )
    return Training(
        student, cast, task, method, optimizer, settings.rate, Source(task.train, settings.seed),
        settings.steps, settings.batch, settings.max_grad_norm, settings.micro_tokens, settings.chunk,
        measure=Measures(Kinds(student), method.teach[0].into if method.teach else ""),
    )  # fmt: skip


def check_layers(method: Method, cast: Cast) -> None:
    """Layers that a model in this process does not have are refused before anybody writes."""
    asked = [("student", method.layers), *((ask.who, ask.want.layers) for ask in method.teach)]
    for who, layers in asked:
        for member in getattr(cast[who], "members", {who: cast[who]}).values():
            engine = getattr(member, "engine", member)
            if layers and hasattr(engine, "blocks"):
                resolve_layers(layers, len(engine.blocks), f"{who} {engine.name}")


def check_losses(method: Method, cast: Cast) -> None:
    """A loss that compares the models themselves says before step 1 whether it can."""
    for term in method.terms.values():
        if check := getattr(term.loss, "check", None):
            check(cast)


def check_task(task: Task, student: Any) -> None:
    """There is something to learn and to be examined on, and every prompt leaves room for an answer."""
    for kind, problems in (("training", task.train), ("held-out", task.held_out)):
        if not problems:
            what = f"task {task.name} has no {kind} problem"
            raise DataError(what, expected="at least one", remedy="Give it more problems")
    for problem in (*task.train, *task.held_out):
        n = len(student.render(problem.messages))
        if n >= student.context:
            start = " ".join(problem.messages[-1]["content"].split())[:40]
            raise DataError(
                f"the prompt of problem {problem.id} ({start!r}...) does not fit the context of {student.name}",
                got=f"{n} tokens",
                expected=f"at most {student.context - 1}",
                remedy="Drop or shorten that problem",
            )


def check_routes(cast: Cast, task: Task) -> None:
    """Where a role is played by several, every problem names the one who plays it."""
    for member in cast.values():
        if route := getattr(member, "route", None):
            for problem in (*task.train, *task.held_out):
                route(problem)


def check_views(method: Method, task: Task) -> None:
    """A view that needs more of a problem than its prompt finds it in every one."""
    for ask in method.teach:
        if check := getattr(ask.view, "check", None):
            for problem in task.train:
                check(problem)


def check_support(method: Method, vocab: int) -> None:
    if method.support > vocab:
        raise SettingError(
            "the support is larger than the vocabulary", got=f"k={method.support}", expected=f"at most {vocab}"
        )
