"""One student, two mirror control tasks, discount gamma from 0 to 1: gradient variance, and where the walks end.

    python -m experiments.revisiting.synthetic --out runs/synthetic

The study of arXiv 2603.25562 with the method `sampled_token` itself: its credit and its loss, on Gaussian steps instead
of tokens. Every run (optimizer, learning rate, gamma, seed) is kept in --out and not done again.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.revisiting import control
from experiments.revisiting.control import TASKS, Chosen, Policy, Walks
from experiments.revisiting.results import COLOURS, STYLE, keep, spread, table
from opd.method import Method
from opd.recipes.sampled_token import sampled_token

GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SEEDS = (42, 43, 2026)
OPTIMIZERS = ("adam:3e-4", "adam:1e-2", "sgd:1e-3", "sgd:1e-2")
BATCH, PARTS, PIECE = 64, 8, 20
FRESH = 512  # walks per task of the final examination
COLUMNS = {
    "first variance": ("variance, first 100", ".3g"),
    "last variance": ("variance, last 500", ".3g"),
    "nearest": ("nearest on the way", ".2f"),
    "distance": ("distance at the end", ".2f"),
    "kl": ("reverse KL per walk", ".1f"),
}


@dataclass(frozen=True)
class Setting:
    """One run of the study; `optimizer` is a name and a learning rate."""

    optimizer: str
    gamma: float
    seed: int
    iterations: int

    @property
    def name(self) -> str:
        return f"{self.optimizer.replace(':', '-')}-gamma{self.gamma:g}-seed{self.seed}-{self.iterations}"

    def build(self, policy: Policy) -> torch.optim.Optimizer:
        name, rate = self.optimizer.split(":")
        return {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name](policy.parameters(), float(rate))


def output_variance(hidden: Tensor, slope: Tensor) -> float:
    """Variance (trace of the covariance) over M parts of a batch of the last layer's gradient.

    hidden [N, D] is what the layer saw, slope [N, 2] the loss's gradient at what it said; each part's gradient is
    scaled up to that of a whole batch.
    """
    seen = torch.cat([hidden, torch.ones_like(hidden[:, :1])], 1).view(PARTS, -1, hidden.shape[1] + 1)
    each = PARTS * torch.einsum("mnd,mno->mod", seen, slope.view(PARTS, -1, slope.shape[1]))
    return float(each.flatten(1).var(0).sum())


def learn(student: Policy, teacher: Policy, walks: Walks, method: Method) -> tuple[float, float]:
    """Adds the method's gradient; its variance at the last layer, and the mean log-ratio per walk."""
    with torch.no_grad():
        read = control.logprob(teacher(walks.inputs)[1], walks.steps)
    rows = method.credit(walks.rows.plus(**{"teacher.chosen": read}))
    hidden, out = student(walks.inputs)
    out.retain_grad()
    dist = Chosen(control.logprob(out, walks.steps))
    sum((t.mean(rows) * t.scaled(0) * t.loss(dist, rows)).sum() for t in method.terms.values()).backward()
    variance = output_variance(hidden.detach(), out.grad)
    return variance, float((rows["untruncated"] - read).sum()) / BATCH


def train(setting: Setting, teachers: dict[str, Policy]) -> dict[str, Any]:
    """One student on alternating tasks, its curves in pieces of PIECE iterations and its final examination."""
    torch.manual_seed(setting.seed)
    student, generator = Policy(), torch.Generator().manual_seed(setting.seed)
    optimizer, method = setting.build(student), sampled_token(gamma=setting.gamma)
    seen: dict[str, list[float]] = {"variance": [], "distance": [], "kl": []}
    for iteration in range(setting.iterations):
        name = list(TASKS)[iteration % len(TASKS)]
        walks = control.walk(student, TASKS[name], BATCH, generator)
        optimizer.zero_grad()
        variance, kl = learn(student, teachers[name], walks, method)
        optimizer.step()
        for key, value in (("variance", variance), ("distance", control.distance(walks, TASKS[name])), ("kl", kl)):
            seen[key].append(value)
    piece = lambda values: [fmean(values[at : at + PIECE]) for at in range(0, len(values), PIECE)]
    return {
        "optimizer": setting.optimizer,
        "gamma": setting.gamma,
        "seed": setting.seed,
        "iterations": setting.iterations,
        "first variance": median(seen["variance"][:100]),
        "last variance": median(seen["variance"][-500:]),
        "nearest": min(piece(seen["distance"])),
        "curves": {key: [float(f"{x:.4g}") for x in piece(values)] for key, values in seen.items()},
        **examine(student, teachers),
    }


