"""Match the teacher on its own K best tokens at every state that the student visited.

Paper: "Revisiting On-Policy Distillation", Fu, Huang et al., arXiv 2603.25562 (LSM).

Equation: L = mean_n sum_{v in S_n} p(v) log(p(v) / q(v)),  S_n = top-K of q,  p and q renormalised on S_n

Differs: the released scripts average per sequence, an accident of micro-batches of one; `mean=sequence_mean` is that,
the default is the paper's token mean. The batch is used for two updates, as in the paper (128 answers, 64 at a time).
Their mask of special tokens is not here yet. K = 1 renormalised is identically zero.
Uncertain: a later README switches on an entropy filter that the paper never mentions; it is off here.
"""

from typing import Literal

from opd import maths
from opd.losses import OnSupport
from opd.means import named
from opd.method import Ask, Method, Term, Updates
from opd.protocols import Want
from opd.rollout import Sampling
from opd.sample import OneTurn


def local_support(
    *,
    k: int = 32,
    outside: Literal["renormalise", "tail", "drop"] = "renormalise",
    n: int = 8,
    temperature: float = 1.0,
    top_p: float = 0.9,
    updates: int = 2,
    mean: str = "token_mean",
) -> Method:
    """
    k: size of the support
    outside: what becomes of the other tokens
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    updates: optimizer steps per batch
    mean: token_mean, sequence_mean or sequence_sum
    """
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=(Ask("teacher", "teacher", Want(topk=k)),),
        terms={"match": Term(OnSupport(maths.reverse_kl, k, outside=outside), named(mean))},
        updates=Updates(parts=updates),
    )
