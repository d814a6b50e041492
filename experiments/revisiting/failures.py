"""The three failure modes of the sampled token, made on purpose in the embedded pair, and what mends them.

    python -m experiments.revisiting.failures --out runs/failures

Imbalance is measured on the embedded pair as it is. For the other two a student that gets into loops and a teacher that
goes along with a loop and ends its texts with another token are made first (pairs.py), two to four minutes. Then one
student per cell of the ablation learns from that teacher. A run that is already in --out is not done again.
"""

import argparse
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.revisiting.language import Values, examined, remembered, trained
from experiments.revisiting.pairs import odd_pair
from experiments.revisiting.results import COLOURS, STYLE, keep, spread, table
from experiments.revisiting.signals import ELSEWHERE, END, ENTERING, INSIDE, Signals, carried, signals
from opd import Settings
from opd.cast import member
from opd.evaluate import write
from opd.loop import Training
from opd.rollout import Sampling

K, MAX_NEW = 8, 24
EMBEDDED = {"student": "embedded:student", "teacher": "embedded:teacher"}


# ---- before any step


def imbalance(seeds: Iterable[int]) -> Values:
    """How unevenly the two signals are spread over the tokens of the first batch."""
    found = [signals(**EMBEDDED, seed=seed, k=K) for seed in seeds]
    measures = {
        "advantage below 0": lambda s: 100 * float((s.advantage < 0).double().mean()),
        "size of the advantage, top 1 % of the tokens": lambda s: 100 * carried(s.advantage, 0.01),
        "size of the advantage, top 10 %": lambda s: 100 * carried(s.advantage, 0.1),
        "size of the gradient, top 10 %: sampled token": lambda s: 100 * carried(s.sampled, 0.1),
        "size of the gradient, top 10 %: local support": lambda s: 100 * carried(s.local, 0.1),
        "local support pushes the written token down": lambda s: 100 * float((s.push < 0).double().mean()),
        "up": lambda s: 100 * float((s.push > 0).double().mean()),
        "not at all: it is outside the support": lambda s: 100 * float((s.push == 0).double().mean()),
    }
    return {name: [measure(s) for s in found] for name, measure in measures.items()}


def by_kind(pair: dict[str, str], seeds: Iterable[int]) -> list[list[str]]:
    """Per kind of token, over all seeds: how many, how likely, and who carries the gradient."""
    found = [signals(**pair, seed=seed, k=K, max_new=MAX_NEW) for seed in seeds]
    return [[kind, *cells(found, kind)] for kind in (ELSEWHERE, ENTERING, INSIDE, END)]


def cells(found: list[Signals], kind: str) -> list[str]:
    where = [torch.tensor([one == kind for one in s.kind]) for s in found]
    pairs = list(zip(found, where, strict=True))
    means = [[float(getattr(s, name)[w].mean()) for s, w in pairs] for name in ("student", "teacher", "advantage")]
    part = lambda size: [100 * float(size(s)[w].sum() / size(s).sum()) for s, w in pairs]
    parts = [part(size) for size in (lambda s: torch.ones(len(s.kind)), lambda s: s.sampled, lambda s: s.local)]
    return [spread(parts[0], ".1f"), *map(spread, means), *(spread(values, ".0f") for values in parts[1:])]


# ---- the ablation


@dataclass(frozen=True)
class Cell:
    """One way of learning from the odd teacher."""

    objective: str
    top_p: float = 0.9
    end: str = "keep"  # the row of the student's end-of-text token: keep, mask, or map to the teacher's
    k: int = K
    outside: str = "renormalise"

    @property
    def name(self) -> str:
        return f"{self.objective}-p{self.top_p:g}-{self.end}" + (
            f"-k{self.k}-{self.outside}" if self.objective == LOCAL else ""
        )

    @property
    def settings(self) -> dict[str, Any]:
        own = {"n": 1, "top_p": self.top_p}
        if self.objective == LOCAL:
            own |= {"k": self.k, "outside": self.outside, "updates": 1}
        return {"method": self.objective, "parameters": own, "lr": RATES[self.objective], "stop_token": self.end}


SAMPLED, LOCAL = "sampled_token", "local_support"
RATES = {SAMPLED: 5e-4, LOCAL: 4.5e-3}  # each the best of variants.py's
ABLATION = [Cell(o, p, end) for o in (SAMPLED, LOCAL) for p in (1.0, 0.9) for end in ("keep", "mask")]
MAPPED = [Cell(o, 0.9, "map") for o in (SAMPLED, LOCAL)]
SWEEPS = [
    *(Cell(LOCAL, end="mask", k=k) for k in (2, 4, 16)),
    Cell(LOCAL, 0.8, end="mask"),
    Cell(LOCAL, end="mask", outside="drop"),
]
COLUMNS = (("greedy", ".1f"), ("sampled", ".1f"), ("looping", ".1f"), ("cut off", ".1f"), ("reverse kl", ".2f"))


