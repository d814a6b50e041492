"""`opd doctor`: what is wrong with a planned run, as a table of pass, warn and fail with the option that mends it."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from opd.cli import options
from opd.cli.training import method_of, settings_of
from opd.errors import SettingError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opd.doctor import Finding
    from opd.settings import Settings

DEFAULT = "local_support"
ANSWERS = options.Option("answers", "int", 32, "of the student that are tried; 0: only what needs none", "Trying")
JSON = options.Option("json", "bool", False, "everything as JSON on one line", "Output")
USAGE = ("opd doctor [METHOD] [options]", "opd doctor FILE.toml [options]")
ABOUT = "Examines student, teacher, task and method before a run; takes the options of opd train, and writes nothing."
STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}


def doctor(words: list[str]) -> int:
    """Prints what was found; 1 when something fails."""
    target = options.target_of(words)
    method = method_of(target or DEFAULT)
    planned = [option for option in options.of_settings() if option.name != "doctor"]
    known = [ANSWERS, JSON, *options.of_method(method), *planned]
    if options.asks_help(words):
        print(options.page(USAGE, ABOUT, known))
        return 0
    places, given = options.parse(words, known, f"doctor {target}".strip())
    place = options.one_place(places or [DEFAULT], "method or TOML file", "doctor")
    is_json, count = given.pop("json", False), number(given.pop("answers", ANSWERS.default))
    settings = settings_of(place, method, given)
    start = time.perf_counter()
    found = examined(settings, count)
    seconds = time.perf_counter() - start
    if is_json:
        print(as_json(settings, found, seconds))
    else:
        show(settings, found, seconds)
    return int(any(one.verdict == "fail" for one in found))


def number(text: Any) -> int:
    """How many answers to try."""
    if not (isinstance(text, int) or str(text).isdecimal()):
        raise SettingError("--answers", got=repr(text), expected="a whole number from 0")
    return int(text)


def examined(settings: Settings, answers: int) -> list[Finding]:
    """Loads every model once and asks the doctor."""
    from opd.cli.quiet import hush

    hush()
    from opd.doctor import Case, examine

    return examine(Case.open(settings), answers)


def as_json(settings: Settings, found: Sequence[Finding], seconds: float) -> str:
    """One line with everything, the same words as in run.toml for who and what."""
    from opd.cast import student_spec

    verdicts = [one.verdict for one in found]
    about = settings.model_dump(include={"method", "teacher", "task"}) | {"student": student_spec(settings)}
    worst = next((verdict for verdict in ("fail", "warn") if verdict in verdicts), "pass")
    plain = [asdict(one) | {"numbers": {k: finite(v) for k, v in one.numbers.items()}} for one in found]
    return json.dumps({**about, "verdict": worst, "seconds": round(seconds, 2), "findings": plain})


def finite(number: float) -> float | None:
    """JSON knows no infinity."""
    return number if math.isfinite(number) else None


def show(settings: Settings, found: Sequence[Finding], seconds: float) -> None:
    """The table, as wide as the terminal."""
    from rich.console import Console
    from rich.text import Text

    from opd.cast import student_spec

    console = Console(highlight=False)
    console.print(Text(f"{settings.method} on {settings.task}, student {student_spec(settings)}"), soft_wrap=True)
    console.print(table(found))
    counts = Counter(one.verdict for one in found)
    console.print(f"{counts['pass']} pass, {counts['warn']} warn, {counts['fail']} fail ({seconds:.1f} s)")


def table(found: Sequence[Finding]) -> RenderableType:
    """One row per finding; what mends it stands below what was seen."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=box.SIMPLE_HEAD, show_header=False, padding=(0, 1), pad_edge=False)
    rows.add_column(no_wrap=True)
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for one in found:
        text = Text(printable(one.evidence))
        if one.remedy:
            text.append(f"\n→ {printable(one.remedy)}", "cyan")
        rows.add_row(Text(one.verdict, STYLES[one.verdict]), one.name, text)
    return rows


def printable(text: str) -> str:
    """Without letters that would move a terminal's cursor."""
    return "".join(c if c.isprintable() else "�" for c in text)
