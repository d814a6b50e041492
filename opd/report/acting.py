"""The student acting before and after, in pictures of the same episodes; what is no picture never reaches the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opd.report.reading import Folder, Table

BASE64 = re.compile(r"[A-Za-z0-9+/]+=*")
WIDE = 1.8  # times as wide as high: such pictures need more room


@dataclass(frozen=True)
class Picture:
    """A PNG as base64, and what led to it."""

    png: str
    width: int
    height: int
    caption: str


@dataclass(frozen=True)
class Strip:
    """One episode of one examination."""

    step: int
    ending: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Scene:
    """One episode, played by the student as it was and as it is."""

    prompt: str
    strips: list[Strip]
    is_wide: bool


@dataclass(frozen=True)
class Acting:
    """What the page shows, or why it shows nothing."""

    scenes: list[Scene]
    why: str


def acting(run: Folder) -> Acting | None:
    """The first and the last examination that were filmed; None where nobody acts."""
    kept = run.films[:1] + run.films[1:][-1:]
    if not kept:
        return None
    played = [(step, {str(one.get("id")): one for one in film.get("episodes") or []}) for step, film in kept]
    names = list(dict.fromkeys(name for _, episodes in played for name in episodes))
    scenes = [_scene([(step, episodes[name]) for step, episodes in played if name in episodes]) for name in names]
    return Acting([scene for scene in scenes if scene.strips], str(kept[-1][1].get("why") or ""))


def _scene(sides: Sequence[tuple[int, Table]]) -> Scene:
    strips = [Strip(step, _ending(one), _pictures(one.get("frames") or [])) for step, one in sides]
    strips = [strip for strip in strips if strip.pictures]
    shapes = [picture.width / picture.height for strip in strips for picture in strip.pictures]
    return Scene(str(sides[0][1].get("prompt")), strips, max(shapes, default=0.0) > WIDE)


def _ending(episode: Table) -> str:
    """'success, return 1 after 6 decisions'."""
    reward, total = episode.get("reward"), episode.get("return")
    words = [] if reward is None else ["success" if reward >= 1 else "failure"]
    words += [] if total is None else [f"return {total:g}".replace("-", "−")]
    return f"{', '.join(words)} after {episode.get('decisions')} decisions"


def _pictures(frames: Sequence[Any]) -> list[Picture]:
    found = list[Picture]()
    for frame in frames:
        if BASE64.fullmatch(str(frame.get("png"))) and frame.get("width") and frame.get("height"):
            at = frame.get("at")
            caption = f"{at}. {frame.get('action')}" if at else "start"
            found.append(Picture(frame["png"], int(frame["width"]), int(frame["height"]), caption))
    return found
