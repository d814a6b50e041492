"""The teacher says what every action would be worth, so that a costly mistake weighs more than a harmless one.

Paper: AggreVaTe, Ross and Bagnell, arXiv 1406.5979; differentiable (AggreVaTeD), Sun et al., arXiv 1703.01030.

When: an expert can say what every action would be worth, and some mistakes cost far more than others.

Equation: L = mean_n sum_a pi(a|s_n) (max_b Q(s_n, b) - Q(s_n, a)),  s_n met by the student

The gradient is that of the policy's expected value under Q, to which the constant max Q adds nothing.

Differs: the paper explores one action at a random time and lets the expert finish, which estimates Q at that action
alone; a teacher that knows Q for every action needs no such episode, and every state that was met is used. The
aggregate of earlier rounds is optional (`replay`), as in the differentiable form, which has none.
Uncertain: the roll-in of the differentiable paper is a mixture that decays; here the student alone acts by default.
"""

from opd.method import Ask, Method, Term
from opd.parts.losses import ExpectedLoss
from opd.parts.means import named
from opd.parts.rounds import Aggregate
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Sampling


def aggrevate(
    *, replay: int = 0, memory: int = 4096, n: int = 1, temperature: float = 1.0, mean: str = "token_mean"
) -> Method:
    """
    replay: episodes of earlier batches per fresh one
    memory: episodes of earlier batches that are kept, the oldest go first
    n: episodes per problem
    temperature: at which the student acts
    mean: token_mean, sequence_mean or sequence_sum
    """
    rounds = Aggregate(OneTurn(n, Sampling(temperature=temperature)), replay, memory)
    return Method(
        sample=rounds,
        teach=(Ask("teacher", "teacher", Want(values=True)),),
        terms={"value": Term(ExpectedLoss(), named(mean))},
        state={"rounds": rounds},
    )
