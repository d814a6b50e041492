"""`opd compare`: which of several methods is better here, and by how much it can be told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd import recipes
from opd.cli import options
from opd.cli.options import Option
from opd.errors import SettingError, require

if TYPE_CHECKING:
    from opd.compare.plan import Contest

GROUP = "The comparison"
OWN = [
    Option("seeds", "int", 1, "runs of every method, with seeds 0 to N-1", GROUP),
    Option("tune", "str", "", "lr=a,b,c: every method has the best of these, chosen on problems set aside", GROUP),
    Option("tuning_seeds", "int", 1, "with which the better half of the rates is tried; the mean decides", GROUP),
    Option("further_rates", "int", 0, "most to try beyond the outermost while best, below all while all harm", GROUP),
    Option("baseline", "str", "", "the method that the others are held against; default: the first", GROUP),
    Option("jobs", "int", 0, "runs at a time; default: one per core, one in all for seconds or an accelerator", GROUP),
    Option("out", "Path", "", "folder; default runs/compare-TASK", GROUP),
]
NOT_SHARED = {"seed", "out", "eval_on"}  # every run has its own
LOOKS = 4  # examinations on the way, for the curves, unless --eval-every says otherwise
USAGE = ("opd compare METHOD[:parameter=value,...] METHOD... [options]",)
TEXT = (
    "Runs every method with the same start, the same problems in the same order, the same budget and the same held-out "
    "problems, and says what can be told apart. The same command again continues what is unfinished.\n"
    "With --budget steps=N, tokens=N, seconds=N or teacher_tokens=N. Exit code 1 if some run broke."
)


def compare(words: list[str]) -> int:
    """The table, and the path of the page; 130 when it was asked to stop, 1 when a run broke."""
    known = [*OWN, *(option for option in options.of_settings() if option.name not in NOT_SHARED)]
    if options.asks_help(words):
        print(options.page(USAGE, TEXT, known, f"Methods: {', '.join(recipes.names())}"))
        return 0
    places, given = options.parse(words, known, "compare")
    if not places:
        raise SettingError("opd compare needs methods", remedy="For example opd compare sft gkd:lam=1 --seeds 3")
    from opd.cli.quiet import hush

    hush()
    contest, jobs = contest_of(places, given)
    return run(contest, jobs)


def contest_of(places: Sequence[str], given: dict[str, Any]) -> tuple[Contest, int]:
    """The comparison that was typed, and how many runs at a time."""
    from opd.compare.plan import Contest, Entrant
    from opd.settings import Settings

    own = {option.name: given.pop(option.name, option.default) for option in OWN}
    entrants = tuple(Entrant.of(word) for word in places)
    rates = rates_of(own["tune"])
    if rates and "lr" in given:
        raise SettingError("--lr and --tune are given together", remedy="Leave --lr out: --tune tries its own")
    tuning_seeds, further = whole("tuning seeds", own["tuning_seeds"]), whole("further rates", own["further_rates"])
    for option, value, without in (("--tuning-seeds", tuning_seeds, 1), ("--further-rates", further, 0)):
        if value > without and not rates:
            remedy = "Give them, as in --tune lr=1e-3,3e-3"
            raise SettingError(f"{option} without rates to choose from", got=value, remedy=remedy)
    checked = Settings.of(method=entrants[0].method, parameters=entrants[0].parameters, **given)
    shared = {name: getattr(checked, name) for name in given}
    if "eval_every" not in given:
        shared["eval_every"] = checked.steps // (LOOKS + 1)
    task = Path(checked.task.split(",")[0].replace(":", "-").replace("/", "-")).name
    out = Path(own["out"] or f"runs/compare-{task}")
    seeds = whole("seeds", own["seeds"])
    contest = Contest(
        entrants, shared, out, seeds, rates, own["baseline"], tuning_seeds=tuning_seeds, further_rates=further
    )
    jobs = whole("jobs", own["jobs"])
    require(jobs >= 0, "jobs", got=jobs, expected="at least 1")
    is_timed = (end := checked.end()) is not None and end.unit == "seconds"
    return contest, jobs or (1 if is_timed else default_jobs(checked.device))


def whole(name: str, value: Any) -> int:
    try:
        return int(value)
    except ValueError:
        raise SettingError(name, got=repr(value), expected="a whole number") from None


def rates_of(text: str) -> tuple[float, ...]:
    """'lr=1e-3,3e-3' as rates."""
    if not text:
        return ()
    name, equals, values = text.partition("=")
    try:
        found = tuple(float(value) for value in values.split(","))
    except ValueError:
        found = ()
    if name != "lr" or not equals or not found:
        raise SettingError("--tune", got=repr(text), expected="lr= and numbers, for example lr=1e-3,3e-3,1e-2")
    return found


def default_jobs(device: str) -> int:
    """One run per core; several on one accelerator would only share it."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(contest: Contest, jobs: int) -> int:
    from opd.cli.comparing_display import onlooker
    from opd.compare import course
    from opd.compare.table import show
    from opd.run import Stopped

    display = onlooker(contest, jobs)
    try:
        with display:
            comparison = course.compare(contest, jobs, display)
    except Stopped:
        print(f"stopped; what was done is in {contest.out}, and the same command goes on from there", flush=True)
        return 130
    show(comparison)
    print(f"\nA page to look at:\n  {(contest.out / 'comparison.html').resolve()}")
    return 0 if comparison.is_whole else 1
