"""An evaluation says what the student gets right on problems it never learned from, and how sure that is.

Greedy and sampled answers, each with accuracy (a 95 % Wilson interval), length and truncation; pass@k; and on the
fresh samples the writer's entropy and, given a teacher, the reverse KL. A grade of 1 is right, anything less is not; a
problem that the task can't grade is left out of every accuracy.

Axes: N decisions, P problems, k samples per problem, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from opd.dist import Dist
from opd.errors import DataError, SettingError, TeacherError
from opd.maths import entropy, reverse_kl
from opd.protocols import Student, Task, Teacher, Want, Writer, write_for
from opd.rollout import STUDENT, Array, End, Problem, Rollout, Sampling, Visit, continued

EXAM = -1  # the number of an evaluation's visits; training counts from 0, so the two never share a seed
CHUNK = 512  # decisions whose [V] distributions exist at the same time
Z = 1.959963984540054  # 97.5 % of a normal distribution lie below

Progress = Callable[[int, int], None]  # problems done, problems in all


# ---- what comes out


@dataclass(frozen=True)
class Share:
    """A proportion or a mean with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Draws:
    """All answers of one kind. `accuracy` is avg@k; accuracy and grade are None where nothing is graded."""

    samples: int  # k
    graded: int  # problems with a grade
    accuracy: Share | None
    grade: float | None  # mean grade, partial marks included
    pass_at: dict[int, float]  # k -> probability that one of k samples is right
    length: float  # mean number of tokens
    truncated: float  # share of answers that the limit cut off
    by_problem: dict[str, float]  # id -> mean grade, for paired comparisons
    returned: Share | None = None  # mean return of episodes, where there are any


@dataclass(frozen=True)
class Nats:
    """Reverse KL(student || teacher) or entropy, with standard errors over problems (None for a single problem).

    estimator "exact" sums over the vocabulary at every sampled position; "k1" is log p - log q of the sampled token.
    """

    estimator: str
    per_token: float
    per_token_error: float | None
    per_sequence: float
    per_sequence_error: float | None
    tokens: int


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, complete with the settings that produced it."""

    task: str
    problems: int
    temperature: float
    top_p: float
    seed: int
    greedy: Draws | None
    sampled: Draws | None
    kl: Nats | None
    entropy: Nats | None  # None where the writer's distributions can't be read
    grader_errors: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = asdict(self)
        for draws in filter(None, (plain["greedy"], plain["sampled"])):
            draws["pass_at"] = {str(k): value for k, value in draws["pass_at"].items()}
        return plain


# ---- closed forms


def wilson(k: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a proportion, k of n (Wilson 1927); no trial says nothing: (0, 1)."""
    if not 0 <= k <= n:
        raise ValueError(f"got {k} of {n}, expected 0 <= k <= n")
    if n == 0:
        return 0.0, 1.0
    p, z2 = k / n, Z * Z / n
    middle, half = p + z2 / 2, math.sqrt(z2 * (p * (1 - p) + z2 / 4))
    low, high = (middle - half) / (1 + z2), (middle + half) / (1 + z2)
    return (0.0 if k == 0 else low), (1.0 if k == n else high)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that k of n samples, c of them right, hold a right one: 1 - C(n-c, k) / C(n, k) (2107.03374)."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"got n={n}, c={c}, k={k}, expected 0 <= c <= n and 1 <= k <= n")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def clustered(right: Sequence[int], k: int) -> Share:
    """The share of right answers among k of each of P problems; answers to one problem are not independent.

    Wilson's interval for the number of independent trials that would have the variance seen between problems: P of them
    if a problem is always or never right, P k if the samples differ freely. For k = 1 it is Wilson's own.
    """
    means = np.asarray(right, float) / k
    p, trials = float(means.mean()), len(means)
    variance = float(((means - p) ** 2).mean()) / trials
    effective = trials if p in (0.0, 1.0) else trials * k if variance == 0 else min(p * (1 - p) / variance, trials * k)
    return Share(p, *wilson(p * effective, effective))


# ---- the evaluation


@dataclass
class Marks:
    """What is remembered of the answers to one problem."""

    problem: Problem
    grades: list[float | None]
    lengths: list[int]
    cut: list[bool]
    returns: list[float] = field(default_factory=list[float])  # where the answers are episodes

    @property
    def known(self) -> list[float]:
        """The grades, or nothing if one of them is missing."""
        grades = [grade for grade in self.grades if grade is not None]
        return grades if len(grades) == len(self.grades) else []


@dataclass
class Sums:
    """Sums by problem of what is measured at every decision."""

    estimator: str
    sums: list[float] = field(default_factory=list[float])
    tokens: list[int] = field(default_factory=list[int])
    sequences: list[int] = field(default_factory=list[int])

    def add(self, rows: Array, answers: Sequence[Sequence[Rollout]]) -> None:
        """The numbers [N] of some problems' decisions; an answer without a decision is a sequence of sum 0."""
        end = 0
        for group in answers:
            start, end = end, end + sum(one.n for one in group)
            self.sums.append(float(rows[start:end].sum()))
            self.tokens.append(end - start)
            self.sequences.append(len(group))


