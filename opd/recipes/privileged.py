"""The teacher is the student itself, shown the reference answer; the student learns to do without it.

Paper: OPSD, Zhao et al., arXiv 2601.18734; SDFT, Shenfeld et al., arXiv 2601.19897.

Equation: L = mean_y mean_n D( p(.|x, c, y_<n) || pi(.|x, y_<n) ),  p = a copy of the student, c = privileged context

The teacher is asked about the student's very tokens under a prompt that also holds the reference. Defaults are those of
OPSD's paper: forward KL, copy frozen at the start, whole vocabulary, one answer per prompt.

Differs: OPSD's clip of single vocabulary entries is left out, because it can turn the loss around and its threshold was
not found; its released code uses JSD 0.5 at temperature 1.1 without that clip. SDFT: divergence=reverse_kl,
teacher=self:ema; its re-implementation skips the first 3 tokens.
Uncertain: SDFT's direction (its equation says reverse KL, its code is reported to be forward KL); the prompt is ours.
"""

from functools import partial

from opd import maths
from opd.credit import SkipFirst
from opd.errors import one_of
from opd.losses import Everywhere
from opd.means import named
from opd.method import Ask, Method, Term
from opd.protocols import Want
from opd.rollout import Sampling
from opd.sample import OneTurn
from opd.views import Privileged, template

DIVERGENCES = {"forward_kl": maths.forward_kl, "reverse_kl": maths.reverse_kl, "jsd": partial(maths.jsd, beta=0.5)}


def privileged(
    *,
    divergence: str = "forward_kl",
    skip: int = 0,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    mean: str = "sequence_mean",
) -> Method:
    """
    divergence: forward_kl, reverse_kl or jsd
    skip: first tokens of an answer that are not learned from
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    one_of("divergence", divergence, DIVERGENCES)
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=(Ask("teacher", "teacher", Want(dist=True), view=Privileged(template("privileged"))),),
        credit=SkipFirst(skip),
        terms={"match": Term(Everywhere(DIVERGENCES[divergence]), named(mean))},
        casting={"teacher": "self:frozen"},
    )
