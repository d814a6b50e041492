"""All choices of a run in one typed place, whether typed on the command line, in TOML or in Python."""

from __future__ import annotations

import inspect
import math
import tomllib
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from opd import recipes
from opd.budget import Budget
from opd.errors import SettingError, nearest, require

if TYPE_CHECKING:
    from opd.method import Method

RECORDED = ("versions", "git")  # what a run writes into its run.toml beside the settings


class Settings(BaseModel):
    """What to run. Parameters of the method stand under `parameters` (in TOML: the table [parameters])."""

    model_config = ConfigDict(extra="forbid", strict=False, validate_default=True, allow_inf_nan=False)

    method: str = Field(description="the recipe, see 'opd list'")
    parameters: dict[str, Any] = Field(default_factory=dict, description="of the recipe, see 'opd show METHOD'")
    student: str = Field(
        "embedded:student", description="model folder or hub name, or embedded:student; to act, table or mlp:WIDTH"
    )
    teacher: str = Field(
        "",
        description="model folder or hub name, http://HOST:PORT of opd serve (several with commas), or self:live, "
        "self:frozen, self:ema=D, self:every=K, self:trust=R, vllm:http://HOST:PORT of a vLLM server, stored:FOLDER of "
        "opd store, chat:URL#MODEL for text; "
        "to act, values; "
        "NAME=MODEL,NAME=MODEL lets the column teacher_id of a problem choose",
    )
    teacher_timeout: float = Field(
        60.0, gt=0, description="seconds without a sign of life before a served teacher is asked again"
    )
    teacher_patience: float = Field(
        300.0, ge=0, description="seconds of asking again before the run stops at a checkpoint"
    )
    teacher_misses: float = Field(
        0.0, ge=0, le=1,
        description="share of a batch's named tokens of which a teacher that gives best tokens alone may say nothing; "
        "what is left for these is guessed",
    )  # fmt: skip
    another_teacher: bool = Field(False, description="a resumed run may go on with another served teacher")
    reference: str = Field("", description="whom a method with a reference asks beside the teacher; as --teacher")
    texts: Literal["method", "stored"] = Field(
        "method", description="whose are learned from: the method's own, or those in a stored teacher's store"
    )
    sampler: str = Field(
        "", description="who writes for the student: vllm:http://HOST:PORT, started as 'opd sampler' says; '': itself"
    )
    sampler_cap: float = Field(
        2.0, ge=0, description="most that a token of the sampler's weighs where the two differ; 0: all weigh alike"
    )
    sampler_tolerance: float = Field(
        0.05, gt=0, description="mean nats by which student and sampler may differ before the run stops"
    )
    sampler_timeout: float = Field(600.0, gt=0, description="seconds before a sampler's text is asked for again")
    task: str = Field("sums", description="sums, jsonl:FILE, parquet:FILE, reasoning_gym:NAME or gymnasium:NAME")
    out: str = Field("", description="run folder; default runs/METHOD-TASK-SEED")
    mask: tuple[int | str, ...] = Field((), description="tokens not learned from: ids, or texts of one token each")
    mask_which: Literal["first", "all"] = Field("first", description="of each masked token in an answer")
    stop_token: Literal["keep", "mask", "map"] = Field(
        "keep", description="learned from, left out, or the student's read as the teacher's"
    )
    skip_first: int = Field(0, ge=0, description="tokens at the start of an answer that are not learned from")
    steps: int = Field(100, ge=0, description="batches to learn from")
    budget: str = Field("", description="ends the run instead of --steps: tokens=N, seconds=N or teacher_tokens=N")
    batch: int = Field(16, ge=1, description="problems per step")
    max_new: int = Field(256, ge=1, description="tokens of an answer at most")
    seed: int = Field(0, ge=0, description="fixes everything on a CPU")
    lr: float = Field(1e-5, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="of the learning rate")
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    floor: float = Field(0.1, ge=0, le=1, description="share of the learning rate at the end of linear and cosine")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    betas: tuple[float, float] = Field((0.9, 0.98), description="of AdamW")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient norm is cut to this; 0 for no cut")
    lora: int = Field(0, ge=0, description="rank of LoRA adapters; 0 trains every weight")
    subspace_rank: int = Field(
        0, ge=0, description="holds every matrix to so many directions of its own movement so far; 0: free"
    )
    subspace_after: float = Field(0.2, gt=0, lt=1, description="share of the steps after which it is held")
    subspace_hold: Literal["gradient", "update"] = Field("gradient", description="what is projected")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field("auto", description="of the student")
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        "auto", description="of the teacher"
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1 ...")
    teacher_device: str = Field("auto", description="where the teacher sits; auto: with the student")
    threads: int = Field(0, ge=0, description="of the CPU; 0 leaves it to torch (another number, other last bits)")
    gradient_checkpointing: bool = Field(False, description="less memory, one more forward")
    micro_tokens: int = Field(8192, ge=1, description="padded tokens in one forward and backward at most")
    chunk: int = Field(0, ge=0, description="rows of logits at a time; 0 chooses by the vocabulary")
    eval_every: int = Field(
        0, ge=0, description="steps between examinations on held-out problems; 0: only first and last"
    )
    eval_problems: int = Field(256, ge=1, description="held-out problems of an examination")
    eval_samples: int = Field(1, ge=1, description="sampled answers per held-out problem")
    eval_on: Literal["reported", "tuning"] = Field("reported", description="part of the held-out problems")
    tuning_problems: int = Field(0, ge=0, description="held-out problems set aside to choose settings with")
    checkpoint_every: int = Field(50, ge=0, description="steps between checkpoints; 0: only when stopped")
    keep_checkpoints: int = Field(2, ge=1, description="older checkpoints are deleted")
    rows_every: int = Field(0, ge=0, description="steps between saved tables of rows; 0: first and last")
    drafts: int = Field(48, ge=0, description="held-out answers that the page shows marked up, before and after")
    doctor: Literal["on", "off"] = Field("on", description="a look at models and task before the first step")
    logger: Literal["none", "wandb", "trackio", "tensorboard"] = Field("none", description="beside metrics.jsonl")
    trust_remote_code: bool = Field(False, description="allow code from a model folder to run")

    @classmethod
    def of(cls, **values: Any) -> Settings:
        """Checked settings; every mistake is one sentence with got, expected and remedy."""
        settings = checked(cls, values)
        settings.parameters = checked_parameters(settings.method, settings.parameters)
        return settings

    @classmethod
    def read(cls, file: str | Path, **overrides: Any) -> Settings:
        """Settings from a TOML file, with whatever is given beside it on top."""
        values = {name: value for name, value in read_toml(file).items() if name not in RECORDED}
        written = values.pop("parameters", {})
        if not isinstance(written, dict):
            raise SettingError(f"parameters in {file}", got=repr(written), expected="a table [parameters]")
        parameters = {**written, **overrides.pop("parameters", {})}
        return cls.of(**{**values, **overrides, "parameters": parameters})

    @model_validator(mode="after")
    def _ends_once(self) -> Settings:
        """Steps and a budget in another unit are not given together: a run has one end."""
        if self.budget:
            end = Budget.of(self.budget)
            steps = int(end.amount) if end.unit == "steps" else 0
            if "steps" in self.model_fields_set and self.steps != steps:
                got = f"steps {self.steps} and budget {self.budget}"
                raise SettingError("a run ends once", got=got, expected="steps or a budget")
            self.steps = steps
        return self

    def end(self) -> Budget | None:
        """What ends the run, nothing of it spent; None where that is the number of steps."""
        budget = Budget.of(self.budget) if self.budget else None
        return budget if budget and budget.unit != "steps" else None

    @property
    def folder(self) -> Path:
        task = self.task.split(",")[0].replace(":", "-").replace("/", "-")
        return Path(self.out or f"runs/{self.method}-{Path(task).name}-{self.seed}")

    def build_method(self) -> Method:
        method = recipes.load(self.method)(**self.parameters)
        if "stored:" not in self.teacher:
            require(self.texts == "method", "--texts stored", got=f"teacher {self.teacher!r}", expected="stored:FOLDER")
            return method
        from opd.parts.offline import from_store

        return from_store(method, self.texts == "stored")

    def rate(self, step: int, share: float | None = None) -> float:
        """Learning rate of a step: a linear warm-up, then constant, linear or cosine down to floor * lr.

        The way down follows the `share` of the budget that is spent; None where that is the share of the steps.
        """
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        done = step / max(self.steps, 1) if share is None else share
        shape = {
            "constant": 1.0,
            "linear": 1 - (1 - self.floor) * done,
            "cosine": self.floor + (1 - self.floor) * _cosine(done),
        }
        return self.lr * warm * shape[self.schedule]


