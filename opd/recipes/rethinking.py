"""Match the teacher on the K tokens the student finds likeliest, or that both, either or only one of them finds so.

Paper: "Rethinking On-Policy Distillation", Li et al., arXiv 2604.13016.

When: the teacher can be asked about K tokens that the student names, and sampling noise is to be avoided.

Equation: L = mean_n sum_{v in S} p(v) log(p(v) / q(v)),  S = the student's top-K, p and q renormalised on S

`form` chooses between the paper and its code. equation, the default, is the paper's and the above, which local_support
with source=student is too. released is the code's, by which the paper's numbers were made:

    L = - mean_n sum_{v in S} PPOclip(pi(v)/pi_old(v), A(v)),  A(v) = w(v) (log q(v) - log pi_old(v))

There S is the student's top-K at the start of the batch, w(v) = pi_old(v) / pi_old(S), and log-probs are those of the
whole softmax: every token of S is rewarded as if it had been drawn. Its gradient is the equation's plus a term that
moves mass in and out of S, which a renormalised loss cannot. `weight`, `clip` and `dual` are its own: w may be made of
q, or 1.

`words` takes for S the teacher's top-K, what both have, either has, or only one of them has (union-intersection, where
the released w is not normalised). Where S is empty nothing is learned (support.empty); the equation learns nothing
from a single token either. `reward` adds GRPO's outcome reward with that weight as a term of its own, clipped by
`clip` (the released token_reward_direct_plus_grpo has 1).

Differs: k=0, which is released as the single sampled token, is sampled_token. For more than one update per batch the
released form reads the student once more, to remember pi_old. With `only_named` it always is, and names S: the teacher
is asked about these tokens alone, no longer for whole distributions. The equation's S, otherwise the student's best at
every update, is then that of the start of the batch. The overlap of the two top-K, its mass and its advantage are
measured in every run whose teacher gives what that takes (support.*).
Uncertain: whether the released outcome reward is added before the clip, token by token.
"""

from typing import Literal

from opd.errors import require
from opd.method import Ask, Method, Term, Updates, unchanged
from opd.parts.asks import OWN, about_own_best
from opd.parts.groups import GroupAdvantage
from opd.parts.losses import PolicyGradient
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.parts.support_losses import SupportGradient, SupportKL
from opd.protocols import Want
from opd.rollout import Sampling


def rethinking(
    *,
    k: int = 16,
    words: Literal["only_stu", "only_tch", "intersection", "union", "union-intersection"] = "only_stu",
    weight: Literal["student_p", "teacher_p", "none"] = "student_p",
    form: Literal["equation", "released"] = "equation",
    reward: float = 0.0,
    n: int = 4,
    clip: float = 0.2,
    dual: float = 3.0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    updates: int = 1,
    only_named: bool = False,
    mean: str = "token_mean",
) -> Method:
    """
    k: size of each model's support [paper: 1 to 64]
    words: which tokens are compared: the student's, the teacher's, or a combination
    weight: of a token of form=released: the student's probability, the teacher's, or 1
    form: the paper's renormalised KL, or the policy gradient of its code
    reward: weight of GRPO's outcome reward
    n: answers per prompt
    clip: PPO's clip range around ratio 1, of form=released and of the outcome reward
    dual: bound of the term of a negative advantage of form=released, not of the outcome reward; 0 for none
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    updates: optimizer steps per batch
    only_named: the teacher is asked about the student's best tokens of the start of the batch alone
    mean: token_mean, sequence_mean or sequence_sum
    """
    released = form == "released"
    usual = weight == "student_p" and dual == 3.0 and (bool(reward) or clip == 0.2)
    require(released or usual, "form=equation, a divergence, has no weight, clip or dual",
            got=f"weight={weight}, clip={clip}, dual={dual}", expected="their defaults, or form=released")  # fmt: skip
    require(n >= 2 or not reward, "answers per prompt n, whose rewards are compared", got=n, expected="at least 2")
    require(words == "only_stu" or not only_named, "only_named", got=f"words={words}", expected="words=only_stu")
    old = OWN if only_named or (released and updates > 1) else ""
    loss = SupportGradient(k, words, old, weight=weight, clip=clip, dual=dual) if released else SupportKL(k, words, old)
    outcome = {"reward": Term(PolicyGradient(clip, "untruncated"), named(mean), reward, "graded")} if reward else {}
    asks = (Ask("teacher", "teacher", Want(dist=True)), *([Ask(old, "student", Want(dist=True))] if old else []))
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=about_own_best(k) if only_named else asks,
        credit=GroupAdvantage(alone=False) if reward else unchanged,
        terms={"match": Term(loss, named(mean))} | outcome,
        updates=Updates(parts=updates),
        observe=(loss.empty,) if "intersection" in words else (),
    )
