"""`opd geometry`: what a run did to the weights of its student, checkpoint by checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from opd.cli import options
from opd.errors import SettingError
from opd.settings import Settings, checked, read_toml

if TYPE_CHECKING:
    from torch import Tensor

    from opd.geometry import Lens

COLUMNS = {  # number -> heading, form
    "unchanged": ("unchanged", "{:.1%}"),
    "rotation": ("rotation °", "{:.3g}"),
    "drift": ("drift", "{:.2e}"),
    "principal": ("in principal", "{:.1%}"),
    "small": ("in small", "{:.1%}"),
    "stable_rank": ("stable rank", "{:.2f}"),
    "size": ("size", "{:.3g}"),
    "tail": ("tail", "{:.2f}"),
}


class View(BaseModel):
    """The options of `opd geometry`."""

    directions: int = Field(512, ge=1, description="singular directions whose rotation is measured")
    rank: int = Field(64, ge=1, description="of the part of the old weights that is called principal")
    share: float = Field(0.5, gt=0, lt=1, description="of the entries that are called principal, and small")
    subspace: int = Field(16, ge=1, description="right directions of the change, compared with those at the end")


def geometry(words: list[str]) -> int:
    """Prints a line per checkpoint and writes RUN/geometry.json."""
    known = options.of_fields(View)
    if options.asks_help(words):
        text = (
            "Means over the student's weight matrices, embeddings left out; unchanged is of all their entries. "
            "A run keeps its last two checkpoints; train with --keep-checkpoints 100 to see how it went."
        )
        print(options.page(["opd geometry RUN [options]"], text, known))
        return 0
    places, given = options.parse(words, known, "geometry")
    folder = Path(options.one_place(places, "run folder", "geometry"))
    found = measured(folder, checked(View, given))
    from opd.checkpoint import write_text

    write_text(folder / "geometry.json", json.dumps(found, indent=1))
    show(found)
    print(f"every matrix: {folder / 'geometry.json'}")
    return 0


def measured(folder: Path, view: View) -> dict[str, Any]:
    if not (folder / "run.toml").is_file():
        raise SettingError(f"{folder} is no run folder", expected="a folder with a run.toml")
    settings = Settings.of(**{k: v for k, v in read_toml(folder / "run.toml").items() if k in Settings.model_fields})
    if settings.lora:
        what = "a run with adapters leaves the weights alone"
        raise SettingError(what, got=f"lora={settings.lora}", expected="a run that trains every weight")
    from opd.checkpoint import checkpoints, load_state
    from opd.cli.quiet import hush
    from opd.geometry import Lens, alike, matrices

    hush()
    saved = checkpoints(folder / "checkpoints")
    if not saved:
        raise SettingError(f"{folder} has no checkpoint", remedy="Train with --checkpoint-every and --keep-checkpoints")
    before = matrices(start(settings))
    states = {int(path.name.removeprefix("step-")): matrices(load_state(path, "student")) for path in saved}
    lens, last = Lens(view.directions, view.rank, view.share), states[max(states)]
    lines = [
        {"step": step, "similarity": alike(before, state, last, view.subspace)} | looked(lens, before, state)
        for step, state in states.items()
    ]
    return {"view": view.model_dump(), "checkpoints": lines}


def start(settings: Settings) -> dict[str, Tensor]:
    """The student's weights before step 1."""
    from opd import cast, players
    from opd.tasks import load_task

    if cast.acts(settings):
        world = load_task(settings.task).world  # pyright: ignore
        return dict(players.student(cast.student_spec(settings), settings, world).state_dict())
    return cast.open_model(settings.student, settings, settings.dtype, "cpu", learns=True).state_dict()


def looked(lens: Lens, before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Any]:
    from opd.geometry import averaged

    shapes = {name: lens(weight, after[name]) for name, weight in before.items()}
    plain = lambda shape: {k: None if math.isnan(v) else v for k, v in asdict(shape).items()}
    return {"mean": plain(averaged(shapes.values())), "matrices": {name: plain(one) for name, one in shapes.items()}}


def show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    count = len(found["checkpoints"][0]["matrices"])
    title = (
        f"Means over {count} weight matrices, against the start; unchanged: of all their entries, so that size counts"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("step", *(heading for heading, _ in COLUMNS.values()), "like the end"):
        table.add_column(heading, justify="right")
    for line in found["checkpoints"]:
        cells = [(form, line["mean"][name]) for name, (_, form) in COLUMNS.items()]
        shown = ["" if value is None else form.format(value) for form, value in cells]
        table.add_row(str(line["step"]), *shown, f"{line['similarity']:.2f}")
    Console(highlight=False, width=130).print(table)
