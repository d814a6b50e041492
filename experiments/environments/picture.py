"""Episodes of a student before and after distillation, as paths on the grid: docs/experiments/lake.svg.

python -m experiments.environments.picture --out docs/experiments/lake.svg
"""

import argparse
from pathlib import Path

import numpy as np

from experiments.environments.compare import LONGEST, training
from opd import recipes
from opd.engines.policy import Policy
from opd.loop import one_step
from opd.rollout import Array, Piece, Sampling
from opd.tasks.gymnasium import Environment, load
from opd.teachers.exact import expert

CELL, GAP, TOP = 40, 40, 34
COLOURS = {b"S": "#dcebf7", b"F": "#f2f7fb", b"H": "#37474f", b"G": "#7cb342"}
EPISODES, STEPS = 12, 30


def episodes(student: Policy, task: Environment) -> list[Piece]:
    starts = [student.render(problem.messages) for problem in task.held_out[:EPISODES]]
    return [some[0] for some in student.write(starts, Sampling(), [[seed] for seed in range(EPISODES)])]


def panel(title: str, ground: Array, pieces: list[Piece], left: int) -> list[str]:
    """The map, and every episode as a line through the cells that it visited, shifted a little to stay visible."""
    won = sum(piece.tags["return"] > 0 for piece in pieces)
    lines = [f'<text x="{left}" y="22">{title}: {won} of {len(pieces)} reach the goal</text>']
    for (row, column), kind in np.ndenumerate(ground):
        place = f'x="{left + column * CELL}" y="{TOP + row * CELL}" width="{CELL - 1}" height="{CELL - 1}"'
        lines.append(f'<rect {place} fill="{COLOURS[kind]}"/>')
    for number, piece in enumerate(pieces):
        row, column = np.divmod(piece.inputs, ground.shape[1])
        shift = (number - len(pieces) / 2) * 2
        x, y = left + (column + 0.5) * CELL + shift, TOP + (row + 0.5) * CELL + shift
        points = " ".join(f"{a:g},{b:g}" for a, b in zip(x, y, strict=True))
        colour = "#2e7d32" if piece.tags["return"] > 0 else "#c62828"
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.2" opacity="0.7"/>')
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/experiments/lake.svg"))
    given = parser.parse_args()
    task = load("FrozenLake-v1", map_name="8x8", held_out=EPISODES)
    run = training(task, expert(task.world, max_new=LONGEST), recipes.load("dagger")(), 0, 8, 0.3)
    ground = task.world.seats[0].unwrapped.desc
    student = run.cast["student"]
    lines = panel("before", ground, episodes(student, task), 0)
    while run.step < STEPS:
        one_step(run)
    width = ground.shape[1] * CELL
    lines += panel(f"after {STEPS} batches", ground, episodes(student, task), width + GAP)
    size = f'width="{2 * width + GAP}" height="{TOP + ground.shape[0] * CELL}"'
    style = 'font-family="sans-serif" font-size="15"'
    text = "\n".join(lines)
    given.out.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{text}\n</svg>\n', encoding="utf-8")
    print(f"{given.out}: environment steps {task.world.steps}")


if __name__ == "__main__":
    main()
