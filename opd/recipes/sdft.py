"""The teacher is a slow average of the student that is shown a demonstration: learning a skill without forgetting.

Paper: SDFT, "Self-Distillation Enables Continual Learning", Shenfeld et al., arXiv 2601.19897.

When: there are demonstrations of a new skill, no larger teacher, and nothing old may be forgotten.

Equation: L = mean_n D( pi(.|x, y_<n), q(.|x, demonstration, y_<n) ),  y ~ pi(.|x),  D = KL(pi || q) at alpha 1

Which way the KL points is not settled: the paper's equation is the reverse KL, alpha=1, the default here; its code is
reported to take the forward one over the whole vocabulary, alpha=0, for which a cross-entropy to the teacher's 20 best
tokens is said to do as well (--alpha 0 --k 20 --outside target). The first tokens are skipped, where a teacher that has
read a demonstration speaks of it.

Differs: TRL's trainer takes alpha 0.5 on the student's 100 best tokens, a live or frozen teacher, n 8, skips nothing.
INFERRED: the average's decay 0.99, from the code of AR-OPD, which grew out of this one; skip 3 is of the code, not of
the paper; the mean over all tokens. The prompt is ours.
"""

from functools import partial
from typing import Literal

from opd import maths
from opd.errors import require
from opd.method import Ask, Method, Term
from opd.parts.credit import SkipFirst
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.parts.support_losses import compared
from opd.parts.views import Privileged, template
from opd.rollout import Sampling


def sdft(
    *,
    alpha: float = 1.0,
    k: int = 0,
    outside: Literal["renormalise", "target"] = "renormalise",
    skip: int = 3,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    mean: str = "token_mean",
) -> Method:
    """
    alpha: 1 reverse KL, 0 forward KL, Jensen-Shannon in between
    k: the teacher's best tokens on which both are compared; 0 for the whole vocabulary
    outside: on them both are renormalised, or the teacher alone: a cross-entropy, which lowers all other tokens too
    skip: first tokens of an answer that are not learned from
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(0 <= alpha <= 1, "alpha", got=alpha, expected="a number in [0, 1]")
    cross_entropy = alpha == 0 and k > 0
    require(cross_entropy or outside == "renormalise", "outside=target, a cross-entropy to best tokens",
            got=f"alpha={alpha}, k={k}", expected="alpha=0 and k above 0")  # fmt: skip
    loss, want = compared(partial(maths.jsd, beta=alpha), k, outside=outside)
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=(Ask("teacher", "teacher", want, view=Privileged(template("example"))),),
        credit=SkipFirst(skip),
        terms={"match": Term(loss, named(mean))},
        casting={"teacher": "self:ema=0.99"},
    )
