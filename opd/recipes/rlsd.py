"""Rewards say whether an answer rises or falls, a copy of the student that knows the reference says by how much where.

Paper: RLSD, "Self-Distilled RLVR", Yang et al., arXiv 2604.03128.

When: answers can be graded and have references: the reward decides the direction, the reference the place.

Equation: L = - mean_t min(r_t B_t, clip(r_t, 1-eps, 1+eps) B_t),  B_t = A [(1-s) + s clip(exp(sign(A) D_t), 1-e, 1+e)]

A is GRPO's advantage, D_t = log T(y_t | x, reference) - log pi_old(y_t | x), r_t = pi(y_t) / pi_old(y_t). s falls from
0.5 to 0 within 50 steps, after which this is GRPO. The copy T is as old as 10 steps (--teacher self:every=10).

Differs: the paper's Eq. 16 prints min[w A, clip(w) A], which would cut on one side only; both re-implementations take
the plain clip of its Eq. 15, as we do. A group of equal rewards has advantage 0 instead of 0/0.
Uncertain: no official code was found; that of RLCSD, which has this as a baseline, averages over all tokens
(mean=token_mean). The deviation is the sample one. The prompt that shows the reference, or the answer if the task has
no more, is ours.
"""

from opd.errors import require
from opd.method import Ask, Method, Term, Updates, chain
from opd.parts.credit import LogRatio
from opd.parts.fading import Fading
from opd.parts.groups import GroupAdvantage, Saved
from opd.parts.hints import Reference
from opd.parts.losses import PolicyGradient
from opd.parts.magnitude import Bounded
from opd.parts.means import named
from opd.parts.observe import Clipped, Noted
from opd.parts.sample import OneTurn
from opd.parts.views import template
from opd.protocols import Want
from opd.rollout import Sampling


def rlsd(
    *,
    n: int = 8,
    lam: float = 0.5,
    fade: int = 50,
    width: float = 0.2,
    clip: float = 0.2,
    temperature: float = 1.0,
    top_p: float = 1.0,
    updates: int = 1,
    mean: str = "sequence_mean",
) -> Method:
    """
    n: answers per prompt, whose rewards are compared
    lam: how much of the factor counts in the first step
    fade: steps within which lam falls to 0
    width: how far from 1 the factor may be
    clip: PPO's clip range around ratio 1; 0 for none
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    updates: optimizer steps per batch, each on its own part of the problems
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(n >= 2, "answers per prompt n, which are compared with each other", got=n, expected="at least 2")
    require(0 <= lam <= 1, "the share lam of the factor", got=lam, expected="a number in [0, 1]")
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=(Ask("teacher", "teacher", Want(chosen=True), view=Reference(template("rlsd"))),),
        credit=chain(LogRatio(), Saved("evidence"), GroupAdvantage(), Bounded("evidence", width, Fading(lam, fade))),
        terms={"reward": Term(PolicyGradient(clip, "untruncated"), named(mean))},
        updates=Updates(parts=updates),
        lookup=(Clipped(clip, clip), Noted(("evidence", "evidence.cut"))),
        casting={"teacher": "self:every=10"},
    )
