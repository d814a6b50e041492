"""Variance of the gradient against the length of a text, and bias against variance, for discounts gamma from 0 to 1.

    python -m experiments.revisiting.variance --out runs/variance

The estimator of arXiv 2603.25562 as the method `sampled_token` computes it, on policies whose texts can all be listed.
First part: eight words drawn independently from one softmax. Second part: three words, each depending on the one
before, where the token-level gradient is biased. About two minutes on one core.
"""

import argparse
import itertools
import math
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.revisiting.results import COLOURS, STYLE, keep, middle, spread, table
from opd.lab import tabular
from opd.recipes.sampled_token import sampled_token

GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
NEARNESS = (1.0, 0.1)  # how much of the way from the student's logits to others the teacher's are
WORDS, LENGTHS, ENUMERATED, DRAWN, TEXTS = 8, (1, 2, 4, 5, 8, 16, 32, 64, 128, 256), (1, 2, 4, 5), (4, 16, 64), 4000
FINE, BATCHES = tuple(i / 20 for i in range(21)), (1, 16, 256, 4096)
CASES = ((0.0, 1.0, 6), (1.0, 0.3, 6), (1.0, 1.0, 3), (1.0, 1.0, 6), (1.0, 1.0, 8), (2.0, 1.0, 6))
SHOWN = CASES[3]


# ---- variance against length


def independent(seed: int, distance: float) -> tuple[Tensor, Tensor]:
    """Student and teacher [V + 1, V] whose words do not depend on what stands before them."""
    generator = torch.Generator().manual_seed(seed)
    student, other = torch.randn(2, WORDS, generator=generator, dtype=torch.float64)
    teacher = student + distance * (other - student)
    return student.expand(WORDS + 1, WORDS), teacher.expand(WORDS + 1, WORDS)


def each_text(student: Tensor, teacher: Tensor, texts: Tensor, gamma: float) -> Tensor:
    """[B, V] the gradient of every text in the one softmax that all positions share."""
    return tabular.gradients(sampled_token(gamma=gamma), student, teacher, texts).sum(1)


def enumerated(student: Tensor, teacher: Tensor, length: int, gamma: float) -> float:
    texts = tabular.every_text(WORDS, length)
    weight = tabular.logprobs(student, texts).sum(1).exp()
    each = each_text(student, teacher, texts, gamma)
    return float(weight @ (each - weight @ each).square().sum(1))


def drawn(student: Tensor, teacher: Tensor, length: int, gamma: float, seed: int) -> float:
    texts = tabular.draw(student, TEXTS, length, torch.Generator().manual_seed(seed))
    return float(each_text(student, teacher, texts, gamma).var(0).sum())


def growth(seeds: int) -> list[dict[str, Any]]:
    """Per world and gamma: the variance by the closed form, of drawn texts, and in one world by listing every text."""
    found = list[dict[str, Any]]()
    for seed, distance, gamma in itertools.product(range(seeds), NEARNESS, GAMMAS):
        pair = independent(seed, distance)
        exact = {t: tabular.independent_variance(pair[0][0], pair[1][0], t, gamma) for t in LENGTHS}
        line = {"seed": seed, "distance": distance, "gamma": gamma, "exact": exact}
        line["drawn"] = {t: drawn(*pair, t, gamma, seed) for t in DRAWN}
        if seed == 0:
            line["enumerated"] = {t: enumerated(*pair, t, gamma) for t in ENUMERATED}
        found.append(line)
    return found


def disagreement(found: list[dict[str, Any]]) -> float:
    """Largest relative difference between the closed form and the listing of every text."""
    pairs = [(line["exact"], line["enumerated"]) for line in found if "enumerated" in line]
    return max(abs(exact[t] / every[t] - 1) for exact, every in pairs for t in ENUMERATED)


def exponent(variance: dict[int, float], short: int, long: int) -> float:
    return math.log(variance[long] / variance[short], long / short)


def growth_table(found: list[dict[str, Any]]) -> str:
    lines = list[list[str]]()
    for distance, gamma in itertools.product(NEARNESS, GAMMAS):
        mine = [line for line in found if (line["distance"], line["gamma"]) == (distance, gamma)]
        steps = [("exact", 1, 4), ("exact", 16, 64), ("drawn", 16, 64), ("exact", 64, 256)]
        cells = [spread([exponent(line[kind], short, long) for line in mine]) for kind, short, long in steps]
        base = {line["seed"]: line["exact"][64] for line in found if (line["distance"], line["gamma"]) == (distance, 0)}
        times = middle([line["exact"][64] / base[line["seed"]] for line in mine], ".3g")
        lines.append([f"{distance:g}", f"{gamma:g}", *cells, times])
    names = ["T 1 to 4", "T 16 to 64", "T 16 to 64, drawn texts", "T 64 to 256", "over that of gamma 0 at T = 64"]
    return table(["distance", "gamma", *names], lines)


# ---- bias against variance


