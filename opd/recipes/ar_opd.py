"""A teacher that has read half of the solution, and a bounded part of what the whole of it would add.

Paper: AR-OPD, "Beyond Absolute Imitation", Zhang, arXiv 2606.10385.

When: there are worked solutions, no larger teacher, and showing the whole solution makes the copy jump to the end.

Equation: L = mean_y mean_n KL(q* || pi(.|x, y_<n)),  q* ~ exp( log q_part + lam clip(log q_full - log q_part, -C, C) )

The full view shows the reference reasoning and the answer, the partial one the first `rho` of the reasoning and the
answer; both are read in one pass by an average of the student. lam=0 learns from the partial view, lam=1 with a wide
clip from the full one. The first 3 tokens are skipped. entries.cut: how much of the anchor had its residual cut.

Differs: the code can also take the reverse KL or a mixture; all its launchers take the forward one.
INFERRED: lam 0.8, which the sweep over rho used; the launchers run 0.4 to 1.4 and the headline's value was not found.
Whether the paper's own runs used the averaged teacher is not said; the code does. The prompt is ours.
"""

from opd.method import Ask, Method, Term
from opd.parts.credit import SkipFirst
from opd.parts.losses import Anchored
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.parts.views import Begun, template
from opd.protocols import Want
from opd.rollout import Sampling


def ar_opd(
    *,
    lam: float = 0.8,
    clip: float = 5.0,
    rho: float = 0.5,
    skip: int = 3,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    mean: str = "sequence_mean",
) -> Method:
    """
    lam: how far from the partial view towards the full one; above 1 beyond it [paper: 0 or 0.4 to 1.4]
    clip: of one token's residual (nats)
    rho: share of the reference that the partial view shows [paper: 0.25 to 0.75]
    skip: first tokens of an answer that are not learned from
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    loss, shown = Anchored(lam, clip), template("begun")
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=(
            Ask("teacher", "teacher", Want(dist=True), view=Begun(shown)),
            Ask("partial", "teacher", Want(dist=True), view=Begun(shown, rho)),
        ),
        credit=SkipFirst(skip),
        terms={"match": Term(loss, named(mean))},
        observe=(loss.cut,),
        casting={"teacher": "self:ema=0.99"},
    )
