"""Who plays which role: models are opened, and teachers are bound to the student where they are copies of it."""

from __future__ import annotations

from importlib import resources
from typing import Any

from opd.errors import SettingError
from opd.method import Method
from opd.settings import Settings

COPIES = "self:live, self:frozen, self:ema=DECAY or self:every=STEPS"


def build(settings: Settings, method: Method) -> dict[str, Any]:
    """The student, and the teacher that the settings or else the method name."""
    from opd.engines.hf import open_model

    spec = settings.teacher or method.casting.get("teacher", "")
    if not spec:
        raise SettingError(
            f"{settings.method} needs a teacher", expected="--teacher", remedy=f"Give a model folder, or {COPIES}"
        )
    student = open_model(
        located(settings.student),
        dtype=settings.dtype,
        device=settings.device,
        max_new=settings.max_new,
        micro_tokens=settings.micro_tokens,
        gradient_checkpointing=settings.gradient_checkpointing,
        lora=settings.lora,
        trust_remote_code=settings.trust_remote_code,
    )
    return {"student": student, "teacher": teacher(spec, settings, student)}


def teacher(spec: str, settings: Settings, student: Any) -> Any:
    """A copy of the student (self:...), or a model of its own that shares the student's tokenizer."""
    if spec.startswith("self"):
        return copy_of(student, spec)
    from opd.engines.hf import open_model, share_vocabulary
    from opd.teachers.local import LocalTeacher

    model = open_model(
        located(spec),
        dtype=settings.teacher_dtype,
        device=settings.device if settings.teacher_device == "auto" else settings.teacher_device,
        max_new=settings.max_new,
        micro_tokens=settings.micro_tokens,
        trust_remote_code=settings.trust_remote_code,
    )
    share_vocabulary(student, model)
    return LocalTeacher(model)


def copy_of(student: Any, spec: str) -> Any:
    """self:live, self:frozen, self:ema=0.99, self:every=100."""
    from opd.teachers import copies

    kind, _, value = spec.removeprefix("self").removeprefix(":").partition("=")
    try:
        match kind:
            case "live":
                return copies.itself(student)
            case "" | "frozen":
                return copies.frozen(student)
            case "ema":
                return copies.ema(student, float(value))
            case "every":
                return copies.snapshot(student, int(value))
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
