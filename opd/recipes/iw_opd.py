"""Reward tokens by the log-ratio, early ones more: the teacher is trusted as long as the two have not drifted apart.

Paper: IW-OPD, arXiv 2606.22600.

When: answers are long, and the teacher has little to say about what follows a bad beginning.

Equation: L = - mean_t w_t A_t log pi(y_t),  A_t = log q(y_t) - log pi_old(y_t),  w_t = 1 + gain (1 - P_t / P)

P_t = sum of |A_u| over the tokens before t, P over all of them: the weight falls from 1 + gain at the first token
towards 1, fast where the models disagree. It is a constant for the gradient. gain=0 is sampled_token.

Differs: A has the student's own log-prob in place of the sampler's, which is the same at temperature 1 and top_p 1. The
implementation that was read (TRL's) does not clip (--clip 0); the paper's own run is reported to clip at 0.2, which
does nothing in the one update per batch taken here.
Uncertain: only the released form was read, not the paper.
"""

from opd.method import Ask, Method, Term, chain
from opd.parts.credit import LogRatio
from opd.parts.losses import PolicyGradient
from opd.parts.means import named
from opd.parts.observe import Clipped
from opd.parts.reshape import Early
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Sampling


def iw_opd(
    *,
    gain: float = 0.5,
    n: int = 1,
    clip: float = 0.2,
    temperature: float = 1.0,
    top_p: float = 1.0,
    mean: str = "token_mean",
) -> Method:
    """
    gain: what the weight of the first token has above that of the last
    n: answers per prompt
    clip: PPO's clip range around ratio 1; 0 for none
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=(Ask("teacher", "teacher", Want(chosen=True)),),
        credit=chain(LogRatio(), Early(gain)),
        terms={"advantage": Term(PolicyGradient(clip, "untruncated"), named(mean))},
        lookup=(Clipped(clip, clip),),
    )
