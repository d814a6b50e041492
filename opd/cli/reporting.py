"""`opd report`: the page of a run."""

from __future__ import annotations

from pathlib import Path

from opd.cli import options
from opd.errors import SettingError


def report(words: list[str]) -> int:
    """Writes the page and prints its path."""
    if options.asks_help(words):
        text = "Writes the page of a run and prints its path; further runs stand beside it for comparison."
        print(options.page(["opd report RUN [BASELINE_RUN ...]"], text))
        return 0
    places, _ = options.parse(words, (), "report")
    if not places:
        raise SettingError("opd report needs a run folder", remedy="For example opd report runs/gkd-sums-0")
    folders = [Path(place) for place in places]
    for folder in folders:
        if not (folder / "run.toml").is_file():
            raise SettingError(f"{folder} is no run folder", expected="a folder with a run.toml")
    from opd.report import write

    print(write(folders[0], folders[1:]))
    return 0
