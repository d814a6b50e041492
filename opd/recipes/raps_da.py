"""Several specialists of the student's own size: each teaches the problems of its regime, all say where they disagree.

Paper: RAPS-DA, Wang et al., arXiv 2606.30518.

When: there are several specialists, each good at a part of the problems that can be named beforehand.

Equation: L = sum_n m_n w_n KL(pi || q_g) / sum_n m_n w_n,  g = the regime of the problem, m a mask, w a weight

The problem's column teacher_id routes it to its specialist (--teacher grounding=..,arbitration=..,resistance=..). The
mask leaves out what is learned already and what is noise, and with time all but the tokens over which the specialists
disagree most; the weight raises tokens of which the student is sure and wrong.

A control: with target=averaged every problem learns from all specialists alike, (1/M) sum_g KL(pi || q_g), whose least
is at their normalised product; the difference is what routing is worth.

From the abstract and notes by others: routing, the two layers, their three signals and the direction of the annealing.
INFERRED, since no text was at hand: every formula of mask and weight, their thresholds, the schedule, and the mean.
"""

from typing import Literal

from opd import maths
from opd.errors import one_of, require
from opd.method import Ask, Method, Term, chain
from opd.parts.losses import Everywhere
from opd.parts.means import Weighted, named
from opd.parts.sample import OneTurn
from opd.parts.selection import MostContested, Signals, SkipSettled, SurelyWrong
from opd.parts.views import AskedOf
from opd.protocols import Want
from opd.rollout import Sampling


def raps_da(
    *,
    regimes: tuple[str, ...] = ("grounding", "arbitration", "resistance"),
    gap: float = 0.0,
    unsure: float = 0.5,
    conflict: float = 0.01,
    end: float = 0.25,
    fade: int = 100,
    kappa: float = 1.0,
    target: Literal["routed", "averaged"] = "routed",
    n: int = 1,
    temperature: float = 1.0,
    mean: str = "token_mean",
) -> Method:
    """
    regimes: names of the specialists, as --teacher and the column teacher_id have them
    gap: reverse KL (nats) up to which a token is learned already
    unsure: entropy (share of log V) above which a token is noise, unless the specialists differ
    conflict: Jensen-Shannon divergence (nats) from which they do
    end: share of an answer's tokens that is learned from in the end, the most contested
    fade: batches over which that share falls from 1
    kappa: how much more a token counts of which the student is sure and wrong
    target: the problem's own specialist, or a control: all of them alike
    n: answers per prompt
    temperature: at which the student writes
    mean: token_mean, sequence_mean or sequence_sum, in which every token counts by its weight
    """
    require(
        len(regimes) >= 2, "specialists that may disagree", got=len(regimes), expected="at least 2 names in regimes"
    )
    own = Ask("own", "student", Want(dist=True))
    peers = tuple(Ask(f"teacher_{name}", "teacher", Want(dist=True), AskedOf(name)) for name in regimes)
    targets = {"routed": ("teacher",), "averaged": tuple(ask.into for ask in peers)}
    one_of("the target", target, targets)
    experts, weight = targets[target], Weighted(named(mean))
    signals = Signals(tuple(ask.into for ask in peers))
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature)),
        teach=(Ask("teacher", "teacher", Want(dist=True)), *peers, own),
        credit=chain(signals, SkipSettled(gap, unsure, conflict), MostContested(end, fade), SurelyWrong(kappa)),
        terms={f"match.{who}": Term(Everywhere(maths.reverse_kl, who), weight, 1 / len(experts)) for who in experts},
    )
