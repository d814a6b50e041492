"""Reward every token that the student wrote by how much more likely the teacher finds it: the common form of OPD.

Paper: "On-Policy Distillation", Thinking Machines Lab (K. Lu, 2025); the baseline of arXiv 2603.25562, section 3.

When: the teacher gives nothing but the log-prob of a given text: every server can do that.

Equation: L = - mean_n A_n pi(y_n) / mu(y_n),  A_n = sum_{m>=n} gamma^(m-n) (log q(y_m) - log pi_old(y_m))

The gradient at gamma 0 is that of the reverse KL at every visited state (k1, score function): a biased, low-variance
form of the sequence's reverse KL, which is gamma 1. mu is the distribution that really drew the token. `reward` adds
to A_n, as the cookbook can, what the answer earned less the mean of its siblings, times that weight, not discounted.

Differs: the released cookbook sums over tokens, here the token mean of 2603.25562 is the default (a factor, absorbed by
the learning rate). `clip` adds PPO's clipping, as in 2603.25562; the cookbook clips nothing.
"""

from opd.errors import require
from opd.method import Ask, Method, Term, chain
from opd.parts.credit import LogRatio, ReturnToGo
from opd.parts.groups import GroupAdvantage, Mixed, Saved
from opd.parts.losses import PolicyGradient
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Sampling


def sampled_token(
    *,
    n: int = 4,
    temperature: float = 1.0,
    top_p: float = 1.0,
    gamma: float = 0.0,
    unit: str = "rows",
    clip: float = 0.0,
    reward: float = 0.0,
    mean: str = "token_mean",
) -> Method:
    """
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    gamma: 0 credits the token alone, 1 everything that followed
    unit: what gamma counts: rows, tokens or turns
    clip: PPO's clip range around ratio 1; 0 for none
    reward: weight of the answer's reward less the mean of its siblings; 0 for the teacher alone
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(n >= 2 or not reward, "answers per prompt n, whose rewards are compared", got=n, expected="at least 2")
    earned = (
        Saved("distilled"),
        GroupAdvantage("none", alone=False),
        Mixed((("distilled", 1.0), ("advantage", reward))),
    )
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=(Ask("teacher", "teacher", Want(chosen=True)),),
        credit=chain(LogRatio(), ReturnToGo(gamma, unit), *(earned if reward else ())),
        terms={"advantage": Term(PolicyGradient(clip, old="untruncated" if clip else "behaviour"), named(mean))},
    )
