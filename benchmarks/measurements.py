"""What the measurements of every run cost: the step with and without them, in turn, in one process.

    python benchmarks/measurements.py --vocab 32000 --threads 1

Models, batch and lengths are those of opd_step.py. Both sides start from the same weights and meet the same problems;
the ratio of the median steps is held below 1.10. With one thread the ratio of processor seconds says the same, and a
busy machine disturbs it less.
"""

from __future__ import annotations

import sys
import time

from common import Sizes, best, report
from opd_step import training

from opd.loop import one_step
from opd.method import Method
from opd.recipes.gkd import gkd
from opd.recipes.local_support import local_support
from opd.recipes.sampled_token import sampled_token

METHODS: dict[str, Method] = {
    "gkd": gkd(lam=1.0, beta=1.0, mean="token_mean"),
    "local_support": local_support(n=1, updates=1, top_p=1.0),
    "sampled_token": sampled_token(n=1),
}


def compare(sizes: Sizes, method: Method) -> dict[str, object]:
    """Wall and processor seconds of a step of both sides, and their ratios."""
    sides = {"with": training(sizes, method), "without": training(sizes, method, measures=False)}
    clocks = {"seconds": time.perf_counter, "cpu": time.process_time}
    taken = {clock: {name: list[float]() for name in sides} for clock in clocks}
    for _ in range(sizes.warmup + sizes.steps):
        for name, side in sides.items():
            start = {clock: read() for clock, read in clocks.items()}
            one_step(side)
            for clock, read in clocks.items():
                taken[clock][name].append(read() - start[clock])
    found = {clock: {name: best(t[sizes.warmup :]) for name, t in both.items()} for clock, both in taken.items()}
    ratio = {clock: round(both["with"]["median"] / both["without"]["median"], 3) for clock, both in found.items()}
    return {**found, "ratio": ratio}


def main() -> None:
    sizes = Sizes.parse(vocab=32_000)
    found: dict[str, object] = {}
    for name, method in METHODS.items():
        found[name] = compare(sizes, method)
        print(name, found[name], file=sys.stderr)
    report(sizes, methods=found)


if __name__ == "__main__":
    main()
