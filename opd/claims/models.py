"""Students and teachers made for a claim, once, from those that come with the package; `opd/claims/taught.py` has more.

    made:copyist   the embedded student after some minutes of learning to copy a solution that its prompt holds, in any
                   of the wordings in opd/recipes/*.txt, right or wrong; without one it answers as before

The embedded student has never seen a prompt with more than a question in it, so that no method which shows a copy of
it a solution could work at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from opd.checkpoint import write_folder
from opd.claims.conflicts import CONFLICTS
from opd.claims.copyist import copyist
from opd.claims.own import OWN
from opd.claims.strayed import STRAYED
from opd.claims.taught import TAUGHT
from opd.errors import SettingError, nearest

MADE = re.compile(r"\bmade:(\w+)")
Say = Callable[[str], None]


def made(folder: Path, say: Say) -> Callable[[str], str]:
    """A function that turns made:NAME in a text into the folder of that model, made now if it is not there."""

    def place_of(found: re.Match[str]) -> str:
        name = found[1]
        if name not in MAKERS:
            raise SettingError("no such model can be made", got=repr(found[0]), remedy=nearest(name, MAKERS))
        target = folder / name
        if not (target / "config.json").is_file():
            say(f"making the model {name} (once, some minutes)")
            write_folder(target, lambda place: MAKERS[name](place, say))
        return str(target)

    return lambda spec: MADE.sub(place_of, spec)


MAKERS: dict[str, Callable[[Path, Say], None]] = {
    "copyist": copyist,
    **TAUGHT,
    **STRAYED,
    **CONFLICTS,
    **OWN,
}
