"""The student earns rewards of its own, and is pulled towards the teacher less and less.

Paper: "Kickstarting Deep Reinforcement Learning", Schmitt et al., arXiv 1803.03835; the gate: arXiv 1902.02186.

When: an agent has rewards of its own and may end up better than its teacher.

Equation: L = mean_n [ - A_n log pi(a_n|s_n) + lambda_k Hx(q(.|s_n), pi(.|s_n)) ],  A_n = return-to-go less its mean

lambda_k falls in a straight line to 0 over `fade` batches. `gate` pulls only where the teacher expects to earn more
than the student does, V_T(s) > V_S(s): a teacher that is wrong somewhere is then not copied there.

Differs: the paper's actor-critic with V-trace is a policy gradient whose baseline is the mean return-to-go at the same
time step of the batch; V_S is the student's mean return-to-go in that state, without a critic. `scale` multiplies
rewards, before anything else.
Uncertain: the paper's schedules of lambda are hand-tuned or evolved by population-based training; fade is ours.
"""

from opd import maths
from opd.method import Ask, Method, Term, chain
from opd.parts.credit import Earned, LessMean, ReturnToGo, ValueGate
from opd.parts.fading import Fading
from opd.parts.losses import Everywhere, Gated, PolicyGradient
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Sampling


def kickstarting(
    *,
    weight: float = 1.0,
    fade: int = 100,
    gate: bool = False,
    gamma: float = 0.99,
    scale: float = 1.0,
    n: int = 1,
    mean: str = "token_mean",
) -> Method:
    """
    weight: of the teacher in the first batch
    fade: batches over which that weight falls to 0
    gate: the teacher counts only where it expects to earn more than the student; it must know values
    gamma: discount of rewards
    scale: factor of rewards
    n: episodes per problem
    mean: token_mean, sequence_mean or sequence_sum
    """
    reward = (Earned(scale), ReturnToGo(gamma), LessMean())
    pull = Everywhere(maths.cross_entropy)
    match = Term(Gated(pull) if gate else pull, named(mean), Fading(weight, fade))
    return Method(
        sample=OneTurn(n, Sampling()),
        teach=(Ask("teacher", "teacher", Want(dist=True, values=gate)),),
        credit=chain(*reward, ValueGate(gamma)) if gate else chain(*reward),
        terms={"reward": Term(PolicyGradient(), named(mean)), "match": match},
    )
