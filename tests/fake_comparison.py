"""Run folders of a comparison with made-up grades, as `opd train` writes them: the table and the page need no model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tomli_w

from opd.compare.course import Comparison, concluded
from opd.compare.outcome import Field, look
from opd.compare.plan import Contest, Entrant, Trial
from opd.compare.tuning import choose
from opd.record import resolved

PROBLEMS = 60


def contest(out: Path, *words: str, seeds: int = 3, **more) -> Contest:
    shared = {"budget": "steps=20", "eval_every": 10, "lr": 1e-3, **more.pop("shared", {})}
    return Contest(tuple(map(Entrant.of, words)), shared, out, seeds, **more)


def exam(rng: np.random.Generator, accuracy: float, kl: float, graded: bool = True) -> dict:
    def draws() -> dict:
        grades = (rng.random(PROBLEMS) < accuracy).astype(float)
        value = float(grades.mean())
        marks = {f"sums/{number}": grade for number, grade in enumerate(grades.tolist())}
        share = {"value": value, "low": max(0, value - 0.1), "high": min(1, value + 0.1)}
        return {
            "accuracy": share if graded else None, "grade": value if graded else None, "length": 13.1,
            "truncated": 0.0, "by_problem": marks if graded else {},
        }  # fmt: skip

    return {"greedy": draws(), "sampled": draws(), "kl": {"per_token": kl, "per_token_error": 0.04}}


def finish(trial: Trial, accuracy: float, kl: float = 0.5, graded: bool = True) -> None:
    """Writes what a finished run leaves behind."""
    rng = np.random.default_rng([trial.seed, sum(map(ord, trial.entrant.label))])
    start = np.random.default_rng(trial.seed)
    before, after = exam(start, 0.3, 1.7, graded), exam(rng, accuracy, kl, graded)
    trial.folder.mkdir(parents=True, exist_ok=True)
    (trial.folder / "run.toml").write_text(tomli_w.dumps(resolved(trial.settings)))
    costs = {
        "tokens": 800.0,
        "teacher_tokens": 2000.0,
        "seconds.sample": 0.2,
        "seconds.teach": 0.1,
        "seconds.learn": 0.3,
    }
    steps = [
        {"step": step, "loss": 1.0, "reward": accuracy, "student.entropy": 0.5 - step / 100, "length": 13.0, **costs}
        for step in range(20)
    ]
    lines = [_line(0, before), *steps[:10], _line(10, after), *steps[10:], _line(20, after)]
    (trial.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    totals = {"steps": 20, "seconds": 12.0, "tokens": 16000.0, "teacher_tokens": 40000.0, "memory": 640.0}
    teacher = {**exam(start, 1.0, 0.0, graded), "kl": None}
    summary = {
        "method": trial.entrant.method,
        **totals,
        "student_before": before,
        "student_after": after,
        "teacher": teacher,
    }
    (trial.folder / "summary.json").write_text(json.dumps(summary))


def _line(step: int, exam: dict) -> dict:
    line = {"step": step, "eval.reverse_kl": exam["kl"]["per_token"], "eval.reverse_kl.error": 0.04}
    for kind in ("greedy", "sampled"):
        if share := exam[kind]["accuracy"]:
            line |= {
                f"eval.{kind}": share["value"],
                f"eval.{kind}.low": share["low"],
                f"eval.{kind}.high": share["high"],
            }
    return line


def comparison(made: Contest, accuracies: dict[str, float], errors: dict[str, str] | None = None, **how) -> Comparison:
    """The comparison in which every method has its accuracy; `errors` by the name of a trial."""
    errors = errors or {}
    tuning = made.tuning(20)
    for trial in tuning:
        if trial.name not in errors:
            finish(trial, accuracies[trial.entrant.label] - trial.lr, **how)
    reported = made.reported({entrant.label: made.rates[0] if made.rates else 1e-3 for entrant in made.entrants}, 20)
    for trial in reported:
        if trial.name not in errors:
            finish(trial, accuracies[trial.entrant.label], kl=1 - accuracies[trial.entrant.label], **how)
    broken = {trial.folder: errors[trial.name] for trial in [*tuning, *reported] if trial.name in errors}
    field = Field(tuple(look(trial, broken) for trial in reported))
    return concluded(made, field, choose([look(trial, broken) for trial in tuning]), 20 if made.rates else 0)
