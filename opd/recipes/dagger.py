"""The student acts, the teacher says at every state that the student met what it would have done, and all is kept.

Paper: DAgger, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning", Ross, Gordon
and Bagnell, arXiv 1011.0686.

When: the teacher can only be asked what it would do, and a growing data set of its answers may be kept.

Equation: L = - mean_n log pi(a*_n | s_n),  a* ~ q(.|s),  s met by beta_i q + (1 - beta_i) pi,  over the rounds so far

A batch is a round. A coin per decision says who executes; the teacher's label is stored whoever did. `beta` falls in a
straight line to 0 over `fade` batches; fade 0 is the parameter-free choice of the paper, the teacher in round 1 only.

Differs: the paper trains a new classifier to the end on everything after each round; here every batch is its fresh
episodes and `replay` times as many drawn from the last `memory` episodes of earlier rounds, for `epochs` updates.
Labels are drawn from the teacher's policy: a noisy teacher gives noisy labels.
Uncertain: the paper's own schedules; the straight line over 15 rounds is the default of the library `imitation`.
"""

from opd.errors import require
from opd.method import Method, Term, Updates
from opd.parts.fading import Fading
from opd.parts.losses import Imitate
from opd.parts.means import named
from opd.parts.rounds import Aggregate, TakeTurns
from opd.rollout import Sampling


def dagger(
    *,
    beta: float = 1.0,
    fade: int = 1,
    replay: int = 3,
    memory: int = 4096,
    epochs: int = 4,
    n: int = 1,
    temperature: float = 1.0,
    mean: str = "token_mean",
) -> Method:
    """
    beta: share of the decisions that the teacher executes in the first batch
    fade: batches over which that share falls to 0
    replay: episodes of earlier batches per fresh one
    memory: episodes of earlier batches that are kept, the oldest go first
    epochs: updates per batch
    n: episodes per problem
    temperature: at which the student acts
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(0 <= beta <= 1, "the teacher's share beta", got=beta, expected="a number in [0, 1]")
    turns = TakeTurns(Fading(beta, fade), n, Sampling(temperature=temperature))
    rounds = Aggregate(turns, replay, memory)
    return Method(
        sample=rounds,
        terms={"imitate": Term(Imitate(), named(mean))},
        updates=Updates(epochs),
        state={"rounds": rounds},
    )
