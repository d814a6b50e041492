"""GRPO in which every token weighs by how much it depends on knowing a solution, one of the student's own.

Paper: SC-GRPO, Shan et al., arXiv 2606.18810.

When: answers can be graded, some are right, and credit should go to the tokens that depend on knowing one.

Equation: L = - mean_i mean_t f(D_t) min(r_t A_i, clip(r_t, 1-eps, 1+eps) A_i),  f(D) = D / (D + c)

D_t = KL( pi(.|x, solution, y_<t) || pi(.|x, y_<t) ) over the whole vocabulary, the solution another right answer of the
group in the system prompt of a copy (--teacher self:live); c = max(75th percentile of D, 1e-4). Where one answer of a
group or every one is right this is GRPO. Where none is, the copy is shown one of them, and the others earn A = alpha
times their standardised mean weight, so that what departs from a known failure rises.

Controls that the paper lacks: weights=mean gives every token the same weight, weights=shuffled deals them to the wrong
tokens; without these an effect of the learning rate alone is not excluded.

Differs: the percentile is the batch's, so that nothing depends on how a batch is cut into passes; the paper's is that
of a micro-batch (micro=8, rollouts). That failed answer is dropped from the loss and counted (masked.reference), and
so is one whose hint is too long for the copy (masked.hint).
Uncertain: no code was found, nor clip, number of steps or prompts: clip is GRPO's, the prompts are ours. INFERRED: D is
read once per batch and held still; c is over the tokens whose copy was shown something. Watch hint.faint: a model that
cannot read its own solutions has D = 0 everywhere and stops learning in silence.
"""

from typing import Literal

from opd.errors import one_of, require
from opd.method import Ask, Method, Term, chain
from opd.parts.credit import Shuffled
from opd.parts.groups import GroupAdvantage
from opd.parts.hints import ByRightAnswers, SiblingInSystem
from opd.parts.losses import PolicyGradient
from opd.parts.magnitude import Dependence, Diversity, Evened, Fitting, Saturating, Weighted
from opd.parts.means import named
from opd.parts.observe import Clipped, Noted
from opd.parts.sample import OneTurn
from opd.parts.views import template
from opd.protocols import Want
from opd.rollout import Sampling

CONTROLS = {"own": (), "mean": (Evened("hint.weight"),), "shuffled": (Shuffled("hint.weight"),)}


def sc_grpo(
    *,
    n: int = 8,
    percentile: float = 75.0,
    least: float = 1e-4,
    micro: int = 0,
    alpha: float = 0.1,
    weights: Literal["own", "mean", "shuffled"] = "own",
    clip: float = 0.2,
    temperature: float = 1.0,
    top_p: float = 1.0,
    mean: str = "sequence_mean",
) -> Method:
    """
    n: answers per prompt; from three on one can be right and another shown
    percentile: of the divergences, where a token has half its weight [paper: 50 to 75]
    least: least divergence that is half a weight
    micro: rollouts over which the percentile is taken; 0 for the whole batch
    alpha: size of the advantage where no answer is right [paper: 0.1 to 0.2]
    weights: each token's own, or a control: their mean for all, or shuffled
    clip: PPO's clip range around ratio 1; 0 for none
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(n >= 3, "answers per prompt n, of which two are right and one is not", got=n, expected="at least 3")
    one_of("the weights of tokens", weights, CONTROLS)
    lost = SiblingInSystem(template("sc_grpo_failed"), "wrong", shared=True)
    view = ByRightAnswers(none=lost, several=SiblingInSystem(template("sc_grpo")))
    weigh = (Dependence(), Saturating(percentile, least, micro), Diversity(alpha), *CONTROLS[weights])
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=(
            Ask("teacher", "teacher", Want(dist=True), view, optional=True),
            Ask("own", "student", Want(dist=True)),
        ),
        credit=chain(GroupAdvantage(), Fitting(), *weigh, Weighted("hint.weight")),
        terms={"reward": Term(PolicyGradient(clip, "untruncated"), named(mean))},
        lookup=(Clipped(clip, clip), Noted(("hint.kl", "hint.weight", "hint.faint"))),
        casting={"teacher": "self:live"},
    )
