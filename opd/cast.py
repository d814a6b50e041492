"""Who plays which role: models are opened, and teachers are bound to the student where they are copies of it."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd import words
from opd.errors import SettingError
from opd.method import Method
from opd.settings import Settings

if TYPE_CHECKING:
    from opd.engines.hf import HFModel

ROUTE = re.compile(r"\s*[\w.-]*\s*=")  # a spec that begins so names several teachers: NAME=SPEC,NAME=SPEC
EMBEDDED = "embedded:student"
NOBODY = "none"  # the teacher of a method that asks none
REFERENCE = "reference"  # the third role: what a method holds the student or the teacher against
TEACHERS = "values (exact, for tabular environments), sb3:FILE, python:FILE:FUNCTION, a saved policy"
COPIES = "self:live, self:frozen, self:ema=DECAY, self:every=STEPS or self:trust=RATE"
NO_MAP = "Say stop_token=keep, or mask"


def build(settings: Settings, method: Method, world: Any = None) -> dict[str, Any]:
    """The student, its teacher and whom else the method asks, who share their tokens; in `world` all are policies."""
    return joined(settings, opened(settings, method, world))


def opened(settings: Settings, method: Method, world: Any = None) -> dict[str, Any]:
    """Everybody who takes part, each loaded once and not yet compared."""
    asked = specs(settings, method)
    if world is None:
        student: Any = open_model(settings.student, settings, settings.dtype, settings.device, learns=True)
        play = lambda spec: open_teacher(spec, settings, student)
    else:
        from opd import players

        student = players.student(student_spec(settings), settings, world)
        play = lambda spec: acting(spec, settings, student, world)
    return {"student": student, **{role: play(spec) for role, spec in asked.items()}}


def joined(settings: Settings, cast: dict[str, Any]) -> dict[str, Any]:
    """The cast over its common tokens, and over one end of text where that is asked for."""
    student, readers = cast["student"], {role: member for role, member in cast.items() if role != "student"}
    if not hasattr(student, "tokenizer"):
        return cast  # policies have one set of actions, their environment's
    share_tokens(student, *readers.values())
    maps = settings.stop_token == "map" and "teacher" in readers
    return {**cast, "teacher": ending_like(student, readers["teacher"])} if maps else cast


def specs(settings: Settings, method: Method) -> dict[str, str]:
    """Who plays every role beside the student's."""
    teacher = teacher_spec(settings, method)
    found = {} if teacher == NOBODY else {"teacher": teacher}
    if REFERENCE in method.roles:
        found[REFERENCE] = reference_spec(settings, method)
    elif settings.reference:
        what = f"{settings.method} asks no reference"
        raise SettingError(what, got=f"--reference {settings.reference}", remedy="Leave it out")
    return found


def teacher_spec(settings: Settings, method: Method) -> str:
    """The teacher that the settings name, else the method, else the one that comes with the embedded student.

    A method whose teacher neither reads nor writes does without.
    """
    embedded = "embedded:teacher" if settings.student == EMBEDDED and not acts(settings) else ""
    spec = settings.teacher or method.casting.get("teacher", "") or embedded or NOBODY
    if spec != NOBODY or "teacher" not in method.roles or method.casting.get("teacher") == NOBODY:
        return spec
    known = TEACHERS if acts(settings) else "a model folder"
    raise SettingError(f"{settings.method} needs a teacher", expected="--teacher", remedy=f"Give {known}, or {COPIES}")


def reference_spec(settings: Settings, method: Method) -> str:
    """The reference that the settings name, else the method, else the student as it was at the start."""
    usual = method.casting.get(REFERENCE, "self:frozen")
    if settings.reference == NOBODY:
        what, remedy = f"{settings.method} needs a reference", f"Say --reference MODEL, or leave it out for {usual}"
        raise SettingError(what, got=f"--reference {NOBODY}", expected="a base model", remedy=remedy)
    return settings.reference or usual


def acting(spec: str, settings: Settings, student: Any, world: Any) -> Any:
    """A teacher for a policy: a copy of it, or an expert."""
    from opd import players

    if ROUTE.match(spec):
        raise SettingError(f"teachers {spec!r} in {world.name}", got="several", expected="one")
    return copy_of(student, spec) if spec.startswith("self") else players.teacher(spec, settings, world)


