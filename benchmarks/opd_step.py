"""Seconds and memory of one on-policy step of opd, with the models, the batch and the lengths of trl_step.py.

python benchmarks/opd_step.py --vocab 32000 --steps 6
"""

from __future__ import annotations

import resource
import time

import torch
from common import STUDENT, TEACHER, Sizes, best, llama, prompts, report, resident, tokenizer

from opd.engines.hf import HFModel
from opd.loop import Batch, Source, Training, one_step
from opd.measure import Kinds, Measures
from opd.method import Method
from opd.parts.observe import measured
from opd.recipes.gkd import gkd
from opd.rollout import Problem
from opd.teachers.local import LocalTeacher


class Words:
    """A task without grades: the cost of a step does not depend on them."""

    name = "words"

    def __init__(self, texts: list[str]) -> None:
        self.train = [Problem(str(number), text) for number, text in enumerate(texts)]
        self.held_out: list[Problem] = []

    def grade(self, problem: Problem, text: str) -> float | None:
        return None


REVERSE_KL = gkd(lam=1.0, beta=1.0, mean="token_mean")  # over the whole vocabulary, on what the student writes


def training(sizes: Sizes, method: Method = REVERSE_KL, measures: bool = True) -> Training:
    """A run as `opd train` builds it, with the measurements that every run makes or without."""
    words = tokenizer(sizes, eos=False)
    student = HFModel(llama(sizes, STUDENT), words, "student", max_new=sizes.new)
    teacher = LocalTeacher(HFModel(llama(sizes, TEACHER), words, "teacher"))
    task = Words(prompts(sizes, sizes.batch * (sizes.steps + sizes.warmup)))
    cast = {"student": student, "teacher": teacher}
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    return Training(
        student=student,
        cast=cast,
        task=task,
        method=measured(method, cast) if measures else method,
        optimizer=optimizer,
        rate=lambda step: 1e-4,
        source=Source(task.train, sizes.seed),
        steps=sizes.steps + sizes.warmup,
        batch=sizes.batch,
        measure=Measures(Kinds(student)) if measures else lambda rows: {},
    )


def main() -> None:
    sizes = Sizes.parse()
    imported = resident()
    run = training(sizes)
    batches: list[Batch] = []
    cpu: list[float] = []
    for _ in range(run.steps):
        start = time.process_time()
        batches.append(one_step(run))
        cpu.append(time.process_time() - start)
    assert all(batch.metrics["tokens"] == sizes.tokens for batch in batches)
    kept = [batch.metrics for batch in batches[sizes.warmup :]]
    split = {phase: best(m[f"seconds.{phase}"] for m in kept) for phase in ("sample", "teach", "learn")}
    total = best(sum(m[f"seconds.{phase}"] for phase in split) for m in kept)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report(
        sizes,
        who="opd",
        seconds={"total": total, **split, "cpu": best(cpu[sizes.warmup :])},
        mib={"imported": round(imported), "peak": round(peak - imported)},
    )


if __name__ == "__main__":
    main()
