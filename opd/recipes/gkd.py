"""Match the teacher's whole distribution, on a mixture of the student's own answers and the teacher's.

Paper: GKD, "On-Policy Distillation of Language Models", Agarwal et al., arXiv 2306.13649.

When: the teacher's whole distribution is at hand: the first thing to try, with lam=1 for the student's own text alone.

Equation: L = mean_y mean_n D(q(.|c_n) || pi(.|c_n)),  y ~ pi with probability lam, else from data;  D = JSD(beta)

beta 0 is forward KL and beta 1 reverse KL; in between the usual Jensen-Shannon form vanishes towards both ends, so the
knob is discontinuous in scale there. scale=continuous divides that out.

Differs: "data" are the teacher's own traces, one per problem. The coin is thrown per batch, as in the paper's algorithm
and in TRL. lam 0.5 and beta 0.5 are TRL's defaults (the paper sweeps both); the paper's mean over sequences is the
default, TRL takes the token mean. No reward term.
"""

from functools import partial
from typing import Literal

from opd import maths
from opd.errors import require
from opd.method import Ask, Method, Term
from opd.parts.losses import Everywhere
from opd.parts.means import named
from opd.parts.sample import Coin, OneTurn, Traces
from opd.protocols import Want
from opd.rollout import Sampling


def gkd(
    *,
    lam: float = 0.5,
    beta: float = 0.5,
    scale: Literal["usual", "continuous"] = "usual",
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    mean: str = "sequence_mean",
) -> Method:
    """
    lam: share of the batches that the student writes
    beta: 0 forward KL, 1 reverse KL, Jensen-Shannon in between
    scale: usual vanishes towards both ends of beta, continuous does not
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(0 <= beta <= 1, "beta", got=beta, expected="a number in [0, 1]")
    traces = Traces()
    return Method(
        sample=Coin(lam, OneTurn(n, Sampling(temperature=temperature, top_p=top_p)), traces),
        teach=(Ask("teacher", "teacher", Want(dist=True)),),
        terms={"match": Term(Everywhere(partial(maths.jsd, beta=beta, scale=scale)), named(mean))},
        state={"traces": traces},
    )