def evaluate(
    writer: Writer,
    task: Task,
    problems: Sequence[Problem] | None = None,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    teacher: Teacher | None = None,
    *,
    greedy: bool = True,
    max_new: int | None = None,
    batch: int = 32,
    progress: Progress | None = None,
) -> Evaluation:
    """The writer's answers to the task's held-out problems, or to those given: one greedy, `samples` sampled.

    Every sample's seed comes from (seed, problem, sample). `batch` problems are written at a time.
    """
    problems = task.held_out if problems is None else problems
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new=max_new)
    check(task, problems, samples, greedy, batch, sampling)
    distances = Sums(estimator(writer, teacher, samples, sampling)) if teacher else None
    entropies = Sums("exact") if samples and readable(writer) else None
    before = errors(task)
    best: list[Marks] = []
    drawn: list[Marks] = []
    for start in range(0, len(problems), batch):
        some = problems[start : start + batch]
        prompts = [writer.render(problem.messages) for problem in some]
        if greedy:
            best += mark(task, write(writer, some, prompts, Sampling(temperature=0.0, max_new=max_new), 1, seed))
        if samples:
            answers = write(writer, some, prompts, sampling, samples, seed)
            drawn += mark(task, answers)
            measure(writer, teacher, answers, distances, entropies)
        if progress:
            progress(start + len(some), len(problems))
    return Evaluation(
        task=task.name,
        problems=len(problems),
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        greedy=draws(best) if greedy else None,
        sampled=draws(drawn) if samples else None,
        kl=nats(distances) if distances else None,
        entropy=nats(entropies) if entropies else None,
        grader_errors=dict(errors(task) - before),
    )


def check(task: Task, problems: Sequence[Problem], samples: int, greedy: bool, batch: int, sampling: Sampling) -> None:
    """Stops before anything is written."""
    if not problems:
        raise DataError(f"task {task.name} has no held-out problem", expected="at least one", remedy="Set held_out=")
    if samples < 0 or batch < 1 or not (samples or greedy):
        got = f"samples={samples}, greedy={greedy}, batch={batch}"
        raise SettingError("nothing to evaluate", got=got, expected="samples from 1, or greedy; batch from 1")
    if samples and sampling.greedy:
        raise SettingError("samples at temperature 0 are all the same", remedy="Set samples=0 and greedy=True")
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
        got = f"temperature={sampling.temperature}, top_p={sampling.top_p}"
        raise SettingError("sampling of the evaluation", got=got, expected="temperature above 0, top_p in (0, 1]")


def errors(task: Task) -> Counter[str]:
    """What kept the task's grader from grading so far, where the task counts it."""
    return Counter(getattr(task, "errors", {}))


def write(
    writer: Writer, problems: Sequence[Problem], prompts: Sequence[Array], sampling: Sampling, samples: int, seed: int
) -> list[list[Rollout]]:
    """`samples` answers to every problem."""
    visits = [Visit(problem, EXAM, seed) for problem in problems]
    seeds = [[visit.seed(sample) for sample in range(samples)] for visit in visits]
    written = write_for(writer, problems, prompts, sampling, seeds)
    return [
        [continued(prompt, piece, problem, sampling, STUDENT, writer.decode(piece.tokens)) for piece in pieces]
        for problem, prompt, pieces in zip(problems, prompts, written, strict=True)
    ]


def mark(task: Task, answers: Sequence[Sequence[Rollout]]) -> list[Marks]:
    return [
        Marks(
            problem=group[0].problem,
            grades=[graded(task, one) for one in group],
            returns=[one.tags["return"] for one in group if "return" in one.tags],
            lengths=[one.n for one in group],
            cut=[one.end == End.LENGTH for one in group],
        )
        for group in answers
    ]


def graded(task: Task, answer: Rollout) -> float | None:
    """The grade that an answer brings along from its environment, else the task's."""
    if "reward" not in answer.tags:
        return task.grade(answer.problem, answer.text)
    return None if math.isnan(answer.tags["reward"]) else answer.tags["reward"]


def average(returns: Sequence[Sequence[float]]) -> Share:
    """The mean return with its 95 % interval, a normal one over problems; a single problem has no interval."""
    means = np.array([np.mean(some) for some in returns])
    half = Z * float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else math.inf
    value = float(means.mean())
    return Share(value, value - half, value + half)


def draws(marks: Sequence[Marks]) -> Draws:
    """The summary of all answers of one kind."""
    k = len(marks[0].grades)
    known = [mark for mark in marks if mark.known]
    right = [sum(grade == 1 for grade in mark.known) for mark in known]
    steps = sorted({2**power for power in range(k.bit_length())} | {k})
    return Draws(
        samples=k,
        graded=len(known),
        accuracy=clustered(right, k) if known else None,
        grade=mean(grade for mark in known for grade in mark.known) if known else None,
        pass_at={step: mean(pass_at_k(k, c, step) for c in right) for step in steps} if known else {},
        length=mean(length for mark in marks for length in mark.lengths),
        truncated=mean(cut for mark in marks for cut in mark.cut),
        by_problem={mark.problem.id: mean(mark.known) for mark in known},
        returned=average([mark.returns for mark in marks]) if marks[0].returns else None,
    )


