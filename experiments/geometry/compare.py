"""What three kinds of training do to the same weights, looked at where they have moved them equally far.

    python -m experiments.geometry.compare --out runs/geometry

SFT, on-policy distillation (sampled_token) and REINFORCE start from one student on one task with one optimizer and one
learning rate; a checkpoint every other step. Of every run the checkpoint counts whose change is nearest in norm to the
smallest final one of its seed. Then SFT and distillation once more, held to a few directions of their own movement.
"On the Geometry of On-Policy Distillation" (arXiv 2606.07082) compares runs of unlike rates, lengths and origins.
A stopped command, given again, goes on.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from opd import Run, Settings, geometry
from opd.bootstrap import over_seeds
from opd.checkpoint import load_state, write_text
from opd.claims import models
from opd.cli.measuring import COLUMNS, View, measured, start
from opd.cli.quiet import hush

Values = dict[str, Any]
METHODS: dict[str, Values] = {
    "SFT": {"method": "sft", "parameters": {"fresh": True}, "batch": 128},
    "distillation": {"method": "sampled_token", "batch": 32},
    "REINFORCE": {"method": "reinforce", "batch": 32},
}
HELD = ("SFT", "distillation")
HOLDS = ("gradient", "update")  # under Adam a held gradient still moves the weights in other directions
RANKS = (0, 1, 4, 16)  # of 48; 0 is free
TASK = "jsonl:made:records/problems.jsonl,held_out=512,grader=opd.claims.taught:is_record"
SHARED: Values = {
    "student": "made:unsure", "teacher": "made:records", "task": TASK, "steps": 60, "max_new": 24, "warmup": 10,
    "eval_problems": 256, "drafts": 0, "checkpoint_every": 2, "keep_checkpoints": 100, "threads": 1,
}  # fmt: skip
VIEW = View(directions=16, rank=8, share=0.5, subspace=4)
NUMBERS = ("unchanged", "rotation", "drift", "principal", "small", "stable_rank", "tail")


def ran(name: str, seed: int, rank: int = 0, hold: str = HOLDS[0], *, out: Path, lr: float) -> Path:
    """The folder of a run, made now or found."""
    held = f"rank{rank}" if hold == HOLDS[0] else f"rank{rank}-{hold}"
    folder = out / f"{name}-lr{lr:g}-{held}-seed{seed}"
    if not (folder / "summary.json").is_file():
        made = models.made(out / "models", print)
        values = SHARED | METHODS[name] | {"seed": seed, "lr": lr, "out": str(folder)}
        if rank:
            values |= {"subspace_rank": rank, "subspace_hold": hold, "checkpoint_every": 0}
        values |= {key: made(values[key]) for key in ("student", "teacher", "task")}
        settings = Settings.of(**values)
        (Run.resume(folder) if (folder / "run.toml").is_file() else Run.new(settings)).train()
    return folder


def looked(folder: Path) -> list[Values]:
    """What the run did to the weights, checkpoint by checkpoint; kept beside the run."""
    file = folder / "geometry.json"
    if not file.is_file():
        write_text(file, json.dumps(measured(folder, VIEW), indent=1))
    return json.loads(file.read_text(encoding="utf-8"))["checkpoints"]


def matched(courses: dict[str, list[Values]]) -> dict[str, Values]:
    """Of each method the checkpoint that is as far from the start as the least of all comes at its end."""
    far = min(course[-1]["mean"]["size"] for course in courses.values())
    return {name: min(course, key=lambda line: abs(line["mean"]["size"] - far)) for name, course in courses.items()}


def there_halfway(folder: Path, at: Values) -> float:
    """How alike the best right directions of the change are to those that it had at half this distance."""
    course, far = looked(folder), at["mean"]["size"]
    half = min(course, key=lambda line: abs(line["mean"]["size"] - far / 2))
    then, now = (
        geometry.matrices(load_state(folder / "checkpoints" / f"step-{line['step']:06d}", "student"))
        for line in (half, at)
    )
    before = geometry.matrices(start(Settings.read(folder / "run.toml")))
    return geometry.alike(before, then, now, VIEW.subspace)


def accuracy(folder: Path) -> float:
    """The share of sampled answers that are right at the end."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary["student_after"]["sampled"]["grade"]


# ---- tables


def shapes(seeds: Sequence[int], run: Callable[..., Path]) -> list[str]:
    """One line per method: means over matrices at equal norm, over seeds with Student's interval."""
    at = [matched({name: looked(run(name, seed)) for name in METHODS}) for seed in seeds]
    headings = ["step", *(COLUMNS[number][0] for number in ("size", *NUMBERS)), "there halfway", "right at the end"]
    lines = ["", f"| | {' | '.join(headings)} |", f"|{'---|' * (len(headings) + 1)}"]
    for name in METHODS:
        steps = [one[name]["step"] for one in at]
        cells = [f"{min(steps)} to {max(steps)}"]
        for number in ("size", *NUMBERS):
            cells.append(said([one[name]["mean"][number] for one in at], COLUMNS[number][1]))
        halfway = [there_halfway(run(name, seed), one[name]) for seed, one in zip(seeds, at, strict=True)]
        cells += [said(halfway, "{:.2f}"), said([accuracy(run(name, seed)) for seed in seeds])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def held(seeds: Sequence[int], run: Callable[..., Path]) -> list[str]:
    """Accuracy of runs that are held to so many directions from a fifth of their steps on."""
    lines = ["", "| right | " + " | ".join("free" if not rank else f"rank {rank}" for rank in RANKS) + " |"]
    lines.append("|" + "---|" * (len(RANKS) + 1))
    for name, hold in product(HELD, HOLDS):
        at = [[run(name, seed, rank, hold) if rank else run(name, seed) for seed in seeds] for rank in RANKS]
        cells = [said([accuracy(folder) for folder in folders]) for folders in at]
        lines.append(f"| {name}, the {hold} | {' | '.join(cells)} |")
    return lines


def said(values: Sequence[float], form: str = "{:.1%}") -> str:
    """The mean over seeds, with Student's interval where there are several."""
    found = over_seeds(values)
    if found.low is None or found.high is None:
        return form.format(found.value)
    return f"{form.format(found.value)} ({form.format(found.low)} to {form.format(found.high)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=lambda name: Path(name).resolve(), default="runs/geometry")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-4, 1e-3])
    args = parser.parse_args()
    hush()
    seeds, lines = range(args.seeds), list[str]()
    for lr in args.lr:
        run = partial(ran, out=args.out, lr=lr)
        lines += ["", f"Learning rate {lr:g}:", *shapes(seeds, run), *held(seeds, run)]
        write_text(args.out / "geometry.md", "\n".join(lines).strip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