EXPECTED = {  # by pydantic's type of mistake
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a table",
}


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def read_toml(file: str | Path) -> dict[str, Any]:
    path = Path(file)
    if not path.is_file():
        raise SettingError("no such settings file", got=str(path), expected="a TOML file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not TOML", got=str(error)) from None


Model = TypeVar("Model", bound=BaseModel)


def checked(kind: type[Model], values: dict[str, Any]) -> Model:
    """A model of these values, brought to their types."""
    for name in values:
        if name not in kind.model_fields:
            raise SettingError("unknown setting", got=repr(name), remedy=nearest(name, kind.model_fields))
    try:
        return kind(**values)
    except ValidationError as error:
        raise _sentence(error, "setting") from None


def checked_parameters(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """The parameters that were given, brought to the types of the recipe's signature."""
    recipe = recipes.load(method)
    known = inspect.signature(recipe).parameters
    hints = typing.get_type_hints(recipe)
    for name in given:
        if name not in known:
            raise SettingError(f"unknown parameter of {method}", got=repr(name), remedy=nearest(name, known))
    found: dict[str, Any] = {}
    for name, value in given.items():
        try:
            found[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise _sentence(error, f"parameter {name!r} of {method}") from None
    recipe(**found)  # a recipe says itself which values cannot be
    return found


def _sentence(error: ValidationError, what: str) -> SettingError:
    """The first mistake, in words of our own where pydantic speaks of parsing."""
    first = error.errors()[0]
    place = [part for part in first["loc"] if isinstance(part, str)]
    message = first["msg"][0].lower() + first["msg"][1:]
    expected = EXPECTED.get(first["type"], message.removeprefix("input should be "))
    if first["type"] == "missing":
        expected = "a value" if len(first["loc"]) == 1 else "one more value"
    got = None if expected == "a value" else repr(first["input"])
    return SettingError(f"{what} {place[0]!r}" if place else what, got=got, expected=expected)