def student_spec(settings: Settings) -> str:
    """The student that the settings name; in an environment the default is a small net."""
    return "mlp" if acts(settings) and settings.student == EMBEDDED else settings.student


def acts(settings: Settings) -> bool:
    return words.acts(settings.task)


def teacher(spec: str, settings: Settings, student: Any) -> Any:
    """A teacher for a student that is there already."""
    return joined(settings, {"student": student, "teacher": open_teacher(spec, settings, student)})["teacher"]


def open_teacher(spec: str, settings: Settings, student: Any) -> Any:
    """One teacher, or one per NAME of `NAME=SPEC,NAME=SPEC`."""
    return together({name: member(one, settings, student) for name, one in named(spec).items()})


def named(spec: str) -> dict[str, str]:
    """The teachers of `NAME=SPEC,NAME=SPEC`; a single spec has the empty name."""
    if not ROUTE.match(spec):
        return {"": spec}
    found: dict[str, str] = {}
    for part in spec.split(","):
        name, equals, one = (text.strip() for text in part.partition("="))
        if not (name and equals and one) or one == NOBODY or name in found:
            problem = f"{name!r} twice" if name in found else repr(part)
            raise SettingError(f"teachers {spec!r}", got=problem, expected="NAME=MODEL,NAME=MODEL, every name once")
        found[name] = one
    return found


def together(members: dict[str, Any]) -> Any:
    """The members as one teacher; a single one has the empty name."""
    if "" in members:
        return members[""]
    from opd.teachers.routed import Routed

    return Routed(members)


def each(teacher: Any) -> dict[str, Any]:
    """The teachers that play this role, by name."""
    return getattr(teacher, "members", {"": teacher})


def reads(teacher: Any) -> bool:
    """Whether it gives a log-prob for every token of any text: there is a teacher, and it is no store of answers."""
    return "chosen" in getattr(teacher, "can", ()) and not getattr(teacher, "only_its_own", False)


def member(spec: str, settings: Settings, student: Any) -> Any:
    """A copy of the student (self:...), or a model of its own."""
    if spec.startswith("self"):
        return copy_of(student, spec)
    if spec.startswith(("stored:", "chat:", "vllm:")):
        return without_model(spec, settings, student)
    if spec.startswith(("http://", "https://")):
        return served(spec, settings, student)
    if ":" in spec and not spec.startswith("embedded:") and not Path(spec).exists():
        kinds = "a model, http://HOST:PORT, or a kind that docs/teachers.md lists"
        raise SettingError("no such kind of teacher", got=repr(spec), expected=kinds)
    from opd.teachers.local import LocalTeacher

    device = settings.device if settings.teacher_device == "auto" else settings.teacher_device
    return LocalTeacher(open_model(spec, settings, settings.teacher_dtype, device))


def without_model(spec: str, settings: Settings, student: Any) -> Any:
    """A teacher of whom there is no model to be opened: stored answers, or a server that is not ours."""
    if spec.startswith("stored:"):
        from opd.teachers.stored import StoredTeacher

        return spread(StoredTeacher(spec.removeprefix("stored:"), spec), settings)
    wait = settings.teacher_timeout, settings.teacher_patience
    if spec.startswith("vllm:"):
        from opd.teachers.vllm import VLLMTeacher

        return spread(VLLMTeacher.of(spec, student, *wait), settings)
    from opd.teachers.chat import ChatTeacher

    return ChatTeacher.of(spec, student, *wait)


def spread(teacher: Any, settings: Settings) -> Any:
    """The teacher, asked about tokens of which it may say nothing where it gives best tokens and that is allowed."""
    if not settings.teacher_misses or not {"chosen", "topk"} <= teacher.can:
        return teacher
    from opd.teachers.spread import Spread

    return Spread(teacher, settings.teacher_misses)


def served(spec: str, settings: Settings, student: Any) -> Any:
    """A teacher behind one or several addresses of `opd serve`."""
    from opd.teachers.served import Served

    wait = settings.teacher_timeout, settings.teacher_patience
    return Served(spec.split(","), settings.max_new, student.device, *wait)


