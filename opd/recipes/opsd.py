"""The teacher is the student itself as it was at the start, shown the solution; the student learns to do without it.

Paper: OPSD, "Self-Distilled Reasoner", Zhao et al., arXiv 2601.18734 (version 3).

When: there are worked solutions and no larger teacher.

Equation: L = mean_y mean_n sum_v min( q_v log(q_v / p_v), tau ),  q = pi_0(.|x, solution, y_<n),  p = pi(.|x, y_<n)

The teacher is asked about the student's very tokens under a prompt that also holds the reference solution. `tau` keeps
words of style from outweighing the rest. Mind what it does: a word at the bound is no longer pulled up, and what pulls
the others up lowers it, so that the student moves away from the teacher there; entries.cut says how much of the
teacher that is, and tau=0 clips nothing.

The first release: --beta 0.5 --tau 0 --loss-temperature 1.1, with the options --k 50 and --teacher self:ema=0.999; the
later one: --loss-temperature 1.1. The code's option for the drawn token alone is --form sampled --loss-temperature 1.1
--mean token_mean: the log-ratio log q(y) - log p(y) is the token's reward in a policy gradient without clip, baseline
or weight. Its gradient is on average the reverse KL's where p at the loss's temperature drew the token; with a nucleus,
as released and here, it is off by what the nucleus leaves out.

Differs: its teacher that first writes an analysis is left out. The later release lets student and teacher think or
not, which belongs to the chat template here.
Uncertain: tau is the default of the later release (its scripts are reported with 1e-6 and less); at what temperature
the paper itself compares the two (the code at the sampling one, here 1). The prompt is ours.
"""

from functools import partial
from typing import Literal

from opd import maths
from opd.errors import require
from opd.method import Ask, Method, Term
from opd.parts.losses import Bounded, Tempered, TowardsTeacher
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.parts.support_losses import compared
from opd.parts.views import Privileged, template
from opd.protocols import Want
from opd.rollout import Sampling


def opsd(
    *,
    beta: float = 0.0,
    tau: float = 0.05,
    k: int = 0,
    form: Literal["full", "sampled"] = "full",
    loss_temperature: float = 1.0,
    n: int = 1,
    temperature: float = 1.1,
    top_p: float = 0.95,
    top_k: int = 20,
    mean: str = "sequence_mean",
) -> Method:
    """
    beta: 0 forward KL, 1 reverse KL, Jensen-Shannon in between
    tau: the most that one word may bring of the forward KL; 0 for no bound
    k: the teacher's best tokens on which both are compared, renormalised; 0 for the whole vocabulary
    form: a divergence of both, or the policy gradient of the token that was drawn
    loss_temperature: at which both are compared
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    top_k: tokens from which the student writes; 0 for all
    mean: token_mean, sequence_mean or sequence_sum
    """
    only = "0: it belongs to the forward KL over the whole vocabulary"
    require(not tau or (beta == 0 and k == 0), "tau", got=f"tau={tau} with beta={beta}, k={k}", expected=only)
    require(0 <= beta <= 1, "beta", got=beta, expected="a number in [0, 1]")
    usual = (beta, tau, k) == (0, 0.05, 0)
    require(form == "full" or usual, "form=sampled has no divergence", got=f"beta={beta}, tau={tau}, k={k}",
            expected="their defaults, or form=full")  # fmt: skip
    loss, want = (Bounded(tau), Want(dist=True)) if tau else compared(partial(maths.jsd, beta=beta), k)
    if form == "sampled":
        loss, want = TowardsTeacher(), Want(chosen=True)
    cut = (loss.cut,) if isinstance(loss, Bounded) else ()
    if loss_temperature != 1:  # best tokens alone have no other temperature
        loss, want = Tempered(loss, loss_temperature), Want(dist=True, chosen=want.chosen)
        cut = tuple(Tempered(one, loss_temperature) for one in cut)
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p, top_k=top_k)),
        teach=(Ask("teacher", "teacher", want, view=Privileged(template("solution"))),),
        terms={"match": Term(loss, named(mean))},
        observe=cut,
        casting={"teacher": "self:frozen"},
    )
