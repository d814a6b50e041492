"""Choose whose text is read and which way the divergence points, each for itself, and let answers grow with care.

Paper: "Decoupling KL and Trajectories", Zhao et al., arXiv 2605.16826.

When: you want to choose mode-seeking or covering, and whose text is read, independently of one another.

Equation: L = E_{y ~ source} mean_n [ lam KL(pi || q) + (1 - lam) KL(q || pi) ]

    source    lam 0, forward KL                   lam 1, reverse KL
    teacher   supervised with soft targets        like offline reinforcement learning
    student   like DAgger                         on-policy distillation (the default)

lam weighs the *reverse* KL. Forward on the teacher's text and reverse on the student's are the chain rule's forms of
the two divergences of whole answers; the gradient is that of fixed prefixes, not of the sequence. The paper's remedies:
mostly forward mixes (lam below 0.5), and a ladder of answer lengths that is climbed while the entropy stays up.

Differs: the ladder asks the entropy of a rung's batches, each before it is learned from, not of a held-out set; that
one is in every examination (eval.entropy). The teacher writes anew at every visit. The loss is at temperature 1
whatever the sampling is.
Uncertain: the paper's floor, ladder, grid of lam, and the length of a stage were not found: those here are ours.
INFERRED: below the floor the ladder goes back one rung and stays. No code of the paper's own was found; the sampling is
that of a trainer by the same first author.
"""

from functools import partial
from typing import Literal

from opd import maths
from opd.errors import require
from opd.method import Ask, Method, Term
from opd.parts.curriculum import Climbing, Ladder
from opd.parts.losses import Everywhere
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Sampling


def decoupled(
    *,
    source: Literal["student", "teacher"] = "student",
    lam: float = 1.0,
    ladder: tuple[int, ...] = (),
    entropy_floor: float = 0.1,
    every: int = 20,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 0.95,
    top_k: int = 20,
    mean: str = "token_mean",
) -> Method:
    """
    source: who writes: student or teacher
    lam: weight of the reverse KL; the forward KL weighs 1 - lam
    ladder: lengths of answers, shortest first; none leaves the run's own limit
    entropy_floor: entropy (nats per token) below which the ladder is climbed no further
    every: batches on every rung
    n: answers per prompt
    temperature: at which the source writes
    top_p: nucleus from which the source writes
    top_k: most probable tokens from which the source writes; 0 for all
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(0 <= lam <= 1, "the weight lam of the reverse KL", got=lam, expected="a number in [0, 1]")
    turn = OneTurn(n, Sampling(temperature=temperature, top_p=top_p, top_k=top_k), writer=source)
    rungs = Ladder(ladder, entropy_floor, every) if ladder else None
    return Method(
        sample=Climbing(turn, rungs) if rungs else turn,
        teach=(Ask("teacher", "teacher", Want(dist=True)),),
        terms={"match": Term(Everywhere(partial(maths.linear_mix, beta=lam)), named(mean))},
        hooks=(rungs,) if rungs else (),
        state={"ladder": rungs} if rungs else {},
    )
