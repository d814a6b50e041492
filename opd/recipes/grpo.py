"""Raise the answers that earned more than their siblings and lower the others; no teacher is asked.

Paper: GRPO, "DeepSeekMath", Shao et al., arXiv 2402.03300; Dr. GRPO, Liu et al., arXiv 2503.20783.

When: answers can be graded and no teacher is at hand.

Equation: L = - mean_i mean_t min(r_t A_i, clip(r_t, 1-eps, 1+eps) A_i) + beta k3(pi || ref),  A_i = (R_i - mean)/std

r_t = pi(y_t) / pi_old(y_t), mean and std of the rewards R of one prompt's answers. Dr. GRPO, which divides neither by
the deviation nor by an answer's length, is --spread none --mean sequence_sum, up to a constant factor.

Differs: a group of equal rewards has advantage 0 instead of 0/0. The deviation is the sample one (n - 1), as TRL and
verl take it; the paper does not say. beta is 0 by default, as in most runs since; the paper's is 0.04, against the
frozen start of the student (--reference says another).
"""

from typing import Literal

from opd.errors import require
from opd.method import Ask, Method, Term, Updates
from opd.parts.groups import GroupAdvantage
from opd.parts.losses import PolicyGradient, StayNear
from opd.parts.means import named
from opd.parts.observe import Clipped
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Sampling


def grpo(
    *,
    n: int = 8,
    spread: Literal["group", "batch", "none"] = "group",
    clip: float = 0.2,
    beta: float = 0.0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    updates: int = 1,
    mean: str = "sequence_mean",
) -> Method:
    """
    n: answers per prompt, whose rewards are compared
    spread: what a centred reward is divided by: its group's deviation, the batch's, or none
    clip: PPO's clip range around ratio 1; 0 for none
    beta: of the term that holds the student near the reference
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    updates: optimizer steps per batch, each on its own part of the problems
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(n >= 2, "answers per prompt n, which are compared with each other", got=n, expected="at least 2")
    terms = {"reward": Term(PolicyGradient(clip, "untruncated"), named(mean))}
    near = {"near": Term(StayNear(), named(mean), beta)} if beta else {}
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=(Ask("reference", "reference", Want(chosen=True)),) if beta else (),
        credit=GroupAdvantage(spread),
        terms=terms | near,
        updates=Updates(parts=updates),
        lookup=(Clipped(clip, clip),),
        casting={"teacher": "none", "reference": "self:frozen"},
    )
