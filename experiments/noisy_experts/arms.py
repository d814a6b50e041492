"""Seven ways to learn from as many of the teacher's answers: who writes, and whether the loss knows of the noise.

SFT copies the teacher's text and is told nothing else. The six others are told the teacher's distribution at every
decision, whoever wrote what stands before it, so that they differ in one slot each: the recipes `nail` and `nailgun`
with their own sample (the student, greedy) or with another.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.noisy_experts.rule import TERMS, Rule, a_key, task
from experiments.noisy_experts.student import opened
from opd.evaluate import evaluate
from opd.loop import Source, Training
from opd.method import Method
from opd.parts.channel import Channel
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.recipes.nail import nail
from opd.recipes.nailgun import nailgun
from opd.recipes.sft import sft
from opd.rollout import Sampling, Visit

Values = dict[str, Any]
BATCH, HELD_OUT = 16, 256  # problems of an update; of the examination
WARMUP, FLOOR = 10, 0.1  # the learning rate climbs for 10 updates and then falls to a tenth
SFT = "teacher, text only"
WRITERS = {
    "teacher": OneTurn(1, Sampling(), "teacher"),
    "student, sampled": OneTurn(1, Sampling()),
    "student, greedy": OneTurn(1, Sampling(temperature=0.0)),
}
PLAIN, CHANNEL = LOSSES = ("plain", "through the channel")
WAYS = [(SFT, PLAIN), *product(WRITERS, LOSSES)]  # (prefix, loss)
WORLDS = ("is lost", "goes on")  # the teacher after a wrong total


@dataclass(frozen=True)
class Arm:
    """One cell of the table."""

    world: str
    rate: float
    prefix: str
    loss: str

    @property
    def label(self) -> str:
        return f"{self.world}, noise {self.rate:g}, {self.prefix}, {self.loss}"

    @property
    def method(self) -> Method:
        if self.prefix == SFT:
            return sft(fresh=True)
        return replace(nail(rate=self.rate) if self.loss == CHANNEL else nailgun(), sample=WRITERS[self.prefix])


def prepared(arm: Arm, lr: float, steps: int, seed: int, folder: Path) -> Training:
    """Every update has problems of its own, so that every arm gets BATCH * steps answers; every seed has its key."""
    key = a_key(random.Random(f"key/{seed}"))
    student, teacher = opened(folder), Rule(key, Channel(arm.rate), arm.world == "is lost")
    problems = task(key, BATCH * steps, HELD_OUT, seed)
    optimizer = torch.optim.AdamW(student.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    rate = lambda step: lr * min(1.0, (step + 1) / WARMUP) * (1 - (1 - FLOOR) * step / steps)
    return Training(
        student, {"student": student, "teacher": teacher}, problems, arm.method, optimizer, rate,
        Source(problems.train, seed), steps, BATCH,
    )  # fmt: skip


def examined(training: Training) -> Values:
    """Per cent of held-out answers that are right as a whole by the clean rule, greedy and sampled; and of decisions.

    known: per cent of decisions right after a clean prefix, taking the most probable token [H]; certain: the mean
    probability of the right one there [H].
    """
    student = training.student
    exam = evaluate(student, training.task)
    assert exam.greedy and exam.sampled and exam.greedy.accuracy and exam.sampled.accuracy
    clean = Rule(training.cast["teacher"].key, Channel(0.0), False)
    visits = [Visit(problem, -1, 0) for problem in training.task.held_out]
    greedy = OneTurn(1, Sampling(temperature=0.0), "teacher")
    texts = [group.rollouts[0] for group in greedy({"student": student, "teacher": clean}, visits, 0)]
    seen = student.read(texts, Want(dist=True)).dist
    assert seen is not None
    hit = seen.top(1).squeeze(1).numpy() == np.concatenate([text.decisions for text in texts])
    certain = seen.chosen.double().exp().view(-1, TERMS).mean(0)
    return {
        "greedy": 100 * exam.greedy.accuracy.value,
        "sampled": 100 * exam.sampled.accuracy.value,
        "known": (100 * hit.reshape(-1, TERMS).mean(0)).tolist(),
        "certain": certain.tolist(),
    }
