"""`opd eval`: what a model gets right on problems that nobody learned from, greedy and sampled."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from opd.cli import options
from opd.cli.display import flat, share
from opd.errors import SettingError
from opd.settings import Settings, checked
from opd.words import said

if TYPE_CHECKING:
    from opd.evaluate import Draws, Evaluation, Share
    from opd.removability import Removability


class Exam(BaseModel, allow_inf_nan=False):
    """The options of `opd eval`."""

    task: str = Field("", description="sums, jsonl:FILE, parquet:FILE, reasoning_gym:NAME or gymnasium:NAME")
    samples: int = Field(1, ge=0, description="sampled answers per problem; 0: only the greedy one")
    problems: int = Field(0, ge=0, description="the first so many held-out problems; 0: all of them")
    temperature: float = Field(1.0, gt=0, description="of the sampled answers")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of the sampled answers")
    max_new: int = Field(256, ge=1, description="tokens of an answer at most")
    seed: int = Field(0, ge=0, description="of the sampled answers")
    context: bool = Field(False, description="once more with each problem's privileged context before the question")
    teacher: str = Field("", description="a model folder or hub name, or an expert; measures the reverse KL to it")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field("auto", description="of the model")
    device: str = Field("auto", description="cpu, cuda, cuda:1 ...")
    trust_remote_code: bool = Field(False, description="allow code from a model folder to run")


JSON = options.Option("json", "bool", False, "everything as JSON on one line", "Output")


def eval_(words: list[str]) -> int:
    """Examines one model and prints what was found."""
    known = [*options.of_fields(Exam), JSON]
    if options.asks_help(words):
        text = "Examines a model folder, a hub name, embedded:NAME or a run folder on the held-out problems of a task."
        print(options.page(["opd eval MODEL --task SPEC [options]"], text, known))
        return 0
    places, given = options.parse(words, known, "eval")
    model = options.one_place(places, "model", "eval")
    as_json = given.pop("json", False)
    exam = checked(Exam, given)
    if not exam.task:
        raise SettingError("opd eval needs a task", expected="--task", remedy="For example --task sums, or jsonl:FILE")
    found, returned = examined(located(model), exam)
    if as_json:
        print(json.dumps({"model": model, **found.to_json()} | ({"context": asdict(returned)} if returned else {})))
    else:
        print("\n".join(lines(model, found) + (context_lines(returned) if returned else [])))
    return 0


def located(model: str) -> str:
    """The student of a run folder, or the model as it was named."""
    inside = Path(model) / "model"
    return str(inside) if (inside / "config.json").is_file() else model


def examined(model: str, exam: Exam) -> tuple[Evaluation, Removability | None]:
    """What the model gets right, and where that was asked for, what it still gets right under the context."""
    from opd.cli.quiet import hush

    hush()
    from opd import cast, removability
    from opd.evaluate import evaluate
    from opd.tasks import load_task

    task = load_task(exam.task)
    shared = exam.model_dump(include=set(Settings.model_fields))
    settings = Settings(method="", student=model, **shared)
    if world := getattr(task, "world", None):
        from opd import players

        student = players.student(model, settings, world)
        teacher = cast.acting(exam.teacher, settings, student, world) if exam.teacher else None
    else:
        student = cast.open_model(model, settings, settings.dtype, settings.device)
        teacher = cast.teacher(exam.teacher, settings, student) if exam.teacher else None
    problems = task.held_out[: exam.problems or None]
    told = removability.told(problems) if exam.context else []
    found = evaluate(
        student, task, problems, exam.samples, exam.temperature, exam.top_p, exam.seed, teacher,
        max_new=exam.max_new, progress=progress,
    )  # fmt: skip
    if not told or found.greedy is None:
        return found, None
    return found, removability.examine(student, task, problems, told, found.greedy, max_new=exam.max_new)


def progress(done: int, total: int) -> None:
    """One line on a terminal's stderr that is written over, and nothing anywhere else."""
    if sys.stderr.isatty():
        print(f"\r{done}/{total}", end="" if done < total else "\r\033[K", file=sys.stderr, flush=True)


def lines(model: str, found: Evaluation) -> list[str]:
    """The findings in words."""
    told = lambda text: said(text, found.task)
    words = [f"{model} on {found.task}: {found.problems} {told('problems')}"]
    plain = flat(found.to_json())
    sampled = f"sampled at temperature {found.temperature:g}, top-p {found.top_p:g}, seed {found.seed}"
    for name, draws, how in (("greedy", found.greedy, "greedy"), ("sampled", found.sampled, sampled)):
        if draws:
            accuracy = share(plain, name) if name in plain else "nothing could be graded"
            words += ["", how, *(f"  {told(head):<12}{told(text)}" for head, text in draws_words(draws, accuracy))]
    for what, nats in (("entropy", found.entropy), ("reverse KL to the teacher", found.kl)):
        if nats:
            error = "" if nats.per_token_error is None else f" ± {nats.per_token_error:.2g}"
            words += ["", f"{what}  {nats.per_token:.4g}{error} {told('nats per token')} ({nats.estimator})"]
    words += [f"the grader failed {n} times: {what}" for what, n in found.grader_errors.items()]
    return words


def context_lines(found: Removability) -> list[str]:
    """What the context does when it is put back."""
    kinds = {"without it": found.without, "with it": found.under, "both": found.both, "harm": found.harm}
    words = [
        *((name, proportion(one) if one else "nothing was right without it") for name, one in kinds.items()),
        ("length", f"{found.longer:+.1%}"),
    ]
    if found.cosine:
        ends = [end(found.cosine, key=lambda layer: found.cosine[layer]) for end in (min, max)]
        least, most = (f"{found.cosine[layer]:.4f} in layer {layer}" for layer in ends)
        words += [("states", f"cosine between the two prompts {least} to {most}")]
    title = f"greedy, right with the context before the question ({found.problems} problems)"
    return ["", title, *(f"  {head:<12}{text}" for head, text in words)]


def proportion(found: Share) -> str:
    return share({"": found.value, ".low": found.low, ".high": found.high}, "")


def draws_words(draws: Draws, accuracy: str) -> list[tuple[str, str]]:
    words = [("accuracy" if draws.samples == 1 else f"avg@{draws.samples}", accuracy)]
    words += [(f"pass@{k}", f"{value:.1%}") for k, value in draws.pass_at.items() if k > 1]
    ungraded = draws.grade is not None and abs(draws.grade - (draws.accuracy.value if draws.accuracy else 0)) > 1e-9
    words += [("mean grade", f"{draws.grade:.3f}")] if ungraded else []
    if found := draws.returned:
        words += [("return", f"{found.value:.4g} ({found.low:.4g} to {found.high:.4g})")]
    return [*words, ("length", f"{draws.length:.1f} tokens"), ("cut off", f"{draws.truncated:.1%}")]
