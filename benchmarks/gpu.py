"""The loss and a step on a CUDA device in bfloat16. It was never run: what it prints there is not known.

    python benchmarks/gpu.py

The loss alone: forward and backward of a reverse KL of 8,192 rows at V = 128,256 and D = 4,096, through the chunk loop,
by eager torch on whole logits, and its matrix products alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from common import Sizes, best, report
from divergence import Case
from opd_step import training

from opd.dist import HeadDist
from opd.loop import one_step
from opd.step import CHUNK_ELEMENTS

ROWS, VOCAB, WIDTH = 8192, 128_256, 4096


def eager(case: Case) -> None:
    """What one would write without thinking of memory: both logits whole, in float32."""
    teacher = case.rows.dist("teacher")
    assert isinstance(teacher, HeadDist)
    lp = (case.bare.hidden @ case.bare.head.T).float().log_softmax(-1)
    lq = (teacher.hidden @ teacher.head.T).float().log_softmax(-1)
    (lp.exp() * (lp - lq)).sum(-1).mean().backward()


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Seconds and GiB of device memory above what existed before."""
    work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, times = torch.cuda.memory_allocated(), list[float]()
    for _ in range(5):
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {**best(times), "gib": round((torch.cuda.max_memory_allocated() - before) / 2**30, 2)}


def loss() -> dict[str, dict[str, float]]:
    """The loss alone in three ways."""
    case = Case(ROWS, VOCAB, WIDTH, WIDTH, "cuda", torch.bfloat16)
    return {
        "opd": measured(case.learn),
        "eager torch": measured(lambda: eager(case)),
        "products alone": measured(lambda: case.products(CHUNK_ELEMENTS[1] // VOCAB)),
    }


def step() -> dict[str, float]:
    """Seconds of the step of opd_step.py with both models in bfloat16."""
    sizes = Sizes(vocab=32_000, steps=6)
    run = training(sizes)
    for member in (run.cast["student"], run.cast["teacher"].engine):
        member.model.to("cuda", torch.bfloat16)
    times: list[float] = []
    for _ in range(run.steps):
        start = time.perf_counter()
        one_step(run)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return best(times[sizes.warmup :])


def main() -> None:
    if not torch.cuda.is_available():
        print("not run: no CUDA device")
        return
    torch.manual_seed(0)
    report(device=torch.cuda.get_device_name(), rows=ROWS, vocab=VOCAB, width=WIDTH, loss=loss(), step=step())


if __name__ == "__main__":
    main()
