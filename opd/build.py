"""From settings to a training: whatever cannot be stops here, before anything is written and before step 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from opd import cast as casting
from opd.errors import DataError, SettingError
from opd.examined import examined
from opd.loop import Optimizer, Source, Training
from opd.masks import masks
from opd.measure import Kinds, Measures
from opd.method import Method, Updates, chain, parts
from opd.parts.observe import measured
from opd.protocols import Cast, Task, depth_of, resolve_layers
from opd.settings import Settings
from opd.subspace import HeldToSubspace
from opd.tasks import load_task
from opd.teach import check_capabilities


def build(settings: Settings) -> Training:
    """Models, task, method and optimizer; whatever cannot be stops here, before step 1."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    method: Method = settings.build_method()
    task = load_task(settings.task)
    cast = casting.build(settings, method, getattr(task, "world", None))
    student, end = cast["student"], settings.end()
    method = masked(settings, method, student)
    check(settings, method, task, cast)
    training = assembled(settings, measured(method, cast), task, cast)
    training.measure = Measures(Kinds(student), method.teach[0].into if method.teach else "")
    training.budget = end
    if end is not None:
        training.rate = lambda step: settings.rate(step, end.share)
    return training


def assembled(settings: Settings, method: Method, task: Task, cast: Cast) -> Training:
    """A training from parts that are there and fit: AdamW, the settings' steps and rate, and nothing measured."""
    student = cast["student"]
    parameters = [{"params": list(student.parameters())}]
    own = [
        p for term in method.terms.values() if isinstance(term.loss, torch.nn.Module) for p in term.loss.parameters()
    ]
    optimizer: Optimizer = torch.optim.AdamW(
        parameters + ([{"params": own}] if own else []),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )
    if settings.subspace_rank:
        optimizer = held(settings, method.updates, optimizer, student)
    return Training(
        student, cast, task, method, optimizer, settings.rate, Source(task.train, settings.seed),
        settings.steps, settings.batch, settings.max_grad_norm, settings.micro_tokens, settings.chunk,
    )  # fmt: skip


def held(settings: Settings, updates: Updates, optimizer: torch.optim.Optimizer, student: Any) -> Optimizer:
    """The optimizer, held to a subspace from a share of its steps on."""
    start = int(settings.subspace_after * settings.steps) * updates.epochs * updates.parts
    if settings.lora or settings.end() is not None or not start:
        got = "adapters" if settings.lora else f"{settings.budget or f'{settings.steps} steps'}"
        raise SettingError(
            "a subspace is taken from how the weights themselves have moved after a share of the steps",
            got=got,
            expected="full weights, and steps of which that share is at least one",
        )
    return HeldToSubspace(optimizer, student.weights(), settings.subspace_rank, start, settings.subspace_hold)


def masked(settings: Settings, method: Method, student: Any) -> Method:
    """The method, learning from no token that the settings leave out."""
    return replace(method, credit=chain(*masks(settings, student), method.credit))


def check(settings: Settings, method: Method, task: Task, cast: Cast) -> None:
    """Everything that can be known to go wrong before anybody writes."""
    for one in checks(method, task, cast).values():
        one()
    check_end(settings, method)
    examined(task.held_out, settings.tuning_problems, settings.eval_on, settings.eval_problems)


def checks(method: Method, task: Task, cast: Cast) -> dict[str, Callable[[], None]]:
    """Everything that a run refuses once its models are there, by name; the doctor asks the same."""
    student = cast["student"]
    return {
        "capabilities": lambda: check_capabilities(method, cast),
        "support": lambda: check_support(method, student.vocab),
        "layers": lambda: check_layers(method, cast),
        "parts": lambda: check_parts(method, cast),
        "prompts": lambda: check_task(task, student),
        "routes": lambda: check_routes(cast, task),
        "views": lambda: check_views(method, task),
        "solutions": lambda: check_solutions(method, task, cast),
        "rewards": lambda: check_rewards(method, task),
    }


def check_end(settings: Settings, method: Method) -> None:
    """A budget that a method never spends would never end its run."""
    if (end := settings.end()) and end.unit == "teacher_tokens" and not method.teach:
        raise SettingError(
            f"{settings.method} asks the teacher nothing while it learns, so that {settings.budget} is never spent",
            expected="a budget in steps, tokens or seconds",
        )


def check_layers(method: Method, cast: Cast) -> None:
    """Layers that a model does not have are refused before anybody writes, if it tells how many it has."""
    asked = [("student", method.layers), *((ask.who, ask.want.layers) for ask in method.teach)]
    for who, layers in asked:
        for member in casting.each(cast[who]).values():
            if layers and (depth := depth_of(member)):
                resolve_layers(layers, depth, f"{who} {getattr(member, 'engine', member).name}")


def check_parts(method: Method, cast: Cast) -> None:
    """A sample, credit or loss that needs more of the models than they may have says before step 1 whether it can."""
    for part in (method.sample, *parts(method.credit), *(term.loss for term in method.terms.values())):
        if check := getattr(part, "check", None):
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


def check_solutions(method: Method, task: Task, cast: Cast) -> None:
    """A sample that takes more of a problem than its prompt finds it in every one."""
    if check := getattr(method.sample, "check_problem", None):
        for problem in task.train:
            check(problem, cast)


def check_rewards(method: Method, task: Task) -> None:
    """A method that lives on rewards gets a grade for every answer."""
    if not method.needs_reward or hasattr(task, "world"):
        return
    first = task.train[0]
    unanswered = next((problem for problem in task.train if problem.answer is None), first)
    for problem in (first, unanswered):
        if task.grade(problem, "") is None:
            start = " ".join(problem.messages[-1]["content"].split())[:40]
            raise DataError(
                f"the method needs a reward for every answer, and problem {problem.id} ({start!r}...) has none",
                expected="a task with a grader",
                remedy="Give every problem its answer (column 'answer'), or take a method without rewards",
            )


def check_support(method: Method, vocab: int) -> None:
    if method.support > vocab:
        raise SettingError(
            "the support is larger than the vocabulary", got=f"k={method.support}", expected=f"at most {vocab}"
        )
