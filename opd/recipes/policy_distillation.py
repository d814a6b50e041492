"""The teacher acts, and the student learns the policy that the teacher's sharpened values stand for.

Paper: "Policy Distillation", Rusu et al., arXiv 1511.06295.

When: the teacher is a table or net of action values, and a smaller policy is wanted.

Equation: L = mean_n KL( softmax(Q(s_n, .) / tau) || pi(.|s_n) ),  s_n met by the teacher

The best of the paper's three losses. The student is not tempered. tau is far below 1 because values of different
actions differ little; it has to fit the scale of the values.

Differs: the paper fills a buffer of 540,000 states in advance; here every batch brings new episodes of the teacher and
`replay` times as many of the earlier ones. The paper's teacher takes a random action at rate .05, which belongs to the
teacher here: --teacher values,epsilon=0.05. Several tasks at once are not here.
"""

from opd.method import Ask, Method, Term
from opd.parts.losses import MatchValues
from opd.parts.means import named
from opd.parts.rounds import Aggregate
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Sampling


def policy_distillation(
    *, tau: float = 0.01, replay: int = 3, memory: int = 4096, n: int = 1, mean: str = "token_mean"
) -> Method:
    """
    tau: temperature of the teacher's values
    replay: episodes of earlier batches per fresh one
    memory: episodes of earlier batches that are kept, the oldest go first
    n: episodes per problem
    mean: token_mean, sequence_mean or sequence_sum
    """
    rounds = Aggregate(OneTurn(n, Sampling(), writer="teacher"), replay, memory)
    return Method(
        sample=rounds,
        teach=(Ask("teacher", "teacher", Want(values=True)),),
        terms={"match": Term(MatchValues(tau), named(mean))},
        state={"rounds": rounds},
    )
