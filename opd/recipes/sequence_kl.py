"""Reward every token by how much more likely the teacher finds everything from it to the end of the answer.

Paper: the sequence-level estimator of "Revisiting On-Policy Distillation", arXiv 2603.25562, section 3.

When: as a baseline: the unbiased gradient of the whole answer's reverse KL, whose noise grows with its length.

Equation: L = - mean_y sum_n A_n pi(y_n) / mu(y_n),  A_n = sum_{m>=n} (log q(y_m) - log pi_old(y_m))

`sampled_token` with gamma 1 and a sum over each answer. Its mean gradient is exactly that of the reverse KL between the
two distributions over whole answers (cut at the length limit): unbiased when the answers are drawn from the student
itself, temperature 1 and top-p 1, for one update. Otherwise pi/mu corrects the token alone, neither the path to it nor
what follows. For independent tokens the variance grows with the cube of the length; at the token level, gamma 0, which
drops the coupling to the future, like the length.

Differs: no baseline and no clipping, as in the paper's analysis; an answer that was masked in part loses those tokens
from its returns, too, and is then no longer unbiased.
"""

from opd.method import Ask, Method, Term, chain
from opd.parts.credit import LogRatio, ReturnToGo
from opd.parts.losses import PolicyGradient
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Sampling


def sequence_kl(*, n: int = 4, temperature: float = 1.0, top_p: float = 1.0, mean: str = "sequence_sum") -> Method:
    """
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum; only the last is unbiased
    """
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=(Ask("teacher", "teacher", Want(chosen=True)),),
        credit=chain(LogRatio(), ReturnToGo(1.0)),
        terms={"advantage": Term(PolicyGradient(), named(mean))},
    )
