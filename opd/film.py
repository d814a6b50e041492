"""The student acting, in a handful of pictures: an episode is fixed by its seed and its actions, so it is played again.

Axes: n decisions, H x W pixels.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np

from opd.engines.world import World
from opd.rollout import Array, Rollout

EPISODES, FRAMES = 2, 8  # of an examination, and of one episode: a page holds all of them
LONGEST, COLOURS = 256, 64  # pixels of a picture's longer side at most; a picture is some two kilobytes
ABSENT = "pictures of an environment need the package Pillow: pip install opd[environments]"


def film(world: World, episodes: Sequence[Rollout]) -> dict[str, Any]:
    """The first episodes with their pictures; where the environment cannot be drawn, `why`, in one sentence."""
    if find_spec("PIL") is None:
        return {"why": ABSENT, "episodes": []}
    try:
        with unseen():
            screen = World(world.name, {**world.options, "render_mode": "rgb_array"})
            filmed = [_filmed(screen, episode) for episode in episodes[:EPISODES]]
            screen.seats[0].close()
        return {"why": "", "episodes": filmed}
    except Exception as error:  # the drawing is the environment's own, and its mistakes shall not end a run
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {"why": f"{world.name} cannot be drawn here: {lines[0]}", "episodes": []}


@contextmanager
def unseen() -> Iterator[None]:
    """While it lasts, pygame, with which many environments draw, looks for no screen and no loudspeaker."""
    names = ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER")
    before = {name: os.environ.get(name) for name in names}
    try:
        os.environ.update(dict.fromkeys(names, "dummy"))
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _filmed(screen: World, episode: Rollout) -> dict[str, Any]:
    actions, start = episode.decisions, int(episode.tokens[episode.positions[0] - 1])
    shown = set(np.linspace(0, len(actions), min(FRAMES, len(actions) + 1)).round().astype(int).tolist())
    screen.reset([start])
    frames = [_frame(screen, 0, "")]
    for done, action in enumerate(actions.tolist(), 1):
        screen.step(np.zeros(1, int), np.array([action]))
        if done in shown:
            frames.append(_frame(screen, done, screen.called(action)))
    known = {name: None if np.isnan(value) else value for name, value in episode.tags.items()}
    about = {"id": episode.problem.id, "prompt": episode.problem.messages[-1]["content"], "decisions": len(actions)}
    return {**about, "reward": known.get("reward"), "return": known.get("return"), "frames": frames}


def _frame(screen: World, at: int, action: str) -> dict[str, Any]:
    """What is seen after `at` decisions, the last of which was `action`."""
    png, width, height = small(np.asarray(screen.seats[0].render(), np.uint8))
    return {"at": at, "action": action, "width": width, "height": height, "png": base64.b64encode(png).decode()}


def small(pixels: Array) -> tuple[bytes, int, int]:
    """[H, W, 3] as PNG with few colours, made smaller by a whole number; with its width and height."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image = image.reduce(-(-max(image.size) // LONGEST)).quantize(COLOURS)
    held = BytesIO()
    image.save(held, "PNG", optimize=True)
    return held.getvalue(), *image.size
