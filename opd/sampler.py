"""A server writes what the student learns from; what the student would have written otherwise is weighed by that.

A token drawn by the server's mu instead of the student's own pi counts min(pi / mu, cap) in every term: the expectation
over it is then the student's wherever the cap does not bind. In the table `behaviour` and `untruncated` are the
student's, as if it had written, so that a method with a ratio of its own is not corrected twice. What the prefix was
drawn with is not corrected. (Truncated importance sampling, Ionides 2008.)

Axes: N rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from opd import elsewhere
from opd.build import check_parts
from opd.engines import vllm_folder
from opd.engines.vllm import RATIO, VLLM, WEIGHTS, how
from opd.errors import SettingError
from opd.loop import Training
from opd.method import Mean, Method
from opd.parts.offline import FromStore
from opd.parts.sample import Solutions
from opd.protocols import Cast, Sample
from opd.rollout import Group, Rollout, Visit
from opd.rows import Rows
from opd.settings import Settings

KIND = "vllm:"
ROLE = "sampler"  # in the cast, beside the student whose texts it writes


@dataclass(frozen=True)
class Versioned:
    """Another sample, in which every rollout says which weights wrote it, or (nan) that no server did."""

    sample: Sample

    def __call__(self, cast: Cast, visits: Sequence[Visit], step: int) -> list[Group]:
        groups = self.sample(cast, visits, step)
        return [replace(group, rollouts=tuple(map(_told, group.rollouts))) for group in groups]


def _told(rollout: Rollout) -> Rollout:
    if WEIGHTS in rollout.tags:
        return rollout
    return rollout.with_columns(**{RATIO: np.zeros(rollout.n)}).tagged(**{WEIGHTS: math.nan})


@dataclass(frozen=True)
class Weighted:
    """Another mean, times min(pi / mu, cap): a constant, of the student as it was when the text was written."""

    mean: Mean
    cap: float

    def __call__(self, rows: Rows) -> Tensor:
        return self.mean(rows) * weights(rows, self.cap)


def weights(rows: Rows, cap: float) -> Tensor:
    """[N] float64, min(pi / mu, cap); 1 for what no server wrote."""
    return rows[RATIO].double().exp().clamp(max=cap)


def corrected(method: Method, cap: float) -> Method:
    """The method on texts of a sampler; a cap of 0 weighs nothing."""
    terms = {name: replace(term, mean=Weighted(term.mean, cap)) for name, term in method.terms.items()}
    return replace(method, sample=Versioned(method.sample), terms=terms if cap else method.terms)


def numbers(rows: Rows, cap: float) -> dict[str, float]:
    """How far apart the two are on the rows of a batch that a server wrote."""
    rows = rows.index(~rows[WEIGHTS].isnan())
    if not len(rows):
        return {}
    ratio = rows[RATIO].double()
    seen, stale = ratio.isfinite(), rows.step - rows[WEIGHTS]
    gaps = ratio[seen].abs()
    found = {
        "sampler.version": float(rows[WEIGHTS].max()),
        "sampler.stale": float(stale.mean()),
        "sampler.outside": float((~seen).double().mean()),
    }
    if len(gaps):
        found |= {"sampler.gap": float(gaps.mean()), "sampler.gap.max": float(gaps.max())}
    if cap:
        cut = ratio > math.log(cap)
        found |= {"sampler.weight": float(weights(rows, cap).mean()), "sampler.cut": float(cut.double().mean())}
    return found


def attach(settings: Settings, training: Training) -> None:
    """From here on a server writes what the student learns from. Examinations and drafts stay with the student itself.

    Refuses, before anything is written, a server that cannot follow the student and a method that it cannot serve.
    """
    if not settings.sampler:
        return
    from opd.engines.sampled import Sampled

    check(settings, training)
    student: Any = training.student
    server = VLLM(settings.sampler.removeprefix(KIND), settings.sampler_timeout, settings.teacher_patience)
    sampled = Sampled(student, server, folder_of(server), lambda: training.step, settings.sampler_tolerance)
    cast = {**training.cast, "student": sampled, ROLE: server}
    check_parts(training.method, cast)
    prompts = [len(student.render(problem.messages)) for problem in training.task.train]
    server.fits(max(min(n + settings.max_new, student.context) for n in prompts))
    sampled.start()
    measure, cap = training.measure, settings.sampler_cap
    training.cast, training.method = cast, corrected(training.method, cap)
    training.measure = lambda rows: {**measure(rows), **numbers(rows, cap)}


def check(settings: Settings, training: Training) -> None:
    """There is something that a server could write."""
    if not settings.sampler.startswith(KIND):
        raise SettingError("sampler", got=repr(settings.sampler), expected="vllm:http://HOST:PORT")
    if not hasattr(training.student, "tokenizer"):
        raise SettingError("a sampler writes texts", got=training.task.name, expected="a task of a language model")
    url = settings.sampler.removeprefix(KIND).strip().rstrip("/")
    for who, member in elsewhere.members(training.cast).items():
        if url in getattr(getattr(member, "replicas", None), "urls", ()):
            what = f"{url} is the {who}'s, and a sampler takes the student's weights"
            raise SettingError(what, got="one server", expected="two")
    sample = training.method.sample
    writers = () if type(sample) in (FromStore, Solutions) else getattr(sample, "writers", ("student",))
    if "student" not in writers:
        got = f"texts by {', '.join(writers) or 'nobody in the run'}"
        raise SettingError(f"{settings.method} has the student write nothing", got=got, remedy="Leave --sampler out")


def folder_of(server: VLLM) -> Path:
    """The folder that the server was started from, which is the student's to replace."""
    folder = Path(server.root)
    if not folder.is_absolute() or not vllm_folder.is_ours(folder):
        raise SettingError(
            f"{server.url} was not started from a folder of opd sampler that this process sees",
            got=server.root,
            remedy=how(),
        )
    return folder
