"""Prefer what the model writes with the context over what it writes without, instead of matching its probabilities.

Paper: PBSD, "Preference-Based Self-Distillation", Yu et al., arXiv 2605.05040.

When: a context helps the model, and matching its probabilities under that context is unstable.

Equation: L = - E log sigma( beta [ log p(y+)/q(y+) - log p(y-)/q(y-) ] ),  p = pi(.|x),  q = teacher(.|x, context)

y+ is written by the teacher under the context, y- by the student without it; log-probs are sums over an answer. The
loss is not linear in the rows, but with one update per batch its gradient is that of -A log p, with the advantage
beta sigma(-m) taken at the batch's start.

What it converges to depends on who writes y- (derived and checked here, not read). negative_source=current: the
teacher itself, with no gain of reward at all. frozen: q (q/p_0)^(1/beta) normalised, that is extrapolation beyond the
teacher by 1/beta; snapshot stands in between. pair_label=reward labels the pairs by the task's grades in place of
"the teacher wins" and is what reaches the paper's optimum, q exp(r/beta) normalised, whoever writes.

Differs: the label of a graded pair is its expectation, not a draw.
Uncertain: only notes on the paper were at hand; beta and the refreshing of the teacher were not found, nor whether
log-probs are divided by length. INFERRED: beta 0.1 as usual for such losses, a frozen teacher, a snapshot every 10
batches. The prompt is ours.
"""

from typing import Literal

from opd.method import Ask, Method, Term
from opd.parts.losses import Raise
from opd.parts.means import named
from opd.parts.observe import Noted
from opd.parts.pairs import Pairs, Preferred
from opd.parts.views import Privileged, template
from opd.protocols import Want
from opd.rollout import Sampling

COPIES = {"current": "", "snapshot": "self:every=10", "frozen": "self:frozen"}
ANSWERS = 2.0  # of a pair: a mean over answers is half the mean over pairs


def pbsd(
    *,
    beta: float = 0.1,
    negative_source: Literal["current", "snapshot", "frozen"] = "current",
    pair_label: Literal["teacher_wins", "reward"] = "teacher_wins",
    n: int = 1,
    temperature: float = 1.0,
    mean: str = "sequence_sum",
) -> Method:
    """
    beta: how closely the student is tied to the teacher
    negative_source: who writes the other answer: the student now, every so often (see --reference), or at the start
    pair_label: which answer should win: the teacher's, or as the grades of both say
    n: pairs per prompt
    temperature: at which both are written
    mean: token_mean, sequence_mean or sequence_sum
    """
    copy, view = COPIES[negative_source], Privileged(template("example"))
    return Method(
        sample=Pairs(view, n, Sampling(temperature=temperature), "reference" if copy else "student"),
        teach=(
            Ask("teacher", "teacher", Want(chosen=True), view=view),
            Ask("own", "student", Want(chosen=True)),
        ),
        credit=Preferred(beta, pair_label),
        terms={"prefer": Term(Raise(), named(mean), ANSWERS)},
        lookup=(Noted(("pair.loss", "pair.margin")),),
        casting={"teacher": "self:frozen"} | ({"reference": copy} if copy else {}),
    )
