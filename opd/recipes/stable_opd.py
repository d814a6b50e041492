"""Keep on-policy distillation from running away: hold the student near its start, and mix in true solutions.

Paper: StableOPD, Luo et al., arXiv 2604.08527.

When: answers grow, repeat themselves or run into the limit under sampled_token.

Equation: L = mean_n -min(r A, clip(r, 1-eps, 1+eps) A) + near KL(pi || ref) + gold mean_m [-log pi(y*_m)]

A_n = log q(y_n) - log pi_old(y_n), r = pi(y_n) / pi_old(y_n); ref is the student's frozen start, y* the solution that
came with the problem, one per problem in every batch. Each of the three is a mean over its own tokens. Answers that no
longer end, and repeat themselves because repetition is what the teacher minds least, show as `truncated` (the paper's
TruncRate) and `repetitive` (its RepRate). gold=0 with near=0 is what the paper starts from.

The task's column `solution` holds y*; --solution NAME takes another one, privileged_context or answer.

Uncertain: read in two notes on the paper only, no code was found. The two weights were not found: near and gold are
ours. So is the form of the KL: exact, over the whole vocabulary, at the states of the student's answers.
"""

from opd import maths
from opd.errors import require
from opd.method import Ask, Method, Term, Updates, chain
from opd.parts.credit import LogRatio, Marked
from opd.parts.losses import CrossEntropy, Everywhere, PolicyGradient
from opd.parts.means import named
from opd.parts.observe import Clipped
from opd.parts.sample import OneTurn, WithSolutions
from opd.parts.views import only_written
from opd.protocols import Want
from opd.rollout import DATA, Sampling


def stable_opd(
    *,
    gold: float = 0.1,
    near: float = 0.01,
    solution: str = "solution",
    n: int = 4,
    clip: float = 0.2,
    temperature: float = 1.0,
    top_p: float = 1.0,
    updates: int = 1,
    mean: str = "token_mean",
) -> Method:
    """
    gold: weight of learning the problem's own solution
    near: weight of the KL to the reference
    solution: where the solution stands: a column of the task, privileged_context or answer
    n: answers per prompt
    clip: PPO's clip range around ratio 1; 0 for none
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    updates: optimizer steps per batch
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(min(gold, near) >= 0, "weights of terms", got=f"gold={gold}, near={near}", expected="0 for none, or more")
    fresh = OneTurn(n, Sampling(temperature=temperature, top_p=top_p))
    terms = {"advantage": Term(PolicyGradient(clip, "untruncated"), named(mean), rows="own")}
    asks = [Ask("teacher", "teacher", Want(chosen=True), only_written, optional=True)]
    if near:
        terms["near"] = Term(Everywhere(maths.reverse_kl, "reference"), named(mean), near, rows="own")
        asks.append(Ask("reference", "reference", Want(dist=True), only_written, optional=True))
    if gold:
        terms["gold"] = Term(CrossEntropy(), named(mean), gold, rows="golden")
    return Method(
        sample=WithSolutions(solution, fresh=fresh) if gold else fresh,
        teach=tuple(asks),
        credit=chain(LogRatio(), Marked("golden", DATA, others="own")),
        terms=terms,
        updates=Updates(parts=updates),
        lookup=(Clipped(clip, clip),),
        casting={"reference": "self:frozen"},
    )
