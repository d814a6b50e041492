"""What a noisy teacher costs a small language model: who writes the prefix, and whether the loss knows of the noise.

    python -m experiments.noisy_experts.addition --out runs/noisy-addition

Seven ways to learn (arms.py) from teachers with three noise rates (rule.py: after a wrong total one is lost, the other
goes on from it). Every arm takes as many updates on as many of the teacher's answers; its learning rate is sought
among the same ones, in runs of half the length on another key. All is measured against the clean teacher. A run that is
already in --out is not done again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.noisy_experts.arms import CHANNEL, SFT, WAYS, WORLDS, WRITERS, Arm, Values, examined, prepared
from experiments.noisy_experts.rule import TERMS
from experiments.noisy_experts.student import beginner
from experiments.revisiting.language import SEARCH, remembered
from experiments.revisiting.results import COLOURS, STYLE, keep, spread, table
from opd.loop import train

NOISE = {WORLDS[0]: (0.1, 0.3, 0.6), WORLDS[1]: (0.3,)}
COLOUR = dict(zip((SFT, *WRITERS), ("black", COLOURS[4], COLOURS[3], COLOURS[0]), strict=True))
DEPTHS = (0, TERMS // 2, TERMS - 1)  # in the table
RATES = (4e-3, 1e-2)


def run(arm: Arm, lr: float, seed: int, steps: int, out: Path) -> Values:
    def make() -> Values:
        training = prepared(arm, lr, steps, seed, out / "beginner")
        for _ in train(training):
            pass
        named = {"world": arm.world, "noise": arm.rate, "prefix": arm.prefix, "loss": arm.loss}
        return {**named, "lr": lr, "steps": steps, "seed": seed, **examined(training)}

    name = f"{arm.label}-lr{lr:g}-{steps}-seed{seed}".replace(", ", "-").replace(" ", "-")
    found = remembered(out / "runs" / f"{name}.json", make)
    print(f"{name}: {found['greedy']:.1f} / {found['sampled']:.1f}, known {fmean(found['known']):.1f}", flush=True)
    return found


def study(arm: Arm, seeds: Sequence[int], steps: int, out: Path) -> list[Values]:
    """The seeds of one arm, at the rate after which most decisions were right where it was sought."""
    best = max(RATES, key=lambda lr: fmean(run(arm, lr, SEARCH, steps // 2, out)["known"]))
    return [run(arm, best, seed, steps, out) for seed in seeds]


def before(seeds: Sequence[int], out: Path) -> list[Values]:
    """The beginner, examined on the keys that it is to learn."""
    return [run(every_arm()[0], RATES[0], seed, 0, out) for seed in seeds]


# ---- what comes out


def of(arm: Arm, runs: list[Values]) -> list[Values]:
    return [one for one in runs if Arm(one["world"], one["noise"], one["prefix"], one["loss"]) == arm]


def summary(start: list[Values], runs: list[Values]) -> str:
    lines = [["untaught", "", "", "", "", *cells(start)]]
    for arm in every_arm():
        mine = of(arm, runs)
        lines.append([arm.world, f"{arm.rate:g}", arm.prefix, arm.loss, f"{mine[0]['lr']:g}", *cells(mine)])
    at = [f"known at {depth + 1}, %" for depth in DEPTHS]
    head = ["after a wrong total", "noise", "written by", "loss", "lr", "greedy right, %", "sampled right, %", *at]
    return table(head, lines)


def cells(runs: list[Values]) -> list[str]:
    right = [spread([one[key] for one in runs], ".1f") for key in ("greedy", "sampled")]
    return right + [spread([one["known"][depth] for one in runs], ".0f") for depth in DEPTHS]


def plot(runs: list[Values]) -> Figure:
    """What is known of every depth, a panel per teacher and noise rate, a line per arm (mean over seeds)."""
    panels = [(world, rate) for world, rates in NOISE.items() for rate in rates]
    with rc_context(STYLE):
        figure = Figure(figsize=(2 * len(panels), 3), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
            axes.set_title("{}, noise {:g}".format(*panel), fontsize=9)
            for prefix, loss in WAYS:
                if not (mine := of(Arm(*panel, prefix, loss), runs)):
                    continue
                y = [fmean(one["known"][depth] for one in mine) for depth in range(TERMS)]
                line = "-" if loss == CHANNEL else ":"
                axes.plot(range(1, TERMS + 1), y, line, color=COLOUR[prefix], label=f"{prefix}, {loss}")
        figure.supxlabel("depth of the decision", fontsize=9)
        figure.supylabel("right after a clean prefix, %", fontsize=9)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    return figure


def every_arm() -> list[Arm]:
    """All ways to learn from the teacher that gets lost, and the two ends of them from the other."""
    ways = {WORLDS[0]: WAYS, WORLDS[1]: (WAYS[0], WAYS[-1])}
    return [Arm(world, rate, *way) for world, rates in NOISE.items() for rate in rates for way in ways[world]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/noisy-addition"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=120)
    given = parser.parse_args()
    torch.set_num_threads(1)
    beginner(given.out / "beginner")
    start = before(given.seeds, given.out)
    runs = [one for arm in every_arm() for one in study(arm, given.seeds, given.steps, given.out)]
    keep(given.out, "noisy-addition", summary(start, runs), start + runs, plot(runs))


if __name__ == "__main__":
    main()
