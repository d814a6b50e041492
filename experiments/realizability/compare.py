"""Does SFT match on-policy distillation where the student can be its teacher, and fall behind where it cannot?

    python -m experiments.realizability.compare --out runs/realizability

Countdown and sums from reasoning_gym, tiny transformers; per task one teacher and two students: the teacher's own
earlier self, and a smaller model stopped at the same score. Every method gets its learning rate from one grid, by
sampled accuracy on problems that are never reported. A run that is already in --out is not done again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.realizability.cell import METHODS, Values, taught
from experiments.realizability.pairs import EARLIER, made
from experiments.realizability.tasks import KINDS, Kind
from experiments.revisiting.language import remembered
from experiments.revisiting.results import COLOURS, STYLE, keep, table
from opd.bootstrap import Interval, crossed, over_seeds

RATES = (1.3e-3, 4e-3, 1.2e-2, 3.6e-2)
SEARCH = 1_000_000  # the seed of the runs that choose a rate
LONG = 4  # times as many updates in one more run, to see where it ends
SCORES, DISTANCES = ("greedy", "sampled"), ("forward kl", "reverse kl")


class Study:
    """Everything about one task."""

    def __init__(self, name: str, kind: Kind, out: Path, steps: int, rates: Sequence[float] = RATES) -> None:
        self.name, self.kind, self.out, self.steps, self.rates = name, kind, out / name, steps, rates
        self.task = kind.problems()
        self.models = made(self.out / "models", kind, self.task)

    def run(self, pair: str, method: str, lr: float, seed: int, steps: int, **how: Any) -> Values:
        label = f"{pair}-{method}-lr{lr:g}-{steps}-seed{seed}".replace(" ", "-")
        make = lambda: taught(self.models, pair, self.task, self.kind.max_new, method, lr, steps, seed, **how)
        found = remembered(self.out / "runs" / f"{label}.json", make)
        shown = ", ".join(f"{key} {found[key]:.3f}" for key in (*SCORES, *DISTANCES))
        print(f"{self.name}, {label}: {shown}", flush=True)
        return {"task": self.name, **found}

    def start(self, who: str) -> Values:
        """A model as it is: no update at whatever rate."""
        return {**self.run(who, "SFT", 1.0, 0, 0), "method": "start"}

    def rate(self, pair: str, method: str) -> float:
        """The rate with the most right samples on the problems set aside, in runs of half the length."""
        tried = {lr: self.run(pair, method, lr, SEARCH, self.steps // 2, part="tuning") for lr in self.rates}
        return max(tried, key=lambda lr: tried[lr]["sampled"])

    def runs(self, pair: str, methods: Sequence[str], seeds: Sequence[int]) -> list[Values]:
        """The start, every method with every seed at its rate, and once for much longer."""
        rates = {method: self.rate(pair, method) for method in methods}
        found = [self.start(pair)]
        found += [self.run(pair, method, rates[method], seed, self.steps) for seed in seeds for method in methods]
        long = [self.run(pair, method, rates[method], 0, LONG * self.steps) for method in methods]
        return [*found, *({**run, "method": f"{run['method']}, {LONG} times as long"} for run in long)]


# ---- what it says


def of(runs: Sequence[Values], task: str, pair: str, method: str) -> list[Values]:
    return [run for run in runs if (run["task"], run["pair"], run["method"]) == (task, pair, method)]


def grades(runs: Sequence[Values], score: str) -> Any:
    """[S, P] share of right answers by seed and problem, in per cent."""
    return 100 * np.array([list(run["problems"][score].values()) for run in runs])


def level(runs: Sequence[Values], key: str) -> Interval:
    return crossed(grades(runs, key)) if key in SCORES else over_seeds([run[key] for run in runs])


def gap(ours: Sequence[Values], theirs: Sequence[Values], key: str) -> Interval:
    """Ours minus theirs, paired by seed, scores by problem too."""
    if key in SCORES:
        return crossed(grades(ours, key) - grades(theirs, key))
    return over_seeds([one[key] - other[key] for one, other in zip(ours, theirs, strict=True)])


def cell(found: Interval, key: str, sign: str = "") -> str:
    form = f"{sign}.1f" if key in SCORES else f"{sign}.3f"
    if found.low is None:
        return f"{found.value:{form}}"
    return f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"


def summary(runs: Sequence[Values]) -> str:
    """A line per model and method, then a line per method for what it earns beyond SFT."""
    lines, gaps = list[list[str]](), list[list[str]]()
    for task, pair, method in dict.fromkeys((run["task"], run["pair"], run["method"]) for run in runs):
        mine, sft = of(runs, task, pair, method), of(runs, task, pair, "SFT")
        who, lr = ("teacher", "") if pair == "teacher" else (pair, "" if method == "start" else f"{mine[0]['lr']:g}")
        tokens = f"{np.mean([run['tokens'] for run in mine]):,.0f}"
        what = "" if pair == "teacher" else method
        values = [cell(level(mine, key), key) for key in (*SCORES, *DISTANCES)]
        lines.append([task, who, what, lr, str(len(mine)), tokens, *values])
        if method in METHODS and method != "SFT":
            gaps.append([task, pair, method, *(cell(gap(mine, sft, key), key, "+") for key in (*SCORES, *DISTANCES))])
    names = ("greedy %", "sampled %", "forward KL", "reverse KL")
    first = table(["task", "student", "method", "lr", "seeds", "tokens", *names], lines)
    return first + "\n" + table(["task", "student", "minus SFT", *names], gaps)


def plot(runs: Sequence[Values]) -> Figure:
    """Sampled and greedy accuracy, every seed a dot, a panel per student; the teacher is the line."""
    places = list(dict.fromkeys((run["task"], run["pair"]) for run in runs if run["pair"] != "teacher"))
    names = list(dict.fromkeys(run["method"] for run in runs if run["pair"] != "teacher"))[::-1]
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 2.3), layout="constrained")
        panels = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
        for axes, (task, pair) in zip(panels, places, strict=True):
            mine = [run for run in runs if (run["task"], run["pair"]) == (task, pair)]
            for score, colour in (("greedy", 0), ("sampled", 4)):
                x, y = [100 * run[score] for run in mine], [names.index(run["method"]) for run in mine]
                axes.plot(x, y, "o", color=COLOURS[colour], alpha=0.7, label=score)
                for teacher in of(runs, task, "teacher", "start"):
                    axes.axvline(100 * teacher[score], color=COLOURS[colour], linestyle=":")
            axes.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 102))
            axes.set_title(f"{task}: {pair}", fontsize=9)
        figure.supxlabel("right, % of held-out problems (dotted: teacher)", fontsize=9)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/realizability"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tasks", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["SFT", "on-policy"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = list[Values]()
    for name in given.tasks:
        study = Study(name, KINDS[name], given.out, given.steps)
        runs.append(study.start("teacher"))
        for pair in (EARLIER, *study.kind.students):
            runs += study.runs(pair, given.methods, given.seeds)
            keep(given.out, "realizability", summary(runs), runs, plot(runs))


if __name__ == "__main__":
    main()
