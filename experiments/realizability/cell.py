"""One run of one student: taught by one method at one rate, then examined; and what an examination is."""

from dataclasses import replace
from typing import Any

from opd import Settings
from opd.build import build
from opd.engines.hf import HFModel
from opd.evaluate import evaluate
from opd.loop import Source, train
from opd.parts.sample import OneTurn
from opd.rollout import Problem, Sampling
from opd.tasks.graders import Graded, none
from opd.teachers.local import LocalTeacher

Values = dict[str, Any]
BATCH, WARMUP = 64, 10
ON_TEACHER = OneTurn(1, Sampling(), writer="teacher")  # fresh text at temperature 1, as the student writes its own
METHODS: dict[str, Values] = {
    "SFT": {"method": "sft", "parameters": {"fresh": True}},
    "on-policy": {"method": "gkd", "parameters": {"lam": 1.0, "beta": 1.0, "mean": "token_mean"}},
    "off-policy KL": {"method": "gkd", "parameters": {"lam": 1.0, "beta": 0.0, "mean": "token_mean"}},
}
OFF_POLICY = ("off-policy KL",)  # their text is the teacher's


def parts(task: Graded) -> dict[str, list[Problem]]:
    """The held-out problems: one half is reported on, the other chooses rates and starts."""
    half = len(task.held_out) // 2
    return {"reported": list(task.held_out[:half]), "tuning": list(task.held_out[half:])}


def marked(task: Graded) -> Graded:
    """Right or wrong: the package's scorers give small change for an answer that only looks like one."""
    return replace(task, grader=lambda problem, text: float(task.grade(problem, text) == 1.0))


def examined(student: HFModel, task: Graded, teacher: Any = None, part: str = "tuning", samples: int = 1) -> Values:
    """Shares of right answers, greedy and at temperature 1, with the grade of every problem; and with a teacher the
    reverse KL on what the student writes and the forward KL on what the teacher writes, exact, in nats per token.

    The forward KL is by how much the teacher's text is less likely to the student than to the teacher.
    """
    problems = parts(task)[part]
    exam = evaluate(student, marked(task), problems, samples=samples, teacher=teacher, batch=128)
    assert exam.greedy and exam.sampled
    found: Values = {kind: draws.grade for kind, draws in (("greedy", exam.greedy), ("sampled", exam.sampled))}
    found["problems"] = {"greedy": exam.greedy.by_problem, "sampled": exam.sampled.by_problem}
    if teacher:
        assert exam.kl
        read = LocalTeacher(student)  # the roles change places: now the teacher writes and the student reads
        other = evaluate(teacher, marked(task), problems, samples=samples, teacher=read, greedy=False, batch=128)
        assert other.kl and other.kl.estimator == "exact"
        found |= {"reverse kl": exam.kl.per_token, "forward kl": other.kl.per_token}
    return found


def taught(
    models: dict[str, str], pair: str, task: Graded, max_new: int, method: str, lr: float, steps: int, seed: int,
    part: str = "reported", samples: int = 2,
) -> Values:  # fmt: skip
    """The examination after one run, and how many tokens it learned from. Seeds have their own order and samples."""
    training = build(Settings.of(
        **METHODS[method], student=models[pair], teacher=models["teacher"], lr=lr, steps=steps, seed=seed, batch=BATCH,
        warmup=WARMUP, schedule="linear", max_new=max_new, threads=1,
        task="sums,train=1,held_out=1", eval_problems=1,  # replaced below by one that is loaded once
    ))  # fmt: skip
    training.task = replace(task, grader=none)  # nobody reads the grades of what is learned from
    training.source = Source(task.train, seed)
    if method in OFF_POLICY:
        training.method = replace(training.method, sample=ON_TEACHER)
    tokens = sum(batch.metrics["tokens"] for batch in train(training))
    found = examined(training.student, task, training.cast["teacher"], part, samples)
    return {"pair": pair, "method": method, "lr": lr, "steps": steps, "seed": seed, "tokens": tokens, **found}
