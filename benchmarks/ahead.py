"""What it saves that texts which have ended are read by a served teacher while others are being written.

    OMP_NUM_THREADS=1 python benchmarks/ahead.py            # --write puts the table into docs/benchmarks.md

The student writes on one core and `opd serve` reads on another; a text ends by chance, so that lengths are spread
widely. Each batch is written and read twice from the same seeds, asked ahead and not, in turn; a ratio is the median
over the ratios of pairs. Learning, which comes after both, is left out.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import STUDENT, Sizes, begun, llama, prompts, put, tokenizer
from served import Server

from opd.ahead import overheard, share
from opd.engines.hf import HFModel
from opd.loop import Source
from opd.method import Method
from opd.parts.sample import OneTurn
from opd.protocols import Cast
from opd.recipes.gkd import gkd
from opd.rollout import Array, Problem, Sampling, Visit
from opd.step import prepare
from opd.teachers.served import Served

TEACHER = 512, 8, 8  # width, layers, heads: its reading should take about as long as the student's writing
SIZES = Sizes(vocab=32_000, batch=16, new=128)
MEAN = 32  # tokens after which a text has ended on average, were there no limit


def method() -> Method:
    """Reverse KL over the whole vocabulary; a random model writes any token alike, and some of them end a text."""
    stop = tuple(range(SIZES.vocab - SIZES.vocab // MEAN, SIZES.vocab))
    return replace(gkd(lam=1.0, beta=1.0), sample=OneTurn(1, Sampling(stop=stop)))


def batch(cast: Cast, visits: list[Visit], ahead: bool) -> tuple[float, float, float]:
    """Seconds of writing, and of what is still to be read then; the share that was asked ahead."""
    plan = method()
    heard = overheard(plan, cast) if ahead else cast
    start = time.perf_counter()
    groups = plan.sample(heard, visits, 0)
    written = time.perf_counter()
    prepare(groups, plan, cast, 0)
    return written - start, time.perf_counter() - written, share(heard).get("ahead", 0.0)


def measured(server: Server, student: HFModel, pairs: int) -> Array:
    """[pairs, 2, 3] what `batch` gives: asked when all is written, and asked ahead; whoever is first, in turn."""
    cast = {"student": student, "teacher": Served([server.url])}
    source = Source([Problem(str(i), text) for i, text in enumerate(prompts(SIZES, SIZES.batch))], SIZES.seed)
    batch(cast, source.take(SIZES.batch), ahead=True)  # the head travels once
    found: list[list[tuple[float, float, float]]] = []
    for number in range(pairs):
        visits, order = source.take(SIZES.batch), (False, True) if number % 2 else (True, False)
        both = {ahead: batch(cast, visits, ahead) for ahead in order}
        found.append([both[False], both[True]])
        print(found[-1], file=sys.stderr)
    return np.array(found)


def table(found: Array) -> list[str]:
    lines = ["| | writing | then reading | both |", "|---|---|---|---|"]
    both = found[:, :, :2].sum(-1)
    names = "asked when all is written", f"asked ahead, {np.median(found[:, 1, 2]):.0%} of the tokens"
    for i, name in enumerate(names):
        wrote, read, _ = np.median(found[:, i], axis=0)
        lines.append(f"| {name} | {wrote:.2f} s | {read:.2f} s | {np.median(both[:, i]):.2f} s |")
    ratio = both[:, 1] / both[:, 0]
    spread = f"{ratio.min():.2f} to {ratio.max():.2f} over {len(ratio)} pairs"
    return [*lines, "", f"Both together, asked ahead over not: {np.median(ratio):.2f} ({spread})."]


def main() -> None:
    arguments, load = begun("pairs", 5)
    torch.set_num_threads(1)
    torch.manual_seed(SIZES.seed)
    os.environ["OPD_SERVE_TOKEN"] = os.environ["OPD_TEACHER_TOKEN"] = secrets.token_urlsafe(24)
    words, cores = tokenizer(SIZES, eos=False), sorted(os.sched_getaffinity(0))
    student = HFModel(llama(SIZES, STUDENT), words, "student", max_new=SIZES.new)
    with tempfile.TemporaryDirectory() as place:
        HFModel(llama(SIZES, TEACHER), words, "teacher").save(Path(place))
        with Server.of(Path(place)) as server:
            os.sched_setaffinity(server.pid, cores[-1:])
            os.sched_setaffinity(0, cores[:1])
            text = "\n".join([load, "", *table(measured(server, student, arguments.pairs))])
    print(text)
    if arguments.write:
        put("ahead.py", text)


if __name__ == "__main__":
    main()
