"""Teachers outside this process: the run folder keeps who they are, and a run goes on with the same ones.

RUN/teachers.json   by role, and by name where several share one: `identity`, which must not change, and what is told
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from opd.cast import each
from opd.checkpoint import write_text
from opd.errors import ModelError
from opd.protocols import Cast
from opd.teachers.vllm_server import GAP

FILE = "teachers.json"


def members(cast: Cast) -> dict[str, Any]:
    """Whoever has a manifest, by role and name."""
    found: dict[str, Any] = {}
    for role, player in cast.items():
        for name, member in each(player).items():
            own = getattr(member, "teacher", member)  # behind other names for tokens
            if hasattr(own, "manifest"):
                found[f"{role}.{name}" if name else role] = own
    return found


def write(folder: Path, cast: Cast) -> None:
    """Keeps who answers; no file where nobody is elsewhere."""
    if manifests := {who: member.manifest for who, member in members(cast).items()}:
        write_text(folder / FILE, json.dumps(manifests, indent=1))


def check(folder: Path, cast: Cast, may_differ: bool) -> None:
    """Stops a run that goes on with another teacher than it began with, unless that is wanted."""
    file = folder / FILE
    if may_differ or not file.is_file():
        return write(folder, cast)
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read", got=str(error)) from None
    for who, member in members(cast).items():
        now, then = member.manifest["identity"], before.get(who, {}).get("identity", {})
        if odd := [name for name in now if not _same(now[name], then.get(name))]:
            raise ModelError(
                f"{who} is another one than the run began with",
                got=f"{odd[0]} {now[odd[0]]}",
                expected=then.get(odd[0], "none"),
                remedy=f"Serve that one again, or set another_teacher = true in {folder / 'run.toml'}",
            )


def _same(now: Any, then: Any) -> bool:
    """Log-probs of one text are computed anew each time, and may differ by rounding."""
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        return sum(abs(a - b) for a, b in zip(now, then, strict=True)) <= GAP * len(now)
    return now == then


def tell(cast: Cast) -> dict[str, float]:
    """What asking them has cost since this was last told."""
    total = Counter[str]()
    for member in members(cast).values():
        total.update(getattr(member, "tell", dict)())
    return dict(total)


def give_up(cast: Cast) -> None:
    """Nobody is waited for any more."""
    for member in members(cast).values():
        getattr(member, "give_up", lambda: None)()
