"""Distillation from a copy that is shown a right answer, turned away from what wrong answers make it say.

Paper: RLCSD, Pan et al., arXiv 2606.11709, its plug-in for OPSD (arXiv 2601.18734).

When: as opsd, where answers can be graded and hints of any kind change the copy's style more than its reasoning.

Equation: L = mean_t D/(D+1) sum_v min(q (log q - log pi), b),  q = softmax((1+a) log p_right - a max(log p_wrong, -5))

Over the k best tokens under the right hint and one bucket for the rest; D = KL(p_right || p_wrong), one hint of each
kind. No reward enters the loss: it only tells right hints from wrong ones. The copy is as old as 10 steps (--teacher
self:every=10). Several wrong hints (wrong), whose mean is p_wrong as in RLCSD, are this package's own.

Differs: see `rlcsd` for answers without a box.
INFERRED: the same answers are dropped as in RLCSD; D and the weight are held still; the weight stands in the loss and
not in the mean. The bound b takes the gradient of what it cuts away, so that the loss can point away from q: entry.cut
says how often.
"""

from typing import Literal

from opd.method import Method, Term
from opd.parts.contrasted import TowardsContrast
from opd.parts.hints import contrasting
from opd.parts.magnitude import BothHints
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.parts.views import template
from opd.protocols import Want
from opd.rollout import Sampling


def opsd_ectr(
    *,
    k: int = 100,
    strength: float = 0.5,
    least: float = -5.0,
    most: float = 0.05,
    half: float = 1.0,
    n: int = 8,
    hint: Literal["sibling", "reference"] = "sibling",
    wrong: int = 1,
    marked: bool = False,
    temperature: float = 1.0,
    top_p: float = 0.95,
    top_k: int = 20,
    mean: str = "token_mean",
) -> Method:
    """
    k: best tokens under the right hint that are looked at one by one
    strength: a, how far the target is turned away from wrong hints; 0 for the right hint alone
    least: least log-prob under wrong hints that counts
    most: bound b on each token's share of the divergence; 0 for none
    half: divergence of right and wrong hints at which a row weighs one half
    n: answers per prompt, which are each other's hints
    hint: the right hint: a right sibling, or the task's reference
    wrong: at most so many wrong siblings are hints, one by one; above 1 their mean counts
    marked: only a wrong answer that marks its final answer, in a box say, can be a hint
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    top_k: it writes with this many likeliest tokens; 0 for all
    mean: token_mean, sequence_mean or sequence_sum
    """
    right, others = Want(topk=k), Want(gather="teacher.ids")
    loss = TowardsContrast(wrong, strength, least, most, half)
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p, top_k=top_k)),
        teach=contrasting(n, hint, wrong, marked, template("rlcsd"), right, others),
        credit=BothHints(wrong),
        terms={"match": Term(loss, named(mean))},
        observe=(loss.cut,),
        casting={"teacher": "self:every=10"},
    )
