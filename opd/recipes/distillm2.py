"""Pull the student up on the teacher's answer and hold it back on its own, each with the divergence that suits it.

Paper: DistiLLM-2, Ko et al., arXiv 2503.07067.

When: the teacher has written an answer for every problem, and the student should also unlearn its own.

Equation: L = (2-beta) mean_y' KL(q || alpha q + (1-alpha) pi) + beta mean_y KL(pi || (1-alpha) q + alpha pi),  y' ~ q

Every problem has one answer y' of the teacher and one y of the student, both written beforehand at temperature 0.8; y
is the text of the student as it was at the start (the role `reference`). Each mean is over answers of their token mean.

detach: the released code, in which the alpha pi of the second mixture gets no gradient; the paper differentiates it.
adaptive: an alpha per answer i, 1 - (1-alpha) d/d_i cut to [0.01, alpha], d_i how far teacher and student are apart on
it (difference of exp(mean log-prob)) and d the mean of d_i: what is learned already is compared almost unmixed. The
released code has it and its script leaves it off, and so do we. It costs a reading of the student's.

Differs: `fresh` writes y anew at every visit, with the student as it is then.
Uncertain: whether the paper's numbers are with the adaptive alpha. The schedule of beta from 1 to 1.5, off too in the
released script, is not here. INFERRED: that d is the mean of the batch, over the answers of either writer for itself.
"""

from functools import partial

from opd import maths
from opd.errors import require
from opd.method import Ask, Method, Term, chain
from opd.parts.credit import Marked
from opd.parts.losses import Everywhere
from opd.parts.means import named
from opd.parts.observe import Noted
from opd.parts.sample import OneTurn, Together, Traces
from opd.parts.skew import AdaptiveSkew, Skewed
from opd.protocols import Want
from opd.rollout import TEACHER, Sampling


def distillm2(
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    detach: bool = False,
    fresh: bool = False,
    adaptive: bool = False,
    temperature: float = 0.8,
    mean: str = "sequence_mean",
) -> Method:
    """
    alpha: share of the other model that is mixed into the one compared to
    beta: weight of the student's text; the teacher's weighs 2 - beta
    detach: the student's share of the second mixture gets no gradient, as in the released code
    fresh: the student writes anew at every visit, instead of its start once per problem
    adaptive: each answer has an alpha of its own, at most `alpha`
    temperature: at which both write
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(0 <= alpha < 1, "the skew alpha", got=alpha, expected="a number in [0, 1)")
    require(0 <= beta <= 2, "the weight beta of the student's text", got=beta, expected="a number in [0, 2]")
    sampling = Sampling(temperature=temperature)
    teacher, start = Traces(sampling), Traces(sampling, "reference")
    skewed = Skewed if adaptive else lambda divergence: Everywhere(partial(divergence, alpha=alpha))
    pull, hold = skewed(maths.skew_kl), skewed(partial(maths.skew_reverse_kl, detach_mixture=detach))
    asks = (Ask("teacher", "teacher", Want(chosen=adaptive, dist=True)), Ask("own", "student", Want(chosen=True)))
    who_wrote = Marked("by.teacher", TEACHER, others="by.others")
    return Method(
        sample=Together((teacher, OneTurn(1, sampling) if fresh else start)),
        teach=asks if adaptive else asks[:1],
        credit=chain(AdaptiveSkew(alpha), who_wrote) if adaptive else who_wrote,
        terms={
            "pull": Term(pull, named(mean), 2 - beta, "by.teacher"),
            "hold": Term(hold, named(mean), beta, "by.others"),
        },
        lookup=(Noted(("skew", "skew.cut")),) if adaptive else (),
        state={"teacher": teacher} if fresh else {"teacher": teacher, "start": start},
        casting={"reference": "self:frozen"},
    )
