"""`opd reproduce`: a paper's claim about its method, tried on a small task made for that claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opd.cli import options
from opd.cli.comparing import default_jobs, whole
from opd.cli.options import Option
from opd.errors import SettingError

OPTIONS = [
    Option("seeds", "int", 5, "runs of every method, with seeds 0 to N-1"),
    Option("jobs", "int", 0, "runs at a time; default: one per core"),
    Option("out", "Path", "runs/reproduce", "folder; the same command again goes on from what is there"),
    Option(
        "page",
        "Path",
        "",
        "a Markdown file for everything that was tried in --out so far; drawings go to a folder of its name",
    ),
]
USAGE = ("opd reproduce METHOD [options]", "opd reproduce")
TEXT = (
    "Holds a method against its own baseline, two common methods and a control, with learning rates tuned alike, and "
    "says whether the paper's claim is shown here. Without a method: all claims, and what is known of them."
)


def reproduce(words: list[str]) -> int:
    """The verdict with its table; 130 when it was asked to stop, 1 when a run broke."""
    if options.asks_help(words):
        print(options.page(USAGE, TEXT, OPTIONS))
        return 0
    places, given = options.parse(words, OPTIONS, "reproduce")
    own: dict[str, Any] = {option.name: given.get(option.name, option.default) for option in OPTIONS}
    out, seeds, jobs = Path(own["out"]), whole("seeds", own["seeds"]), whole("jobs", own["jobs"])
    options.no_places(places[1:], "reproduce METHOD")
    code = run(places[0], seeds, jobs, out) if places else listed(out)
    if own["page"] and not code:
        write_page(out, Path(own["page"]))
    return code


def write_page(out: Path, file: Path) -> None:
    from opd.claims import page

    if not page.results(out):
        raise SettingError(
            f"nothing was tried in {out}", expected="a folder in which opd reproduce METHOD came to its end"
        )
    page.write(out, file)
    print(f"written: {file}")


def listed(out: Path) -> int:
    from opd.claims import claim, page

    known = {result["method"]: result["verdict"] for result in page.results(out)}
    for name in claim.names():
        print(f"{name:<24} {known.get(name, 'not tried here')}\n    {claim.load(name).says}")
    return 0


def run(method: str, seeds: int, jobs: int, out: Path) -> int:
    from opd.claims import claim, course, page
    from opd.cli.comparing_display import onlooker
    from opd.cli.quiet import hush
    from opd.run import Stopped

    found = claim.load(method)
    hush()
    print(f"{method}: {found.says}\n", flush=True)
    try:
        say = lambda line: print(line, flush=True)
        result = course.reproduce(method, found, seeds, jobs or default_jobs("cpu"), out, onlooker, say)
    except Stopped:
        print(f"stopped; what was done is in {out}, and the same command goes on from there", flush=True)
        return 130
    print(f"\n{page.section(result)}")
    return 1 if any(case["broken"] for case in result["cases"]) else 0
