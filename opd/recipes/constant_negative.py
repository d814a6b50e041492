"""A control without a teacher: lower, by one fixed amount, every written token that the student itself found unlikely.

Paper: "Does On-Policy Distillation Really Distill?", arXiv 2608.31046.

When: never to train; beside any method, to see whether it does more than lower unlikely tokens.

Equation: L = - mean_n A_n pi(y_n) / mu(y_n),  A_n = -size where pi_old(y_n) < threshold, else 0

The paper reports that learning concentrates on tokens of low log-probability, and that a single fixed negative
advantage does as well as the teacher's. The mean gradient is size times that of the mass of all unlikely tokens, so
the student only sharpens. A distillation that is not better than this has shown nothing about its teacher.

INFERRED, because only the paper's abstract was at hand: that the amount falls on unlikely tokens alone (on all tokens
alike its mean gradient would be zero), the threshold 0.1 on the student's own probability of the written token (a
token that it writes less than one time in ten), the size 1 (a factor, absorbed by the learning rate), and the mean
over all tokens, likely ones included. n, temperature, top_p and mean are those of sampled_token.
"""

from opd.method import Method, Term
from opd.parts.credit import ConstantNegative
from opd.parts.losses import PolicyGradient
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.rollout import Sampling


def constant_negative(
    *,
    threshold: float = 0.1,
    size: float = 1.0,
    n: int = 4,
    temperature: float = 1.0,
    top_p: float = 1.0,
    mean: str = "token_mean",
) -> Method:
    """
    threshold: probability under the student below which a written token is lowered
    size: of the negative advantage
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        credit=ConstantNegative(threshold, size),
        terms={"advantage": Term(PolicyGradient(), named(mean))},
    )
