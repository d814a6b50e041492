"""One run of a small language model: trained, examined and remembered, so that a repeated command goes on."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from opd import Settings
from opd.build import build
from opd.evaluate import evaluate
from opd.loop import Training, train

COMMON: dict[str, Any] = {
    "batch": 64, "max_new": 16, "schedule": "linear", "warmup": 10, "teacher": "embedded:teacher", "threads": 1,
}  # fmt: skip
PROBLEMS, HELD_OUT = 128, 256
SEARCH = 100  # the seed whose problems the learning rates are sought on, never one that is reported
Values = dict[str, Any]
Examine = Callable[[Training], Values]


def remembered(file: Path, make: Callable[[], Values]) -> Values:
    """What stands in the file; made and written where there is none."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(make()), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def examined(training: Training, teacher: Any = None) -> Values:
    """Per cent of held-out problems that are right, greedy and sampled; reverse KL to the teacher (the run's own if no
    other is given), length of samples, and per cent of them that were cut off.
    """
    exam = evaluate(training.student, training.task, teacher=teacher or training.cast["teacher"])
    assert exam.greedy and exam.sampled and exam.kl and exam.greedy.accuracy and exam.sampled.accuracy
    return {
        "greedy": 100 * exam.greedy.accuracy.value,
        "sampled": 100 * exam.sampled.accuracy.value,
        "reverse kl": exam.kl.per_token,
        "length": exam.sampled.length,
        "cut off": 100 * exam.sampled.truncated,
    }


def trained(values: Values, seed: int, examine: Examine = examined) -> Values:
    """The examination after one run, and its curves; every seed has its own training problems and samples."""
    task = f"sums,train={PROBLEMS},held_out={HELD_OUT},seed={seed}"
    training = build(Settings.of(**{**COMMON, "task": task, **values, "seed": seed}))
    curves: dict[str, list[float]] = {}
    for batch in train(training):
        for name, value in batch.metrics.items():
            curves.setdefault(name, []).append(round(value, 5))
    return {"settings": values, "seed": seed, "curves": curves, **examine(training)}


def best_rate(rates: Iterable[float], at: Callable[[float], Values]) -> float:
    """The rate with the lowest reverse KL where it was sought: the objective of every method here, in its own units."""
    return min(rates, key=lambda rate: at(rate)["reverse kl"])
