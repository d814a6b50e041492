"""RLSD whose evidence is what a right hint makes likelier than wrong ones do, not what a hint makes likelier at all.

Paper: RLCSD, Pan et al., arXiv 2606.11709, its plug-in for RLSD (arXiv 2604.03128).

When: as rlsd, where hints of any kind raise the same filler words.

Equation: L = - mean_t min(r_t B_t, clip(r_t, 1-eps, 1+eps) B_t),  B_t = A [(1-s) + s clip(exp(sign(A) e_t), 1-e, 1+e)]

e_t = log T(y_t | x, right hint) - log T(y_t | x, wrong hint), one of each; everything else is that of `rlsd`, and hints
and dropped answers are those of `rlcsd`. Several wrong hints (wrong), whose mean is taken as there, are this package's
own.

Differs: see `rlcsd` for answers without a box, and for groups without a right answer where the reference is the hint.
INFERRED: that the plug-in drops and samples as RLCSD does, and averages over all tokens, as its RLSD baseline does.
"""

from typing import Literal

from opd.method import Method, Term, chain
from opd.parts.fading import Fading
from opd.parts.groups import GroupAdvantage, SkipTrivial
from opd.parts.hints import contrasting
from opd.parts.losses import PolicyGradient
from opd.parts.magnitude import BothHints, Bounded, Contrast
from opd.parts.means import named
from opd.parts.observe import Clipped, Noted
from opd.parts.sample import OneTurn
from opd.parts.views import template
from opd.protocols import Want
from opd.rollout import Sampling


def rlsd_ectr(
    *,
    n: int = 8,
    lam: float = 0.5,
    fade: int = 50,
    width: float = 0.2,
    hint: Literal["sibling", "reference"] = "sibling",
    wrong: int = 1,
    marked: bool = False,
    clip: float = 0.2,
    temperature: float = 1.0,
    top_p: float = 0.95,
    top_k: int = 20,
    mean: str = "token_mean",
) -> Method:
    """
    n: answers per prompt, which are each other's hints
    lam: how much of the factor counts in the first step
    fade: steps within which lam falls to 0
    width: how far from 1 the factor may be
    hint: the right hint: a right sibling, or the task's reference
    wrong: at most so many wrong siblings are hints, one by one; above 1 their mean counts
    marked: only a wrong answer that marks its final answer, in a box say, can be a hint
    clip: PPO's clip range around ratio 1; 0 for none
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    top_k: it writes with this many likeliest tokens; 0 for all
    mean: token_mean, sequence_mean or sequence_sum
    """
    shape = chain(BothHints(wrong), Contrast(wrong), Bounded("contrast", width, Fading(lam, fade)))
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p, top_k=top_k)),
        teach=contrasting(n, hint, wrong, marked, template("rlcsd"), Want(chosen=True)),
        credit=chain(SkipTrivial(), GroupAdvantage(), shape),
        terms={"reward": Term(PolicyGradient(clip, "untruncated"), named(mean))},
        lookup=(Clipped(clip, clip), Noted(("contrast", "evidence.cut"))),
        casting={"teacher": "self:every=10"},
    )
