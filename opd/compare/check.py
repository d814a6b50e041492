"""Whatever stands against any of the methods is said before the first of them starts."""

from __future__ import annotations

import gc
from typing import Any

from opd import build
from opd import cast as casting
from opd.compare.plan import Contest, Trial
from opd.errors import SettingError
from opd.examined import examined
from opd.record import chosen
from opd.settings import Settings, read_toml
from opd.tasks import load_task

OWN = ("threads", "out", "logger")  # may differ between a run and its continuation


def check(contest: Contest) -> int:
    """Checks every method against these models and this task, and gives how many problems are set aside for tuning.

    The models are opened on the processor and let go; the runs open them again, each in its own process.
    """
    casts: dict[tuple[str, ...], Any] = {}
    first = contest.settings(contest.entrants[0])
    task = load_task(first.task)
    for device in {first.device, first.teacher_device} - {"auto"}:
        casting.check_device(device)
    for entrant in contest.entrants:
        settings = contest.settings(entrant, device="cpu", teacher_device="cpu")
        method = settings.build_method()
        played = tuple(casting.specs(settings, method).values())
        if played not in casts:
            casts[played] = casting.build(settings, method, getattr(task, "world", None))
        build.check(settings, build.masked(settings, method, casts[played]["student"]), task, casts[played])
    casts.clear()
    gc.collect()
    if not contest.rates:
        return first.tuning_problems
    aside = first.tuning_problems or min(first.eval_problems, len(task.held_out) // 2)
    examined(task.held_out, aside, "tuning", aside)
    return aside


def check_folders(trials: list[Trial]) -> None:
    """A run that is there already must be the one that is wanted."""
    for trial in trials:
        if not (file := trial.folder / "run.toml").is_file():
            continue
        there = {name: value for name, value in read_toml(file).items() if name in Settings.model_fields}
        wanted = comparable(trial.settings)
        found = comparable(Settings.of(**there))
        if different := [name for name in wanted if wanted[name] != found[name]]:
            name = different[0]
            raise SettingError(
                f"{trial.folder} holds a run with another {name}",
                got=found[name],
                expected=wanted[name],
                remedy="Choose another folder with --out",
            )


def comparable(settings: Settings) -> dict[str, Any]:
    """What must be the same for a run to be continued."""
    values = {name: value for name, value in chosen(settings).items() if name not in OWN}
    method = settings.build_method()
    return values | {"teacher": casting.teacher_spec(settings, method)} | casting.specs(settings, method)
