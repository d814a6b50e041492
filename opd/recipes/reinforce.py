"""Raise every answer by its reward less the mean reward of the batch: the oldest policy gradient, and the plainest.

Paper: REINFORCE, Williams, Machine Learning 8 (1992); for language models: Ahmadian et al., arXiv 2402.14740.

When: as a baseline: answers can be graded and nothing else is known.

Equation: L = - mean_i sum_t (R_i - b_i) log pi(y_t),  b_i = mean of R over the batch, or over the other siblings (RLOO)

The sum over an answer's tokens makes it the gradient of the expected reward, without bias: `sequence_sum`.

Differs: the batch's mean holds the answer's own reward, which shrinks the expected gradient by (1 - 1/B); `baseline`
siblings leaves it out, as the RLOO of the second paper does.
"""

from typing import Literal

from opd.errors import require
from opd.method import Method, Term
from opd.parts.groups import LeaveOneOut, LessBatch
from opd.parts.losses import PolicyGradient
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.rollout import Sampling


def reinforce(
    *,
    n: int = 4,
    baseline: Literal["batch", "siblings"] = "batch",
    temperature: float = 1.0,
    top_p: float = 1.0,
    mean: str = "sequence_sum",
) -> Method:
    """
    n: answers per prompt
    baseline: the mean reward of the batch, or of the other answers to the same prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(n >= 2 or baseline == "batch", "answers per prompt n with siblings", got=n, expected="at least 2")
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        credit=LeaveOneOut() if baseline == "siblings" else LessBatch(),
        terms={"reward": Term(PolicyGradient(), named(mean))},
        casting={"teacher": "none"},
    )
