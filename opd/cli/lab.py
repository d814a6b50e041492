"""`opd lab`: studies in small worlds, each run by its name."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from opd.cli import options
from opd.errors import SettingError, nearest

STUDIES = {  # name -> its module, what it asks
    "noisy-experts": ("noisy_experts", "is my teacher too noisy for SFT: walks needed against horizon and noise"),
    "cliff": ("cliff", "how far beyond my teacher: where lambda leaves the reach of the cap c, and what a guard does"),
    "realizability": ("realizability", "can my student be my teacher at all: when on-policy learning beats SFT"),
}


def lab(words: list[str]) -> int:
    """Lists the studies, or runs one: tables to the terminal, numbers and a picture into a folder."""
    target = words[0] if words and not words[0].startswith("-") else ""
    if not target:
        options.parse([word for word in words if word not in ("--help", "-h")], (), "lab")
        print(options.page(["opd lab STUDY [--option value ...]"], "Theory as programs, within minutes on one core."))
        print("\nStudies")
        for name, (_, about) in STUDIES.items():
            print(f"  {name:<15} {about}")
        return 0
    if target not in STUDIES:
        raise SettingError("no such study", got=repr(target), remedy=nearest(target, STUDIES))
    module, about = STUDIES[target]
    study = importlib.import_module(f"opd.lab.{module}")
    known = options.of_fields(study.Options)
    if options.asks_help(words):
        print(options.page([f"opd lab {target} [--option value ...]"], about, known))
        return 0
    places, given = options.parse(words[1:], known, f"lab {target}")
    options.no_places(places, f"lab {target}")
    return _run(study, given)


def _run(study: ModuleType, given: dict[str, Any]) -> int:
    from opd.lab.study import free, write
    from opd.settings import checked

    chosen = checked(study.Options, given)
    study.check(chosen)
    out = Path(chosen.out)
    free(out)
    start = time.perf_counter()
    result = study.run(chosen, lambda line: print(f"{time.perf_counter() - start:6.1f} s  {line}", flush=True))
    print()
    for table in result.tables:
        print(table.markdown())
    write(result, out)
    print(study.summary(result.raw))
    print(f"written: {out}/tables.md, results.json and picture.svg ({time.perf_counter() - start:.0f} s)")
    return 0
