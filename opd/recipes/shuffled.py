"""A control with a teacher that is not listened to: the advantages of sampled_token, given to the wrong tokens.

Paper: a control of ours for the baseline of arXiv 2603.25562.

When: never to train; beside any method with a teacher, to see whether it matters which token is rewarded.

Equation: L = - mean_n A_s(n) pi(y_n) / mu(y_n),  A_n = log q(y_n) - log pi_old(y_n),  s a permutation of the batch

Every batch has the same numbers as under sampled_token, with their signs and sizes, but s, drawn anew at each step,
deals them out by chance among the rows that are kept. What is left is the batch's mean advantage on every token, whose
expected gradient vanishes in a large batch, and noise: whatever this gains is not owed to what the teacher said where.

Differs from sampled_token: no discount and no clipping, which would only rescale what is shuffled.
"""

from opd.method import Ask, Method, Term, chain
from opd.parts.credit import LogRatio, Shuffled
from opd.parts.losses import PolicyGradient
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Sampling


def shuffled(*, n: int = 4, temperature: float = 1.0, top_p: float = 1.0, mean: str = "token_mean") -> Method:
    """
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=(Ask("teacher", "teacher", Want(chosen=True)),),
        credit=chain(LogRatio(), Shuffled()),
        terms={"advantage": Term(PolicyGradient(), named(mean))},
    )
