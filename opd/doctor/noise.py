"""How noisy is the teacher on this task: do its sampled answers say what its greedy ones do, and what follows for SFT?

If each of H decisions stays clean with probability rho, an answer does with rho^H: that share is what is counted here,
and 1 - share^(1/H) is the rate of noise per decision that it stands for. A noisy teacher's text is then worth rho^H of
a clean one's wherever a wrong token spoils what follows it (arXiv 2606.30923; docs/theory.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opd.doctor.finding import Finding, finding
from opd.doctor.trial import Trial
from opd.evaluate import Share, clustered
from opd.protocols import Want
from opd.rollout import Rollout
from opd.tasks.graders import final_answer, squeeze

SPOILED = 0.5  # share of clean answers below which it is worth a warning: SFT would need more than twice as many
CAVEAT = "disagreement is diversity as well as noise, and no right answer tells them apart"


def noise(trial: Trial) -> Iterator[Finding]:
    """The teacher samples what it knows: where its greedy answer is right, so are most of its samples."""
    if not trial.again or trial.case.is_copy:
        return
    solved = [(own, again) for own, again in pairs(trial) if own.tags["reward"] == 1]
    if solved:
        share = clustered([sum(one.tags["reward"] == 1 for one in again) for _, again in solved], len(solved[0][1]))
        said = "of the teacher's samples are right where its greedy answer is"
    else:
        some = pairs(trial)
        share = clustered([sum(same_end(own, one) for one in again) for own, again in some], len(some[0][1]))
        said = "of the teacher's samples end as its greedy answer does"
    length = float(np.mean([own.n for own, _ in solved or pairs(trial)]))
    rate = 1 - share.value ** (1 / length)
    evidence = f"{between(share)} {said}, as if noise took {rate:.1%} of its {length:.0f} decisions"
    numbers = {"clean": share.value, "low": share.low, "high": share.high, "rate": rate, "decisions": length}
    if (unsure := doubt(trial)) is not None:
        evidence += f"; it leaves {unsure:.1%} to other tokens than its first choice"
        numbers["unsure"] = unsure
    walks_clean = trial.case.writing.sampling.greedy  # nail and nailgun do already what is advised
    fault = bool(solved) and share.value < SPOILED and not walks_clean
    evidence += "" if solved else f": {CAVEAT}"
    yield finding("teacher's noise", fault, evidence, advice(share, rate), **numbers)


def pairs(trial: Trial) -> list[tuple[Rollout, list[Rollout]]]:
    """The teacher's greedy answer and its samples, for every problem that has samples."""
    greedy = {one.problem.id: one for one in trial.own}
    return [(greedy[again[0].problem.id], again) for again in trial.again if again[0].problem.id in greedy]


def same_end(one: Rollout, other: Rollout) -> bool:
    """Two texts come to the same final answer."""
    return squeeze(final_answer(one.text)) == squeeze(final_answer(other.text))


def doubt(trial: Trial) -> float | None:
    """Mean probability of all tokens but the most probable one, over the samples; None where the teacher won't say."""
    if "topk" not in trial.case.teacher.can:
        return None
    answers = [one for again in trial.again for one in again if one.n]
    dist = trial.case.teacher.read(answers, Want(topk=1)).dist
    return float(1 - dist.at(dist.top(1)).double().exp().mean())


def between(share: Share) -> str:
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


def advice(share: Share, rate: float) -> str:
    """What noise of this size asks for."""
    if not share.value:
        return "Give nailgun, which walks greedily and lets the teacher's answers outvote the noise"
    return (
        f"If a wrong token spoils what follows, SFT needs about {1 / share.value:.1f} times the answers, and student "
        f"samples that copy the noise are lost as often: give nail --rate {rate:.2g}, which walks greedily and "
        "explains the noise (uniform, as far as it knows), or nailgun"
    )
