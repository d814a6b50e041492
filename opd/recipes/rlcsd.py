"""What right hints make likelier than wrong ones is credited on top of the reward; what any hint does cancels.

Paper: RLCSD, Pan et al., arXiv 2606.11709.

When: answers can be graded, and what a hint does to style should not be credited.

Equation: L = L_plain + eta L_selected, two token means of -min(r_t A_t, clip(r_t) A_t);  A_t = A + lam tanh(e_t / tau)

e_t = log T(y_t | x, right hint) - log (1/K) sum_k T(y_t | x, wrong hint k). Selected are the tokens whose shift exceeds
delta; A_t stops at 0 rather than cross it, all others keep GRPO's A. Hints are other answers to the same problem, or
the reference (hint=reference). Both paths are weighted by min(pi_old / mu, 2), mu what really drew the token. The copy
T is as old as 10 steps (--teacher self:every=10).

Dropped and counted: groups of equal rewards (masked.trivial), answers that lack a hint of either kind (masked.hint),
such as the only right one of a group, or one that leaves no room for hints in the context of the copy.

Differs: the released code demands a boxed final answer of wrong hints alone, and labels a right one with its box, else
with the problem's answer (marked=true does both, and knows other marks); our tasks need not have boxes, and the last
line takes their place. With the reference as hint it keeps groups without a right answer: their advantage is 0, but
their tokens count in both means; here they are dropped, and a step does not depend on how many problems failed. It
drops answers before it cuts a batch into updates, here the batch is cut first. Its beta is 1; its bound of 2 on the
shift is never reached and left out.
Uncertain: these are the released defaults; a re-implementer of a later version takes tau 1.3, eta 0.5 and a mean per
answer (mean=sequence_mean). Its script has batches of 64 problems (--batch 64), 512 answers, and mini-batches of 16
problems: hence updates=4. The prompt has the released one's parts in our words. tau 0.02 makes tanh nearly a sign;
contrast.selected says how often it speaks.
"""

from typing import Literal

from opd.method import Method, Term, Updates, chain
from opd.parts.groups import GroupAdvantage, SkipTrivial
from opd.parts.hints import contrasting
from opd.parts.losses import PolicyGradient
from opd.parts.magnitude import BothHints, Contrast, Corrected, Shifted
from opd.parts.means import named
from opd.parts.observe import Clipped, Noted
from opd.parts.sample import OneTurn
from opd.parts.views import template
from opd.protocols import Want
from opd.rollout import Sampling


def rlcsd(
    *,
    n: int = 8,
    hint: Literal["sibling", "reference"] = "sibling",
    wrong: int = 4,
    marked: bool = False,
    lam: float = 0.5,
    tau: float = 0.02,
    delta: float = 0.02,
    eta: float = 1.0,
    clip: float = 0.2,
    cap: float = 2.0,
    temperature: float = 1.0,
    top_p: float = 0.95,
    top_k: int = 20,
    updates: int = 4,
    mean: str = "token_mean",
) -> Method:
    """
    n: answers per prompt, which are each other's hints
    hint: the right hint: a right sibling, or the task's reference
    wrong: at most so many wrong siblings are hints, one by one
    marked: only a wrong answer that marks its final answer, in a box say, can be a hint
    lam: the largest shift of an advantage
    tau: log-ratio at which the shift is three quarters of that
    delta: shifts up to this size are left out
    eta: weight of the selected tokens' mean beside that of the others
    clip: PPO's clip range around ratio 1; 0 for none
    cap: of the importance weight; 0 for no weight
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    top_k: it writes with this many likeliest tokens; 0 for all
    updates: optimizer steps per batch, each on its own part of the problems
    mean: token_mean, sequence_mean or sequence_sum, over each kind of token for itself
    """
    loss, over = PolicyGradient(clip, "untruncated"), named(mean)
    shape = chain(BothHints(wrong), Contrast(wrong), Shifted(lam, tau, delta), Corrected(cap))
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p, top_k=top_k)),
        teach=contrasting(n, hint, wrong, marked, template("rlcsd"), Want(chosen=True)),
        credit=chain(SkipTrivial(), GroupAdvantage(), shape),
        terms={"plain": Term(loss, over, rows="plain"), "selected": Term(loss, over, eta, rows="selected")},
        updates=Updates(parts=updates),
        lookup=(Clipped(clip, clip), Noted(("contrast", "contrast.selected", "contrast.stopped", "importance.cut"))),
        casting={"teacher": "self:every=10"},
    )
