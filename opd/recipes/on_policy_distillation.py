"""The student acts and matches the teacher's probabilities; with the future term the update is a gradient.

Paper: "Distilling Policy Distillation", Czarnecki et al., arXiv 1902.02186.

When: an agent has a teacher's probabilities at every state, and a biased update is not accepted.

Equation: L = mean_n [ D_n - A_n log pi(a_n|s_n) ],  A_n = - sum_{m>n} gamma^(m-n) D_m  with future, else 0

D is a divergence of student and teacher at one state. forward_kl without future is the paper's on-policy distill (no
gradient of anything, may cycle), with future its N-distill; reverse_kl with future is its expected entropy regularised
distillation, which it recommends, and the exact gradient of the sequence's reverse KL at gamma 1, mean sequence_sum.

Differs: divergences in place of the paper's cross-entropies. With a cross-entropy against the student's own actions and
no reward, the optimum is the single path that the teacher finds most probable; with the divergence it is the teacher.
The future term uses the divergence at later states, the paper's table the teacher's log-prob of the action taken.
"""

from opd import maths
from opd.errors import one_of
from opd.method import Ask, Method, Term, unchanged
from opd.parts.credit import FutureCost
from opd.parts.losses import Everywhere, PolicyGradient
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Sampling

DIVERGENCES = {"forward_kl": maths.forward_kl, "reverse_kl": maths.reverse_kl}


def on_policy_distillation(
    *,
    divergence: str = "reverse_kl",
    future: bool = True,
    gamma: float = 0.99,
    n: int = 1,
    mean: str = "token_mean",
) -> Method:
    """
    divergence: forward_kl or reverse_kl
    future: decisions answer for the divergence at the states that they lead to
    gamma: discount of that
    n: episodes per problem
    mean: token_mean, sequence_mean or sequence_sum
    """
    one_of("divergence", divergence, DIVERGENCES)
    measure = DIVERGENCES[divergence]
    terms = {"match": Term(Everywhere(measure), named(mean))}
    asks = (Ask("teacher", "teacher", Want(dist=True)),)
    if future:
        terms["future"] = Term(PolicyGradient(), named(mean))
        asks = (*asks, Ask("own", "student", Want(dist=True)))
    return Method(
        sample=OneTurn(n, Sampling()),
        teach=asks,
        credit=FutureCost(measure, gamma) if future else unchanged,
        terms=terms,
    )
