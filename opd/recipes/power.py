"""Reward a token by a power of its probability instead of its logarithm, so that no token can outweigh all others.

Paper: PowerOPD, "Stabilizing On-Policy Distillation with Bounded Power Transformation", Zhao et al., arXiv 2606.17199.

When: rare tokens with huge log-ratios make sampled_token unstable.

Equation: L = - mean_n (q(y_n)^alpha - pi_old(y_n)^alpha) log pi(y_n)

The log-ratio has no bound, and its extremes stand at the start of an answer; the power is within [-1, 1] and has the
same sign. In the mean it is the gradient of a density power divergence, half the squared distance of the distributions
at alpha 1, reverse KL as alpha tends to 0 (times 1/alpha). Hence `form`: sampled is the paper's; topk sums that
divergence over the teacher's K best tokens, full over all of them. Both are ours, and need no luck in sampling.

`reward` replaces the power by what the paper compares it with: the log-ratio, the log-ratio cut to [-bound, bound],
tanh(log-ratio / tau), or the log-ratio less its mean over the batch and divided by its deviation (zscore; by that with
N-1, the released code by that with N). The released launcher of the plain log-ratio runs zscore; reward=log does not.

Differs: alpha is the released script's (its configuration class has 0.1, the paper tries 0.1 to 500; above 50 almost
every reward is 0). The released scripts learn nothing from an answer's stop token: --stop-token mask does that, map
reads the student's end of text as the teacher's, keep, the default of every run, leaves it as it is. Answers are drawn
from a nucleus but rewarded and learned from under the whole distribution, without a ratio, as released.
Uncertain: tau (5 is the code's); bound is the paper's, the code has 5. A large alpha does not find the teacher's
distribution where that is not nearly certain, which the paper does not report.
"""

from functools import partial
from typing import Literal

from opd import maths
from opd.errors import require
from opd.method import Ask, Method, Term, chain, unchanged
from opd.parts.credit import Clamped, LogRatio
from opd.parts.groups import Whitened
from opd.parts.losses import Everywhere, PolicyGradient
from opd.parts.means import named
from opd.parts.observe import Noted
from opd.parts.reshape import PowerRatio, Squashed
from opd.parts.sample import OneTurn
from opd.parts.support_losses import OnSupport
from opd.protocols import Want
from opd.rollout import Sampling


def power(
    *,
    alpha: float = 5.0,
    form: Literal["sampled", "topk", "full"] = "sampled",
    reward: Literal["power", "log", "clip", "tanh", "zscore"] = "power",
    k: int = 16,
    bound: float = 1.0,
    tau: float = 5.0,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 0.95,
    top_k: int = 20,
    mean: str = "token_mean",
) -> Method:
    """
    alpha: power of the probabilities; 0 for the log-ratio [paper: 0 or 0.1 to 500]
    form: read off the token that was written, or summed over the teacher's K best, or over all tokens
    reward: the power, or what it is compared with
    k: size of the support of form=topk
    bound: of reward=clip
    tau: temperature of reward=tanh
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    top_k: and from how many tokens at most; 0 for all
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(form == "sampled" or reward == "power", f"form={form}", got=f"reward={reward}", expected="reward=power")
    rewards = {"power": PowerRatio(alpha), "log": (log := LogRatio()), "clip": chain(log, Clamped(bound)),
               "tanh": chain(log, Squashed(tau)), "zscore": chain(log, Whitened())}  # fmt: skip
    divergence = partial(maths.power_divergence, alpha=alpha)
    loss, want = {
        "sampled": (PolicyGradient(old="untruncated"), Want(chosen=True)),
        "topk": (OnSupport(divergence, k, outside="drop"), Want(topk=k)),
        "full": (Everywhere(divergence), Want(dist=True)),
    }[form]
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p, top_k=top_k)),
        teach=(Ask("teacher", "teacher", want),),
        credit=rewards[reward] if form == "sampled" else unchanged,
        terms={"match": Term(loss, named(mean))},
        lookup=(Noted(("advantage.cut",)),) if reward == "clip" else (),
    )
