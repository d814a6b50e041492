"""Who plays which role in an environment: a policy learns, and an expert, a saved policy or a copy of it teaches.

--student table | mlp:WIDTH | FOLDER
--teacher values[,epsilon=E][,gamma=G] | FOLDER[,epsilon=E] | sb3:FILE[,epsilon=E] |
          python:FILE:FUNCTION[,epsilon=E] | self:...
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opd.engines.policy import NETS, Policy, loaded, made
from opd.engines.world import World
from opd.errors import SettingError, TeacherError, nearest
from opd.settings import Settings
from opd.tasks import parse
from opd.teachers.exact import expert
from opd.teachers.expert import EPSILON, Expert

TEACHERS = "values, a folder that opd saved, sb3:FILE, python:FILE:FUNCTION, or a copy of the student (self:...)"


def student(spec: str, settings: Settings, world: World) -> Policy:
    """The policy that learns: untaught, or one that was saved."""
    refuse(settings)
    policy = _student(spec, settings, world)
    return policy if settings.dtype != "float64" else Policy(world, policy.net.double(), policy.name, settings.max_new)


def _student(spec: str, settings: Settings, world: World) -> Policy:
    if (folder := Path(spec) / "model").is_dir() or (folder := Path(spec)).is_dir():
        return loaded(folder, world, settings.max_new)
    if "/" in spec or spec.partition(":")[0] not in ("table", "mlp"):
        raise SettingError(f"no policy {spec!r} for {world.name}", expected=NETS)
    return made(spec, world, settings.seed, settings.max_new)


def refuse(settings: Settings) -> None:
    """Settings that are for language models would change nothing here, and so they are refused."""
    given = {
        "--device": (settings.device, ("auto", "cpu")),
        "--teacher-device": (settings.teacher_device, ("auto", "cpu")),
        "--dtype": (settings.dtype, ("auto", "float32", "float64")),
        "--lora": (settings.lora, (0,)),
        "--mask": (", ".join(map(str, settings.mask)) or "none", ("none",)),
        "--stop-token": (settings.stop_token, ("keep",)),
        "--gradient-checkpointing": (settings.gradient_checkpointing, (False,)),
    }
    for name, (got, possible) in given.items():
        if got not in possible:
            expected = " or ".join(map(str, possible))
            raise SettingError(f"{name} of a policy in an environment", got=got, expected=expected)


def teacher(spec: str, settings: Settings, world: World) -> Expert:
    """The expert that a text names; every one of them takes a random action at rate `epsilon`."""
    kind, target, options = parse(spec)
    if kind == "values":
        return expert(world, **known(spec, options, "epsilon", "gamma"), max_new=settings.max_new)
    epsilon = known(spec, options, "epsilon").get("epsilon", EPSILON)
    if kind == "python":
        return Expert(world, function(target), epsilon=epsilon, name=spec, max_new=settings.max_new)
    if kind == "sb3":
        from opd.teachers import sb3

        return sb3.expert(target, world, epsilon=epsilon, max_new=settings.max_new)
    if Path(kind).is_dir():
        policy = student(kind, settings, world)
        acts = lambda seen: policy.logprobs(seen).exp()
        return Expert(world, acts, epsilon=epsilon, name=spec, max_new=settings.max_new)
    raise SettingError(f"no teacher {spec!r} for {world.name}", expected=TEACHERS)


def known(spec: str, options: dict[str, Any], *names: str) -> dict[str, float]:
    """The options of a teacher, which are numbers."""
    for name, value in options.items():
        if name not in names:
            raise SettingError(f"teacher {spec!r} has no option {name!r}", remedy=nearest(name, names))
        if isinstance(value, str | bool):
            raise SettingError(f"option {name!r} of teacher {spec!r}", got=repr(value), expected="a number")
    return options


def function(target: str) -> Callable[..., Any]:
    """FILE:FUNCTION, a function from observations [n, ...] to probabilities [n, V]; the file is run."""
    path, _, name = target.rpartition(":")
    if not Path(path).is_file():
        raise TeacherError(f"teacher python:{target}", got="no such file", expected="python:FILE:FUNCTION")
    plan = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert plan and plan.loader
    module = importlib.util.module_from_spec(plan)
    try:
        plan.loader.exec_module(module)
    except Exception as error:  # the file is the user's own, and so are its mistakes
        raise TeacherError(f"{path} cannot be run", got=f"{type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise TeacherError(f"{path} has no function {name!r}", remedy="Write python:FILE:FUNCTION")
    return found
