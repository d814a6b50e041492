"""`opd train`: from words to settings, from settings to a run, and what is said when it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd import recipes
from opd.cli import options
from opd.cli.options import Option
from opd.errors import SettingError, Unanswered

if TYPE_CHECKING:
    from opd.run import Run
    from opd.settings import Settings

RESUME = Option("resume", "Path", "", "go on where a run's last checkpoint stands, with its own settings", "Starting")
USAGE = ("opd train METHOD [options]", "opd train FILE.toml [options]", "opd train --resume FOLDER")


def train(words: list[str]) -> int:
    """Lets a student learn; 130 when it was asked to stop before the end."""
    target = options.target_of(words)
    method = method_of(target) if target else ""
    known = [RESUME, *(options.of_method(method) if method else []), *options.of_settings()]
    if options.asks_help(words):
        print(help_page(method, known))
        return 0
    places, given = options.parse(words, known, f"train {method}".strip())
    folder = given.pop("resume", None)
    if folder is not None:
        refuse_beside_resume([*places, *(f"--{name}" for name in given)])
        return go_on(folder)
    settings = settings_of(options.one_place(places, "method or TOML file", "train"), method, given)
    return start(settings)


def method_of(target: str) -> str:
    """The method itself, or the one that a TOML file names."""
    if not target.endswith(".toml"):
        recipes.check_name(target)
        return target
    from opd.settings import read_toml

    name = read_toml(target).get("method")
    if not isinstance(name, str):
        raise SettingError(f"{target} names no method", got=repr(name), remedy='Write method = "gkd" (see opd list)')
    recipes.check_name(name)
    return name


def help_page(method: str, known: Sequence[Option]) -> str:
    if not method:
        text = "Lets a student learn from a teacher. Every method has parameters of its own: opd train METHOD --help."
        return options.page(USAGE, text, known, f"Methods: {', '.join(recipes.names())}")
    described = recipes.describe(method)
    after = f"opd show {method} explains the method, opd check {method} tries it on a toy."
    usage = (f"opd train {method} [options]",)
    return options.page(usage, f"{described.summary}\n{described.paper}", [o for o in known if o is not RESUME], after)


def settings_of(target: str, method: str, given: dict[str, Any]) -> Settings:
    """Settings with the method's own parameters sorted out from those of the run."""
    from opd.settings import Settings

    own = {option.name for option in options.of_method(method)}
    parameters = {name: value for name, value in given.items() if name in own}
    rest = {name: value for name, value in given.items() if name not in own}
    if target.endswith(".toml"):
        return Settings.read(target, parameters=parameters, **rest)
    return Settings.of(method=method, parameters=parameters, **rest)


def refuse_beside_resume(words: Sequence[str]) -> None:
    if words:
        remedy = "Leave that out, or start a new run from its run.toml: opd train FOLDER/run.toml --out NEW"
        raise SettingError("a resumed run keeps its own settings", got=" ".join(words), remedy=remedy)


def start(settings: Settings) -> int:
    watches = watching(settings.logger)
    from opd.run import Run

    return end(lambda: Run.new(settings, *watches))


def go_on(folder: str) -> int:
    from opd.settings import read_toml

    if (Path(folder) / "summary.json").is_file():
        print(f"{folder} is finished; its page: opd report {folder}")
        return 0
    file = Path(folder) / "run.toml"
    watches = watching(read_toml(file).get("logger", "none") if file.is_file() else "none")
    from opd.run import Run

    return end(lambda: Run.resume(folder, *watches))


def watching(logger: str) -> list[Any]:
    """Whoever looks on; a logger that cannot work says so here, before any model is loaded."""
    from opd.cli.display import display
    from opd.cli.loggers import opened
    from opd.cli.quiet import hush

    hush()
    return [*opened(logger), display()]


def end(build: Callable[[], Run]) -> int:
    from opd.run import Stopped

    run = build()
    try:
        run.train()
    except (Stopped, Unanswered) as reason:
        print(f"stopped after step {run.training.step}; continue with: opd train --resume {run.folder}", flush=True)
        if isinstance(reason, Unanswered):
            raise
        return 130
    return 0
