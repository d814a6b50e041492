"""A run folder as opd.run writes it, with made-up numbers that look like a run's: the page needs no model."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=document.title="owned">'
PROSE = "First, I add the two prices:\n\n\t3.50 + 4.25 = 7.75.\nThen half of it is 3.875, so they pay 3.88 each."
PROBLEMS = 40


def write_run(
    folder: Path,
    *,
    method: str = "gkd",
    steps: int = 60,
    end: float = 0.84,
    distributions: bool = True,
    finished: bool = True,
    graded: bool = True,
    passing: bool = True,
    texts: Sequence[str] = (PROSE,),
    settings: dict[str, Any] | None = None,
) -> Path:
    """`texts` become drafts beside the sums; an unfinished run stops half-way and has no summary.

    Without `passing` the run wrote none of the numbers that are measured in passing.
    """
    rng = random.Random(f"{method}{steps}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.toml").write_text(tomli_w.dumps(_settings(method, steps) | (settings or {})), encoding="utf-8")
    before, after = _exam(rng, 0.21, graded), _exam(rng, end, graded)
    teacher = _exam(rng, 0.99, graded) | {"kl": None}
    done = steps if finished else steps // 2
    lines = [_exam_line(0, before), *(_batch_line(rng, step, steps, graded, passing) for step in range(done))]
    if finished:
        lines.append(_exam_line(steps, after))
        seconds = {"seconds.sample": 4.0, "seconds.teach": 1.5, "seconds.learn": 6.2}
        summary = {"method": method, "steps": steps, "student_before": before, "student_after": after}
        _json(folder / "summary.json", summary | {"teacher": teacher, "seconds": 11.7, "tokens": 99.0} | seconds)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    _json(folder / "before.json", {"student": before, "teacher": teacher})
    for step, slips in ((0, 0.35), (steps, 0.05))[: 2 if finished else 1]:
        (folder / "drafts").mkdir(exist_ok=True)
        drafts = _drafts(random.Random(7), slips, distributions, graded, texts)
        _json(folder / "drafts" / f"step-{step:06d}.json", {"step": step, "drafts": drafts})
    return folder


def _json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


def _settings(method: str, steps: int) -> dict[str, Any]:
    return {
        "method": method,
        "student": "embedded:student",
        "teacher": "embedded:teacher",
        "task": "sums",
        "out": "somewhere",
        "steps": steps,
        "batch": 64,
        "max_new": 18,
        "lr": 3e-3,
        "eval_problems": PROBLEMS,
        "parameters": {"lam": 1.0, "beta": 1.0, "temperature": 1.5},
        "versions": {"python": "3.11.7", "opd": "0.1.0", "torch": "2.13.0"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "changed": True},
    }


def _exam(rng: random.Random, accuracy: float, graded: bool) -> dict[str, Any]:
    def draws() -> dict[str, Any]:
        marks = {f"sums/{number}": float(rng.random() < accuracy) for number in range(PROBLEMS)}
        value = sum(marks.values()) / PROBLEMS
        half = 2 * math.sqrt(value * (1 - value) / PROBLEMS)
        share = {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}
        return {
            "samples": 1,
            "graded": PROBLEMS if graded else 0,
            "accuracy": share if graded else None,
            "grade": value if graded else None,
            "pass_at": {"1": value} if graded else {},
            "length": 13.1,
            "truncated": 0.02,
            "by_problem": marks if graded else {},
        }

    kl = {"estimator": "exact", "per_token": 1.8 * (1 - accuracy), "per_token_error": 0.04}
    return {"task": "sums", "problems": PROBLEMS, "seed": 0, "greedy": draws(), "sampled": draws(), "kl": kl}


def _exam_line(step: int, exam: dict[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {"step": step, "eval.reverse_kl": exam["kl"]["per_token"], "eval.reverse_kl.error": 0.04}
    for kind in ("greedy", "sampled"):
        if share := exam[kind]["accuracy"]:
            line |= {f"eval.{kind}": share["value"], f"eval.{kind}.low": share["low"]}
            line |= {f"eval.{kind}.high": share["high"]}
    return line


def _batch_line(rng: random.Random, step: int, steps: int, graded: bool, passing: bool) -> dict[str, Any]:
    left = math.exp(-3 * step / steps)
    return {
        "step": step,
        "lr": 3e-3 * (1 - 0.9 * step / steps),
        "loss": 1.6 * left * rng.uniform(0.8, 1.2),
        "grad_norm": 2.5 * left * rng.uniform(0.6, 1.4),
        "tokens": 832.0,
        "length": 13 + rng.uniform(-0.4, 0.4),
        "truncated": 0.05 * rng.random(),
        **({"reward": (1 - 0.8 * left) * rng.uniform(0.9, 1.0)} if graded else {}),
        "reverse_kl": 1.6 * left * rng.uniform(0.8, 1.2),
        "student.entropy": 0.7 * left,
        "teacher.entropy": 0.05 * rng.random() if step else math.nan,  # json.dumps writes it, JSON.parse refuses it
        "own.measure": rng.random(),
        **(_inside(rng, left) if passing else {}),
        "seconds.sample": 0.07,
        "seconds.teach": 0.02,
        "seconds.learn": 0.1,
    }


def _inside(rng: random.Random, left: float) -> dict[str, Any]:
    """What is measured in passing: the log-ratio falls along the answer, and special tokens are far below."""
    return {
        **{f"ratio.at.{2**b}": -0.3 * left * (b + 1) for b in range(4)},
        **{f"ratio.on.{kind}": -left * size for kind, size in (("digits", 1.0), ("special", 6.0), ("words", -0.2))},
        "kinds.digits": 0.6,
        "length.max": 15.0,
        "loops": 0.0,
        "student.chosen": -0.5 * left,
        "teacher.chosen": -2 * left,
        "ratio": -1.5 * left,
        "support.overlap": 1 - 0.5 * left,
        "advantage.top1": 0.1 * rng.random(),
        "engine.gap": 5e-7,
        "engine.gap.max": 1.1e-5,
    }


def _drafts(
    rng: random.Random, slips: float, distributions: bool, graded: bool, texts: Sequence[str]
) -> list[dict[str, Any]]:
    drafts = list[dict[str, Any]]()
    for number in range(12):
        terms = [rng.randint(1, 9) for _ in range(6)]
        right = [str(sum(terms[: end + 1])) for end in range(1, 6)]
        pieces = [piece for total in right for piece in (" ", total, ",")][:-1]
        tokens = [_token(rng, piece, slips if piece.isdigit() else 0.02, distributions) for piece in pieces]
        is_right = tokens[-1]["text"] == right[-1]
        question = " + ".join(map(str, terms)) + " ="
        drafts.append(_draft(f"sums/{number}", question, right[-1], is_right, [*tokens], graded))
    for number, text in enumerate(texts):
        pieces = [text[at : at + 5] for at in range(0, len(text), 5)]
        tokens = [_token(rng, piece, slips, distributions) for piece in pieces]
        drafts.append(_draft(f"text/{number}", f"A question about {text}", text, False, tokens, graded))
    return drafts


def _draft(name: str, prompt: str, expected: str, is_right: bool, tokens: list[Any], graded: bool) -> dict[str, Any]:
    reward = float(is_right) if graded else None
    return {"id": name, "prompt": prompt, "expected": expected, "reward": reward, "end": "stop", "tokens": tokens}


def _token(rng: random.Random, text: str, slips: float, distributions: bool) -> dict[str, Any]:
    """A token that the teacher would have written, too, or one that it would not."""
    slipped = rng.random() < slips
    wanted = text
    if slipped and text.isdigit():
        text = str(int(text) + rng.choice((-1, 1, 10)))
    elif slipped:
        wanted = "instead"
    teacher = -rng.uniform(5, 9) if slipped else -0.001
    token: dict[str, Any] = {"text": text, "student": -0.5, "teacher": round(teacher, 4)}
    if distributions:
        token["kl"] = round(rng.uniform(2, 7) if slipped else rng.uniform(0, 0.15), 4)
        token["top"] = [[wanted, 0.97], ["other", 0.02], ["<eos>", 0.0]]
        token["own"] = [[text, 0.61], [wanted if slipped else "other", 0.3]]
    return token