def run(cell: Cell, seed: int, steps: int, pair: dict[str, str], out: Path) -> Values:
    values = {**cell.settings, **pair, "steps": steps, "max_new": MAX_NEW}
    make = lambda: {"cell": asdict(cell), **trained(values, seed, examine)}
    found = remembered(out / "runs" / f"{cell.name}-seed{seed}-{steps}.json", make)
    shown = ", ".join(f"{key} {found[key]:{form}}" for key, form in COLUMNS)
    print(f"{cell.name}, seed {seed}: {shown}", flush=True)
    return found


def examine(training: Training) -> Values:
    """As always, with the distance from the sound teacher, and per cent of samples that get into a loop."""
    sound = member("embedded:teacher", Settings.of(method="gkd", threads=1), training.student)
    return {**examined(training, sound), "looping": looping(training)}


def looping(training: Training) -> float:
    """Per cent of samples in which a total stands three times in a row, which no right answer does."""
    problems = training.task.held_out
    prompts = [training.student.render(problem.messages) for problem in problems]
    answers = write(training.student, problems, prompts, Sampling(max_new=MAX_NEW), 1, seed=1)
    return 100 * fmean(loops(answer.text) for (answer,) in answers)


def loops(text: str) -> bool:
    totals = text.replace(" ", "").split(",")
    return any(a == b == c for a, b, c in zip(totals, totals[1:], totals[2:], strict=False))


# ---- what comes out


def ablation(start: list[Values], runs: dict[Cell, list[Values]]) -> str:
    numbers = lambda found: [spread([one[key] for one in found], form) for key, form in COLUMNS]
    lines = [["before", "", "", "", "", *numbers(start)]]
    for cell, found in runs.items():
        k, outside = (cell.k, cell.outside) if cell.objective == LOCAL else ("", "")
        lines.append([cell.objective, f"{cell.top_p:g}", cell.end, str(k), outside, *numbers(found)])
    names = ["greedy %", "sampled %", "looping %", "cut off %", "reverse KL to the sound teacher"]
    return table(["objective", "top-p", "its end of text", "K", "outside", *names], lines)


def text(uneven: Values, kinds: list[list[str]], start: list[Values], runs: dict[Cell, list[Values]]) -> str:
    """The three tables."""
    numbers = table(["the first batch", "%"], [[name, spread(values, ".1f")] for name, values in uneven.items()])
    head = ["tokens", "% of all", "log pi", "log q", "advantage", "% of the gradient, sampled token", "local support"]
    return "\n".join([numbers, table(head, kinds), ablation(start, runs)])


def plot(runs: dict[Cell, list[Values]]) -> Figure:
    """Left what the written tokens of the first batch are worth to both models, right every run of the ablation."""
    first = signals(**EMBEDDED, seed=0, k=K, answers=1)
    names = [f"{c.name}".replace("_", " ") for c in runs]
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right, loops = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
        left.plot(first.student[:600], first.teacher[:600], ".", markersize=2, color=COLOURS[0])
        left.axline((0, 0), slope=1, color="0.6", linewidth=0.8)
        left.set(xlabel="log pi(y), student", ylabel="log q(y), teacher", title="first batch, embedded pair")
        for axes, key, colour in ((right, "sampled", 4), (loops, "looping", 2)):
            pairs = [(one[key], len(names) - i) for i, found in enumerate(runs.values()) for one in found]
            axes.plot(*zip(*pairs, strict=True), "o", color=COLOURS[colour], alpha=0.7)
            axes.set(yticks=range(1, len(names) + 1), yticklabels=names[::-1] if axes is right else [])
        right.set(xlabel="right, % of samples")
        loops.set(xlabel="in a loop, % of samples")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/failures"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sweep-seeds", type=int, nargs="+", default=[0], help="of the sweeps of K and top-p")
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    torch.set_num_threads(1)
    pair = odd_pair(given.out / "models")
    uneven, kinds = imbalance(given.seeds), by_kind(pair, given.seeds)
    start = [run(ABLATION[0], seed, 0, pair, given.out) for seed in given.seeds]
    runs: dict[Cell, list[Values]] = {}
    for cells, seeds in (((*ABLATION, *MAPPED), given.seeds), (SWEEPS, given.sweep_seeds)):
        runs |= {cell: [run(cell, seed, given.steps, pair, given.out) for seed in seeds] for cell in cells}
    raw = {
        "imbalance": uneven,
        "kinds": kinds,
        "before": start,
        "runs": [one for found in runs.values() for one in found],
    }
    keep(given.out, "failures", text(uneven, kinds, start, runs), raw, plot(runs))


if __name__ == "__main__":
    main()