def mean(values: Any) -> float:
    return float(np.mean(list(values)))


# ---- the distance from the teacher, and how undecided the writer is


def readable(writer: Writer) -> bool:
    """Whether the writer gives whole distributions; a student always does."""
    return hasattr(writer, "read") and "dist" in getattr(writer, "can", {"dist"})


def estimator(writer: Writer, teacher: Teacher, samples: int, sampling: Sampling) -> str:
    """ "exact" where both can give whole distributions, else "k1", which is unbiased on untouched samples only."""
    if not samples:
        raise SettingError("the KL is measured on sampled answers", got="samples=0", expected="at least 1")
    if "dist" in teacher.can and readable(writer):
        return "exact"
    if "chosen" not in teacher.can:
        got = f"one that can {sorted(teacher.can)}"
        raise TeacherError(f"{teacher.name} can't give the KL", got=got, expected="'dist' or 'chosen'")
    if (sampling.temperature, sampling.top_p) != (1.0, 1.0):
        got = f"temperature {sampling.temperature}, top_p {sampling.top_p}"
        what = f"{teacher.name} gives the KL only as a mean over untouched samples"
        raise SettingError(what, got=got, expected="temperature 1, top_p 1")
    return "k1"


@torch.no_grad()
def measure(
    writer: Writer,
    teacher: Teacher | None,
    answers: Sequence[Sequence[Rollout]],
    distances: Sums | None,
    entropies: Sums | None,
) -> None:
    """Adds what is measured of some problems' answers."""
    contexts = [one for group in answers for one in group if one.n]
    ours = cast(Student, writer).read(contexts, Want(dist=True)).dist if entropies and contexts else None
    if entropies:
        entropies.add(everywhere(ours, entropy) if ours is not None else np.zeros(0), answers)
    if teacher and distances:
        exact = distances.estimator == "exact"
        rows = (whole(ours, teacher, contexts) if exact else sampled(teacher, contexts)) if contexts else np.zeros(0)
        distances.add(rows, answers)


def everywhere(ours: Dist, number: Callable[..., Tensor], *others: Dist) -> Array:
    """[N] a number of whole distributions [n, V] at temperature 1, a chunk at a time."""
    rows: list[Array] = []
    for places in torch.arange(len(ours)).split(CHUNK):
        p = ours.index(places).logprobs()
        rows.append(number(p, *(one.index(places).logprobs().to(p) for one in others)).double().cpu().numpy())
    return np.concatenate(rows)


def whole(ours: Dist | None, teacher: Teacher, contexts: Sequence[Rollout]) -> Array:
    """[N] KL over the whole vocabulary at every sampled position."""
    theirs = teacher.read(contexts, Want(dist=True)).dist
    if ours is None or theirs is None:
        raise TeacherError(f"{teacher.name} or the student gave no distributions", expected="an answer to 'dist'")

    def distance(p: Tensor, q: Tensor) -> Tensor:
        if p.shape != q.shape:
            got = f"{q.shape[-1]} words, the student has {p.shape[-1]}"
            raise TeacherError(f"{teacher.name} has another vocabulary", got=got, remedy="Use a teacher that shares it")
        return reverse_kl(p, q)

    return everywhere(ours, distance, theirs)


def sampled(teacher: Teacher, contexts: Sequence[Rollout]) -> Array:
    """[N] log p - log q of the sampled tokens."""
    theirs = teacher.read(contexts, Want(chosen=True)).chosen
    ours = np.concatenate([one.columns["untruncated"] for one in contexts])
    if theirs is None or not np.isfinite(ours).all():
        what = "log-probs of the sampled tokens are missing"
        raise TeacherError(what, got="none", expected=f"one per token from the student and from {teacher.name}")
    return ours - theirs.double().cpu().numpy()


def nats(measured: Sums) -> Nats:
    """Means with errors over problems: a ratio of sums per token (linearised), a mean of means per sequence."""
    sums, tokens = np.asarray(measured.sums), np.asarray(measured.tokens)
    per_token = float(sums.sum() / max(tokens.sum(), 1))
    per_sequence = sums / np.asarray(measured.sequences)
    problems = len(sums)
    residual = math.sqrt(((sums - per_token * tokens) ** 2).sum() * problems / max(problems - 1, 1))
    return Nats(
        estimator=measured.estimator,
        per_token=per_token,
        per_token_error=residual / max(float(tokens.sum()), 1.0) if problems > 1 else None,
        per_sequence=float(per_sequence.mean()),
        per_sequence_error=float(per_sequence.std(ddof=1)) / math.sqrt(problems) if problems > 1 else None,
        tokens=int(tokens.sum()),
    )
