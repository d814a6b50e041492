"""GRPO for long answers: groups that teach nothing are left out, every token counts alike, and rare tokens may rise.

Paper: DAPO, Yu et al., arXiv 2503.14476.

When: answers can be graded, are long, and no teacher is at hand.

Equation: L = - mean_t min(r_t A_i, clip(r_t, 1-low, 1+high) A_i),  A_i = (R_i - mean R)/std R,  mean over all tokens

r_t = pi(y_t) / pi_old(y_t). The upper clip is wider, so that an unlikely token can become likely; nothing holds the
student near its start.

Differs: the paper samples until its batch is full of groups with unlike rewards; here such groups are masked (counted
as masked.trivial), so that a batch is smaller instead of dearer. Its soft punishment of overlong answers is left out:
it belongs to the task's reward.
"""

from opd.errors import require
from opd.method import Method, Term, Updates, chain
from opd.parts.groups import GroupAdvantage, SkipTrivial
from opd.parts.losses import PolicyGradient
from opd.parts.means import named
from opd.parts.observe import Clipped
from opd.parts.sample import OneTurn
from opd.rollout import Sampling


def dapo(
    *,
    n: int = 16,
    low: float = 0.2,
    high: float = 0.28,
    temperature: float = 1.0,
    top_p: float = 1.0,
    updates: int = 16,
    mean: str = "token_mean",
) -> Method:
    """
    n: answers per prompt, whose rewards are compared
    low: how far below 1 the ratio may fall
    high: how far above 1 the ratio may rise
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    updates: optimizer steps per batch, each on its own part of the problems
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(n >= 2, "answers per prompt n, which are compared with each other", got=n, expected="at least 2")
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        credit=chain(SkipTrivial(), GroupAdvantage()),
        terms={"reward": Term(PolicyGradient(low, "untruncated", high), named(mean))},
        updates=Updates(parts=updates),
        lookup=(Clipped(low, high),),
        casting={"teacher": "none"},
    )
