"""An answer is read by a slow average of the student that is shown a right answer of a sibling, or what was wrong.

Paper: SDPO, "Reinforcement Learning via Self-Distillation", Huebotter et al., arXiv 2601.20802.

When: answers can be graded, or somebody says what was wrong, and no larger teacher is at hand.

Equation: L = mean_n min(pi(y_n)/mu(y_n), 2) [ a KL(q||m) + (1-a) KL(p||m) ],  m = a q + (1-a) p,  p = pi(.|x, y_<n)

q = average of the student(.|x, shown, y_<n); a (`alpha`) 0 is KL(q||p), 1 is KL(p||q). Both are compared on the K best
tokens of the student, everything else being one more bucket. Shown is another answer to the question that was right,
without its thoughts, never the answer itself; where there is none and this one was wrong, what the grader said of it,
if it says anything (see opd/tasks/graders.py). Answers with neither are not learned from (masked.unshown). The average
moves by 0.05 per batch (for code by 0.01: --teacher self:ema=0.99). The released trust-region teacher, whose logits are
0.05 of the way from the start to the student as it is, is --teacher self:trust=0.05.

The released variant that reads the drawn token alone is --form sampled --alpha 1: the token's loss is (log p - log q)
log p with the bracket held still, times the same weight, on average the gradient of KL(p||q).

Differs: the released weights pi/pi_old and pi_old/mu, each cut at 2, are one here, of their product. TRL's defaults are
form=sampled, alpha 1, threshold 1, no feedback, and a share of GRPO's loss, which is left out.
Uncertain: the prompts are ours. INFERRED: that any of several right siblings may be shown, drawn at random, and that a
grader's words stand for what the paper's environments say of a failed try.
"""

from functools import partial
from typing import Literal

from opd import maths
from opd.errors import require
from opd.method import Ask, Method, Term
from opd.parts.credit import OnlyShown
from opd.parts.losses import Reweighted, TowardsTeacher
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.parts.support_losses import compared
from opd.parts.views import Feedback, FirstOf, Sibling, template, without_thoughts
from opd.protocols import Want
from opd.rollout import Sampling


def sdpo(
    *,
    alpha: float = 0.5,
    k: int = 100,
    form: Literal["full", "sampled"] = "full",
    threshold: float = 0.5,
    cap: float = 2.0,
    feedback: bool = True,
    n: int = 8,
    temperature: float = 1.0,
    top_p: float = 1.0,
    mean: str = "token_mean",
) -> Method:
    """
    alpha: 0 forward KL, 1 reverse KL, Jensen-Shannon in between
    k: the student's best tokens, compared one by one beside a bucket for the rest; 0 for all [paper: 20 to 100]
    form: a divergence of both, or the policy gradient of the token that was drawn, which needs alpha=1
    threshold: reward from which on an answer was right
    cap: of a token's importance weight
    feedback: where no sibling was right, what the grader said of a wrong answer is shown
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(0 <= alpha <= 1, "alpha", got=alpha, expected="a number in [0, 1]")
    require(n >= 2, "answers per prompt n, of which one is shown for another", got=n, expected="at least 2")
    usual = (alpha, k) == (1, 100)
    require(form == "full" or usual, "form=sampled is the reverse KL, without best tokens", got=f"alpha={alpha}, k={k}",
            expected="alpha=1, k=100, or form=full")  # fmt: skip
    match, want = compared(partial(maths.jsd, beta=alpha), k, "student", "tail")
    if form == "sampled":
        match, want = TowardsTeacher(), Want(chosen=True)
    loss = Reweighted(match, cap)
    sibling = Sibling(template("sibling"), threshold=threshold, shows=without_thoughts)
    view = FirstOf((sibling, Feedback(template("feedback"), threshold))) if feedback else sibling
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=(Ask("teacher", "teacher", want, view=view, optional=True),),
        credit=OnlyShown(),
        terms={"match": Term(loss, named(mean))},
        lookup=(loss.cut,),
        casting={"teacher": "self:ema=0.95"},
    )
