"""`opd store`: the student writes, the teacher reads, and its answers are kept for runs that have no teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from opd.cli import options
from opd.cli.examining import located, progress
from opd.errors import SettingError
from opd.settings import Settings, checked

if TYPE_CHECKING:
    from opd.shards import Manifest


class Order(BaseModel, allow_inf_nan=False):
    """The options of `opd store`."""

    student: str = Field("embedded:student", description="who writes: a model folder, hub name or run folder")
    teacher: str = Field("", description="who reads, as for opd train; NAME=MODEL,NAME=MODEL for several")
    task: str = Field("sums", description="sums, jsonl:FILE, parquet:FILE or reasoning_gym:NAME; its training problems")
    problems: int = Field(0, ge=0, description="the first so many; 0: all of them")
    given: str = Field("", description="column of the task whose texts are stored instead of the student's own")
    n: int = Field(1, ge=1, description="texts per problem")
    k: int = Field(0, ge=0, description="best tokens that are kept per token; 0: the log-prob of the written one alone")
    temperature: float = Field(1.0, ge=0, description="at which the student writes")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus from which it writes")
    max_new: int = Field(256, ge=1, description="tokens of a text at most")
    seed: int = Field(0, ge=0, description="of the texts; those of a run with this seed")
    per_shard: int = Field(256, ge=1, description="problems per file; what is lost when it is killed")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field("auto", description="of the student")
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        "auto", description="of the teacher"
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1 ...")
    teacher_device: str = Field("auto", description="where the teacher sits; auto: with the student")
    trust_remote_code: bool = Field(False, description="allow code from a model folder to run")


ABOUT = (
    "Keeps in FOLDER what the teacher says of texts that the student writes once. The same command goes on where it was"
    " interrupted. Then: opd train lightning --teacher stored:FOLDER, or any method with --texts stored."
)


def store(words: list[str]) -> int:
    """Fills a folder and says what is in it."""
    known = options.of_fields(Order)
    if options.asks_help(words):
        print(options.page(["opd store FOLDER [options]"], ABOUT, known))
        return 0
    places, given = options.parse(words, known, "store")
    folder = Path(options.one_place(places, "folder", "store"))
    order = checked(Order, given)
    if order.given and order.n > 1:
        raise SettingError("texts that are given", got=f"n={order.n} per problem", expected="n=1")
    print("\n".join(lines(folder, stored(folder, order))))
    return 0


def stored(folder: Path, order: Order) -> Manifest:
    """Opens the models and asks."""
    from opd.cli.quiet import hush

    hush()
    from opd import cast, storing
    from opd.rollout import Sampling
    from opd.tasks import load_task

    task = load_task(order.task)
    if hasattr(task, "world"):
        raise SettingError("opd store keeps texts", got=order.task, expected="a task of a language model")
    shared = order.model_dump(include=set(Settings.model_fields) - {"student", "teacher"})
    spec = order.teacher or ("embedded:teacher" if order.student == cast.EMBEDDED else "")
    if not spec:
        raise SettingError("opd store needs a teacher", expected="--teacher", remedy="Give a model folder")
    settings = Settings(method="", student=located(order.student), teacher=spec, **shared)
    student: Any = cast.open_model(settings.student, settings, settings.dtype, settings.device)
    pair = {"student": student, "teacher": cast.teacher(spec, settings, student)}
    sampling = Sampling(order.temperature, order.top_p, max_new=order.max_new)
    plan = storing.Plan(order.n, order.k, sampling, order.seed, order.given, order.per_shard)
    return storing.store(folder, plan, pair, task.name, task.train[: order.problems or None], progress)


def lines(folder: Path, found: Manifest) -> list[str]:
    """What is in the store, in words."""
    texts, tokens = (sum(getattr(shard, name) for shard in found.shards) for name in ("texts", "tokens"))
    size = sum((folder / shard.file).stat().st_size for shard in found.shards)
    kept = f"{found.k} best tokens and the written one" if found.k else "log-prob of the written token"
    return [
        f"{folder}: {texts} texts, {tokens} tokens, {kept}; {size / max(tokens, 1):.0f} bytes per token",
        f"learn from it: opd train lightning --student ... --teacher stored:{folder}",
    ]
