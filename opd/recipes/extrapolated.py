"""Go in the teacher's direction as seen from a base model, and further than the teacher went.

Paper: G-OPD / ExOPD, Yang et al., arXiv 2602.12125; the limit: "The Extrapolation Cliff", ListOPD, arXiv 2605.08737.

When: the teacher was made from a base model that you have, and its gain over the base is to be exceeded.

Equation: L = - mean_n min(pi/mu, c) A_n log pi(y_n),  A_n = lam log(q/b)(y_n) - log(pi_old/b)(y_n)

b is the reference. Without noise the student ends at q^lam b^(1-lam), normalised: at b for lam 0, at the teacher for
lam 1 whatever b is, beyond it above 1. The reference is the student's frozen start; --reference MODEL gives another,
such as the model that the teacher was trained from (reward correction).

Where a token is nearly certain there is a limit: with q and b for what teacher and base give the teacher's best token,

    lam* = [log((1-q)/(c-1+q)) - log((1-b)/b)] / [log((1-q)/q) - log((1-b)/b)]

Past it the student's other tokens have less than (1-q)/c, so that their corrective weight q/pi is beyond the cap c: the
paper sees formats break there. limit=watch writes lam* and how often lam is past it, per position; limit=cap takes
lam* - margin there, never below 1, and lam = 1 where q <= b, which the theorem does not cover (lam > 1 then makes the
best token less likely); limit=ignore asks for one number per token only. tail.saturated, the share of tokens other than
the teacher's best with log(q/pi) >= log c, goes from 0 to 1 at lam*.

In the one update per batch of the defaults pi is mu, and no weight is ever cut; `updates` above 1 lets the cap c act.

Differs: the released code of 2602.12125 clips as PPO does, which does nothing in one update per batch either.
Uncertain: whether the cap c of 2605.08737 is on pi/mu as here, on q/pi, or on two sides; its lam, b and rates.
"""

from typing import Literal

from opd.errors import require
from opd.method import Ask, Method, Term, Updates
from opd.parts.losses import TruncatedGradient
from opd.parts.means import named
from opd.parts.observe import Noted
from opd.parts.reshape import LIMITS, Extrapolated
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Sampling


def extrapolated(
    *,
    lam: float = 1.25,
    c: float = 5.0,
    limit: Literal["watch", "cap", "ignore"] = "watch",
    margin: float = 0.05,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    updates: int = 1,
    mean: str = "token_mean",
) -> Method:
    """
    lam: 0 the reference, 1 the teacher, above 1 beyond it
    c: cap of the importance ratio, which also sets the limit of lam
    limit: watch measures lam* at every position, cap keeps below it, ignore does neither
    margin: to lam* under limit=cap
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    updates: optimizer steps per batch, each on its own part of the problems
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(limit != "cap" or c > 1, "a cap of lam", got=f"c={c}", expected="c above 1: else lam* is 1 everywhere")
    watched, loss = limit != "ignore", TruncatedGradient(c)
    best = "teacher.ids" if watched else ""
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=(
            Ask("teacher", "teacher", Want(chosen=True, topk=int(watched))),
            Ask("reference", "reference", Want(chosen=True, gather=best)),
        ),
        credit=Extrapolated(lam, c, watched, margin if limit == "cap" else None),
        terms={"advantage": Term(loss, named(mean))},
        updates=Updates(parts=updates),
        lookup=(loss.cut, Noted(LIMITS)) if watched else (loss.cut,),
        casting={"reference": "self:frozen"},
    )