def coupled(seed: int, coupling: float, distance: float) -> tuple[Tensor, Tensor]:
    """Student and teacher [4, 3]; the word before matters by `coupling`, and `distance` is how much they differ."""
    generator = torch.Generator().manual_seed(seed)
    shared, own = (torch.randn(2, n, 3, generator=generator, dtype=torch.float64) for n in (1, 4))
    student, apart = shared + coupling * own
    return student, student + distance * apart


def trade(seed: int, coupling: float, distance: float, length: int) -> dict[str, Any]:
    """Exact squared bias and variance of one text's gradient for every gamma of the fine grid."""
    student, teacher = coupled(seed, coupling, distance)
    wanted = student.clone().requires_grad_()
    (truth,) = torch.autograd.grad(tabular.sequence_kl(wanted, teacher, length), wanted)
    found = [tabular.moments(sampled_token(gamma=gamma), student, teacher, length) for gamma in FINE]
    bias = [float((mean - truth).square().sum()) for mean, _ in found]
    size = float(truth.square().sum())
    names = {"seed": seed, "coupling": coupling, "distance": distance, "length": length}
    return {**names, "gradient": size, "bias": bias, "variance": [variance for _, variance in found]}


def error(world: dict[str, Any], batch: int) -> list[float]:
    """Mean squared error of the mean of `batch` texts, in units of the squared gradient, for every gamma."""
    pairs = zip(world["bias"], world["variance"], strict=True)
    return [(bias + variance / batch) / world["gradient"] for bias, variance in pairs]


def best(world: dict[str, Any], batch: int) -> float:
    errors = error(world, batch)
    return FINE[errors.index(min(errors))]


def break_even(world: dict[str, Any]) -> float:
    """The batch size at which gamma 0 and gamma 1 have the same mean squared error."""
    bias, variance = world["bias"], world["variance"]
    return (variance[-1] - variance[0]) / (bias[0] - bias[-1]) if bias[0] > 1e-20 else math.inf


def trade_table(worlds: list[dict[str, Any]]) -> str:
    lines = list[list[str]]()
    for case in CASES:
        mine = [world for world in worlds if (world["coupling"], world["distance"], world["length"]) == case]
        bias = [math.sqrt(world["bias"][0] / world["gradient"]) for world in mine]
        ratio = [world["variance"][-1] / world["variance"][0] for world in mine]
        gammas = [middle([best(world, batch) for world in mine]) for batch in BATCHES]
        equal = [break_even(world) for world in mine]
        cells = [middle(bias), middle(ratio, ".1f"), middle(equal, ".0f") if max(equal) < math.inf else "never"]
        lines.append([*(f"{x:g}" for x in case), *cells, *gammas])
    names = ["coupling", "distance", "T", "bias of gamma 0", "variance of gamma 1 / gamma 0", "equal at batch"]
    return table([*names, *(f"best gamma, batch {batch}" for batch in BATCHES)], lines)


# ---- the plot


def plot(found: list[dict[str, Any]], worlds: list[dict[str, Any]]) -> Figure:
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        plot_growth(left, [line for line in found if line["seed"] == 0 and line["distance"] == 1])
        shown = [world for world in worlds if (world["coupling"], world["distance"], world["length"]) == SHOWN]
        plot_trade(right, shown)
    return figure


def plot_growth(axes: Axes, found: list[dict[str, Any]]) -> None:
    for line, colour in zip(found, COLOURS, strict=True):
        axes.plot(LENGTHS, list(line["exact"].values()), color=colour, label=f"gamma {line['gamma']:g}")
        axes.plot(DRAWN, list(line["drawn"].values()), "o", color=colour, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="length T", ylabel="variance of one text's gradient")
    axes.set_title("words independent: dots are drawn texts")
    axes.legend()


def plot_trade(axes: Axes, worlds: list[dict[str, Any]]) -> None:
    for batch, colour in zip(BATCHES, COLOURS, strict=False):
        curve = [median(errors) for errors in zip(*(error(world, batch) for world in worlds), strict=True)]
        axes.plot(FINE, curve, color=colour, label=f"batch {batch}")
        lowest = curve.index(min(curve))
        axes.plot(FINE[lowest], curve[lowest], "o", color=colour, markersize=5)
    axes.set(yscale="log", xlabel="gamma", ylabel="squared error / squared gradient")
    axes.set_title(f"words coupled, T = {SHOWN[2]}: dots at the least")
    axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/variance"))
    parser.add_argument("--seeds", type=int, default=20, help="worlds per case")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found, worlds = growth(given.seeds), list[dict[str, Any]]()
    for case in CASES:
        worlds += [trade(seed, *case) for seed in range(given.seeds)]
        print("trade: coupling {:g}, distance {:g}, T {}".format(*case), flush=True)
    print(f"closed form against every text listed: {disagreement(found):.1e}", flush=True)
    text = f"{growth_table(found)}\n{trade_table(worlds)}"
    keep(given.out, "variance", text, {"growth": found, "trade": worlds}, plot(found, worlds))


if __name__ == "__main__":
    main()
