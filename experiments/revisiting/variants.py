"""The five supports, the sampled token and the full reverse KL on the embedded pair, each at its own learning rate.

    python -m experiments.revisiting.variants --out runs/variants

All write with the same rollouts (one answer per problem, temperature 1, top-p 0.9) and take as many steps, so that only
the loss differs. Every method's learning rate is sought among the same ones, in runs of half the length, on problems
that are never reported. A run that is already in --out is not done again.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.revisiting.language import SEARCH, Values, best_rate, remembered, trained
from experiments.revisiting.results import COLOURS, STYLE, keep, spread, table

ROLLOUTS: Values = {"n": 1, "top_p": 0.9}
RATES = (5e-4, 1.5e-3, 4.5e-3)
K = 8


def support(**how: Any) -> Values:
    return {"method": "local_support", "parameters": {**ROLLOUTS, "k": K, "updates": 1, **how}}


METHODS: dict[str, Values] = {
    "1 teacher top-K, renormalised": support(),
    "2 student top-K + sampled, renormalised": support(source="student", sampled=True),
    "3 teacher top-K + sampled, renormalised": support(sampled=True),
    "4 student top-K, sampled tail": support(source="student", outside="published_sampled_tail"),
    "5 teacher top-K, sampled tail": support(outside="published_sampled_tail"),
    "full reverse KL": {"method": "gkd", "parameters": {**ROLLOUTS, "lam": 1.0, "beta": 1.0, "mean": "token_mean"}},
    "sampled token": {"method": "sampled_token", "parameters": ROLLOUTS},
}


def run(name: str, rate: float, seed: int, steps: int, out: Path) -> Values:
    label = f"{name}-lr{rate:g}-{steps}-seed{seed}".replace(" ", "-").replace(",", "")
    make = lambda: {"name": name, "lr": rate, **trained({**METHODS[name], "lr": rate, "steps": steps}, seed)}
    found = remembered(out / "runs" / f"{label}.json", make)
    print(f"{label}: {found['greedy']:.1f} / {found['sampled']:.1f}, reverse KL {found['reverse kl']:.3f}", flush=True)
    return found


def study(name: str, seeds: list[int], steps: int, out: Path) -> list[Values]:
    """The seeds of one method at the rate that was best where it was sought."""
    rate = best_rate(RATES, lambda rate: run(name, rate, SEARCH, steps // 2, out))
    return [run(name, rate, seed, steps, out) for seed in seeds]


def summary(runs: list[Values]) -> str:
    lines: list[list[str]] = []
    for name in dict.fromkeys(one["name"] for one in runs):
        mine = [one for one in runs if one["name"] == name]
        cells = [spread([one[key] for one in mine], form) for key, form in COLUMNS]
        lines.append([name, f"{mine[0]['lr']:g}", *cells])
    return table(["objective", "lr", *(key if key == "reverse kl" else f"{key} %" for key, _ in COLUMNS)], lines)


COLUMNS = (("greedy", ".1f"), ("sampled", ".1f"), ("reverse kl", ".3f"))


def plot(runs: list[Values]) -> Figure:
    """Every seed a dot: greedy and sampled accuracy left, reverse KL right."""
    names = list(dict.fromkeys(one["name"] for one in runs))[::-1]
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for key, axes, colour in (("greedy", left, 0), ("sampled", left, 4), ("reverse kl", right, 2)):
            x, y = [one[key] for one in runs], [names.index(one["name"]) for one in runs]
            axes.plot(x, y, "o", color=COLOURS[colour], alpha=0.7, label=key)
        left.set(yticks=range(len(names)), yticklabels=names, xlabel="right, % of held-out problems")
        right.set(xlabel="reverse KL, nats per token")
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/variants"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = next(iter(METHODS))
    runs = [{**run(start, RATES[0], seed, 0, given.out), "name": "before", "lr": 0} for seed in given.seeds]
    runs += [one for name in METHODS for one in study(name, given.seeds, given.steps, given.out)]
    keep(given.out, "variants", summary(runs), runs, plot(runs))


if __name__ == "__main__":
    main()