@torch.no_grad()
def examine(student: Policy, teachers: dict[str, Policy]) -> dict[str, float]:
    """Distance to the target and reverse KL per walk on fresh walks, both tasks."""
    generator = torch.Generator().manual_seed(0)
    ends, costs = list[float](), list[float]()
    for name, task in TASKS.items():
        walks = control.walk(student, task, FRESH, generator)
        read = control.logprob(teachers[name](walks.inputs)[1], walks.steps)
        ends.append(control.distance(walks, task))
        costs.append(float((walks.rows["untruncated"] - read).sum()) / FRESH)
    return {"distance": fmean(ends), "distances": dict(zip(TASKS, ends, strict=True)), "kl": fmean(costs)}


def study(settings: list[Setting], out: Path) -> Iterator[dict[str, Any]]:
    """The runs in order, each made now or found."""
    teachers: dict[int, dict[str, Policy]] = {}
    for setting in settings:
        file = out / "runs" / f"{setting.name}.json"
        if not file.is_file():
            if setting.seed not in teachers:
                teachers[setting.seed] = {name: control.teacher(t, setting.seed) for name, t in TASKS.items()}
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(train(setting, teachers[setting.seed])), encoding="utf-8")
            partial.replace(file)  # whole or not at all
        run = json.loads(file.read_text(encoding="utf-8"))
        print(f"{setting.name}: {run['distance']:.2f} from the target, variance {run['last variance']:.3g}", flush=True)
        yield run


def summary(runs: list[dict[str, Any]]) -> str:
    lines = list[list[str]]()
    for optimizer, gamma in dict.fromkeys((run["optimizer"], run["gamma"]) for run in runs):
        mine = [run for run in runs if (run["optimizer"], run["gamma"]) == (optimizer, gamma)]
        cells = [spread([run[name] for run in mine], form) for name, (_, form) in COLUMNS.items()]
        lines.append([optimizer.replace(":", " "), f"{gamma:g}", str(len(mine)), *cells])
    return table(["optimizer", "gamma", "seeds", *(title for title, _ in COLUMNS.values())], lines)


def plot(runs: list[dict[str, Any]]) -> Figure:
    """A column per optimizer: variance above, distance below."""
    optimizers = list(dict.fromkeys(run["optimizer"] for run in runs))
    with rc_context(STYLE):
        figure = Figure(figsize=(2.4 * len(optimizers) + 1, 5), layout="constrained")
        grid = figure.subplots(2, len(optimizers), sharex=True, sharey="row", squeeze=False)
        for column, optimizer in enumerate(optimizers):
            mine = [run for run in runs if run["optimizer"] == optimizer]
            for axes, key in zip(grid[:, column], ("variance", "distance"), strict=True):
                curves(axes, mine, key)
            grid[0, column].set(title=optimizer.replace(":", " "), yscale="log")
            grid[1, column].set(xlabel="iteration", yscale="log")
        grid[0, 0].set(ylabel="variance of the gradient")
        grid[1, 0].set(ylabel="distance to the target at the end")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(GAMMAS))
    return figure


def curves(axes: Axes, runs: list[dict[str, Any]], key: str) -> None:
    """The median over seeds, and their range as a band."""
    for gamma, colour in zip(GAMMAS, COLOURS, strict=True):
        seeds = list(zip(*(run["curves"][key] for run in runs if run["gamma"] == gamma), strict=True))
        at = [PIECE * (piece + 1) for piece in range(len(seeds))]
        axes.plot(at, [median(values) for values in seeds], color=colour, linewidth=1, label=f"gamma {gamma:g}")
        axes.fill_between(at, [min(v) for v in seeds], [max(v) for v in seeds], color=colour, alpha=0.15, linewidth=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/synthetic"))
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, help="name:learning rate")
    given = parser.parse_args()
    torch.set_num_threads(1)
    grid = [Setting(o, g, s, given.iterations) for s in given.seeds for o in given.optimizers for g in GAMMAS]
    runs = list(study(grid, given.out))
    keep(given.out, "synthetic", summary(runs), runs, plot(runs))


if __name__ == "__main__":
    main()
