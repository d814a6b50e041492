"""Reward each of the student's K likeliest tokens by its log-ratio, as if all had been drawn: no luck in sampling.

Paper: "Rethinking On-Policy Distillation", Li et al., arXiv 2604.13016.

When: the teacher can be asked about K tokens that the student names, and sampling noise is to be avoided.

Equation: L = - mean_n sum_{v in S} PPOclip(pi(v)/pi_old(v), A(v)),  A(v) = w(v) (log q(v) - log pi_old(v))

S is the student's top-K at the start of the batch, w(v) = pi_old(v) / pi_old(S), log-probs are those of the whole
softmax. `words` takes the teacher's top-K, what both have, either has, or only one of them has (union-intersection,
where w is not normalised); `weight` is pi_old, q or 1. The gradient is that of the renormalised reverse KL on S plus a
term that moves mass in and out of S, which a renormalised loss cannot. Where S is empty nothing is learned
(support.empty).

The paper's equation is the renormalised KL, its code and so its numbers are the above: form=equation is the former,
which local_support with source=student is too. `reward` adds GRPO's outcome reward with that weight as a term of its
own (the released token_reward_direct_plus_grpo has 1).

Differs: k=0, which is released as the single sampled token, is sampled_token. For more than one update per batch the
student is read once more, to remember pi_old. With `only_named` it always is, and names S: the teacher is asked about
these tokens alone, no longer for whole distributions. Under form=equation, where S is otherwise the student's best at
every update, it is then that of the start of the batch. The overlap of the two top-K, its mass and its advantage are
measured in every run whose teacher gives what that takes (support.*).
Uncertain: whether the released outcome reward is added before the clip, token by token.
"""

from typing import Literal

from opd import maths
from opd.errors import require
from opd.method import Ask, Method, Term, Updates, unchanged
from opd.parts.asks import OWN, about_own_best
from opd.parts.groups import GroupAdvantage
from opd.parts.losses import PolicyGradient
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.parts.support_losses import OnSupport, SupportGradient
from opd.protocols import Want
from opd.rollout import Sampling


def rethinking(
    *,
    k: int = 16,
    words: Literal["only_stu", "only_tch", "intersection", "union", "union-intersection"] = "only_stu",
    weight: Literal["student_p", "teacher_p", "none"] = "student_p",
    form: Literal["released", "equation"] = "released",
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
    k: size of each model's support
    words: which tokens are rewarded: the student's, the teacher's, or a combination
    weight: of a token: the student's probability, the teacher's, or 1
    form: the released policy gradient, or the paper's renormalised KL on the student's support
    reward: weight of GRPO's outcome reward
    n: answers per prompt
    clip: PPO's clip range around ratio 1; 0 would let nothing move
    dual: bound of the term of a negative advantage; 0 for none
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    updates: optimizer steps per batch
    only_named: the teacher is asked about the student's best tokens of the start of the batch alone
    mean: token_mean, sequence_mean or sequence_sum
    """
    released = form == "released"
    require(released or words == "only_stu", "form=equation", got=f"words={words}", expected="words=only_stu")
    require(n >= 2 or not reward, "answers per prompt n, whose rewards are compared", got=n, expected="at least 2")
    require(words == "only_stu" or not only_named, "only_named", got=f"words={words}", expected="words=only_stu")
    old = OWN if (updates > 1 or only_named) and released else ""
    loss = SupportGradient(k, words, weight, clip, dual, old)
    equation = OnSupport(maths.reverse_kl, k, "teacher" if only_named else "student")
    outcome = {"reward": Term(PolicyGradient(clip, "untruncated"), named(mean), reward)} if reward else {}
    asks = (Ask("teacher", "teacher", Want(dist=True)), *([Ask(old, "student", Want(dist=True))] if old else []))
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=about_own_best(k) if only_named else asks,
        credit=GroupAdvantage() if reward else unchanged,
        terms={"match": Term(loss if released else equation, named(mean))} | outcome,
        updates=Updates(parts=updates),
        observe=(loss.empty,) if "intersection" in words else (),
    )