def share_tokens(student: Any, *readers: Any) -> int:
    """The number of tokens over which all give log-probs from now on; an error if an id means something else."""
    from opd.engines.hf import common_vocab

    members = [one for reader in readers for one in each(reader).values()]
    for one in members:
        if hasattr(one, "meet"):  # it knows of tokens, and has no tokenizer that could be compared
            one.meet(student)
    speakers = [getattr(one, "engine", one) for one in members]
    return common_vocab(student, *(one for one in speakers if hasattr(one, "tokenizer")))


def ending_like(student: Any, teacher: Any) -> Any:
    """The teacher with every member that ends a text otherwise than the student brought to the student's end."""
    members = each(teacher)
    odd = [name for name, one in members.items() if end_of_text(one) != end_of_text(student)]
    return together(members | {name: ending_alike(student, members[name]) for name in odd or members})


def ending_alike(student: Any, teacher: Any) -> Any:
    """The teacher, for whom the student's end of text stands for its own."""
    from opd.teachers.renamed import Renamed

    ours, theirs = end_of_text(student), end_of_text(teacher)
    if ours is None or theirs is None:
        who = student if ours is None else teacher.engine
        raise SettingError(f"stop_token=map: {who.name} has no end of text", expected="one", remedy=NO_MAP)
    if ours == theirs:
        name = f"token {ours} ({student.decode_token(ours)!r}) for both"
        raise SettingError("stop_token=map: there is nothing to map", got=name, expected="two tokens", remedy=NO_MAP)
    if max(ours, theirs) >= student.vocab:
        what = "stop_token=map: an end of text is not among the tokens that both models have"
        raise SettingError(what, got=f"{ours} and {theirs}", expected=f"below {student.vocab}", remedy=NO_MAP)
    return Renamed(teacher, ours, theirs)


def end_of_text(model: Any) -> int | None:
    """The token with which a model ends a text: the tokenizer's, else the smallest of its generation settings."""
    model = getattr(model, "student", getattr(model, "engine", model))  # of a copy, of a teacher, or itself
    if not hasattr(model, "tokenizer"):  # a store, or a server that keeps it to itself
        raise SettingError(f"stop_token=map: nobody knows with which token {model.name} ends a text", remedy=NO_MAP)
    end = model.tokenizer.eos_token_id
    return end if end is not None else min(model.stops, default=None)


def open_model(spec: str, settings: Settings, dtype: str, device: str, learns: bool = False) -> HFModel:
    """A model with its tokenizer, from a folder, the hub or the package; only the student gets what learning needs."""
    import torch

    from opd.engines.hf import HFModel, load_model, load_tokenizer

    if device != "auto":
        check_device(device)
    path = located(spec)
    remote = settings.trust_remote_code
    model = load_model(
        path, None if dtype == "auto" else getattr(torch, dtype), None if device == "auto" else device, remote
    )
    tokenizer = load_tokenizer(path, remote)
    if not learns:
        return HFModel(model.requires_grad_(False), tokenizer, spec, settings.max_new)
    checkpointing, lora = settings.gradient_checkpointing, settings.lora or None
    return HFModel(model, tokenizer, spec, settings.max_new, gradient_checkpointing=checkpointing, lora=lora)


def check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise SettingError("no such device here", got=repr(device), expected=" or ".join(known)) from error


def copy_of(student: Any, spec: str) -> Any:
    """self:live, self:frozen, self:ema=0.99, self:every=100, self:trust=0.05."""
    from opd.teachers import copies

    kind, _, value = spec.removeprefix("self").removeprefix(":").partition("=")
    try:
        match kind:
            case "live":
                return copies.Itself(student)
            case "" | "frozen":
                return copies.Frozen(student)
            case "ema":
                return copies.EMA(student, float(value))
            case "every":
                return copies.Snapshot(student, int(value))
            case "trust":
                return copies.TrustRegion(student, float(value))
    except ValueError:
        raise SettingError(f"teacher {spec!r}", got=repr(value), expected="a number") from None
    raise SettingError("unknown copy of the student", got=repr(spec), expected=COPIES)


def located(spec: str) -> str:
    """A model's folder or hub name; embedded:NAME is one that ships with the package."""
    if not spec.startswith("embedded:"):
        return spec
    name = spec.removeprefix("embedded:")
    folder = resources.files("opd").joinpath("embedded", name)
    if not folder.joinpath("config.json").is_file():
        raise SettingError("no such embedded model", got=repr(name), expected="student or teacher")
    return str(folder)
