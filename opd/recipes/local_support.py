"""Match the teacher on its own K best tokens at every state that the student visited.

Paper: "Revisiting On-Policy Distillation", Fu, Huang et al., arXiv 2603.25562 (LSM).

When: the teacher gives its K best tokens: nearly what the whole distribution gives, at K numbers a token.

Equation: L = mean_n sum_{v in S_n} p(v) log(p(v) / q(v)),  S_n = top-K of q,  p and q renormalised on S_n

The five supports that the paper compares; the first is LSM:

    1  teacher top-K, renormalised                   (the defaults)
    2  student top-K + sampled token, renormalised   --source student --sampled
    3  teacher top-K + sampled token, renormalised   --sampled
    4  student top-K, tail from the sampled token    --source student --outside published_sampled_tail
    5  teacher top-K, tail from the sampled token    --outside published_sampled_tail

`outside=sampled_tail` is 4 and 5 mended: the published gradient is off by the gradient of p(S), the student's mass on
the support, whatever the teacher says. `outside=drop` is the paper's removal of the renormalisation, which collapses;
`tail` makes the rest one more token. The student's top-K needs a teacher that gives whole distributions; with
`only_named` it is the student's of the start of the batch, the teacher is asked about these tokens alone, and the
student reads its answers once more to name them. For the first update of a batch that is the same support.

Differs: mean=token_mean, the default, is the paper's equation, over all tokens of an update; mean=sequence_mean is what
the released scripts compute by averaging in micro-batches of one answer, where tokens of short answers weigh more.
The batch is used for two updates, as in the paper (128 answers, 64 at a time). The sampled tail is always weighted by
p(y)/mu(y); the released flag for that is off. The paper's mask of special tokens is a setting of the run (--mask).
Uncertain: a later README switches on an entropy filter that the paper never mentions; it is off here. Where the
weight was cut for the paper's numbers is not known; `cap` cuts it, and the metric tail.cut is the share of tokens where
it did.
"""

from typing import Literal

from opd import maths
from opd.errors import require
from opd.method import Ask, Method, Term, Updates
from opd.parts.asks import about_own_best
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.parts.support_losses import OnSupport, SampledTail
from opd.protocols import Want
from opd.rollout import Sampling


def local_support(
    *,
    k: int = 32,
    source: Literal["teacher", "student"] = "teacher",
    sampled: bool = False,
    outside: Literal["renormalise", "tail", "drop", "sampled_tail", "published_sampled_tail"] = "renormalise",
    cap: float = 0.0,
    n: int = 8,
    temperature: float = 1.0,
    top_p: float = 0.9,
    updates: int = 2,
    only_named: bool = False,
    mean: str = "token_mean",
) -> Method:
    """
    k: size of the support
    source: whose best tokens they are
    sampled: the token that was written is always in the support
    outside: what becomes of the other tokens
    cap: of the weight p(y)/mu(y) of a sampled tail; 0 for none
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    updates: optimizer steps per batch
    only_named: the teacher is asked about the student's best tokens of the start of the batch alone
    mean: token_mean, sequence_mean or sequence_sum
    """
    tail = outside in ("sampled_tail", "published_sampled_tail")
    what = f"a tail read off the sampled token (outside={outside})"
    require(not (tail and sampled), what, got="sampled=true", expected="sampled=false: it stands outside the support")
    require(tail or not cap, "cap", got=f"cap={cap} with outside={outside}", expected="one only for a sampled tail")
    ours = source == "student"
    require(ours or not only_named, "only_named", got=f"source={source}", expected="source=student")
    known = "teacher" if only_named else source  # of whose distribution no more than the support is known
    if outside == "sampled_tail" or outside == "published_sampled_tail":
        loss = SampledTail(k, known, published=outside == "published_sampled_tail", cap=cap)
    else:
        loss = OnSupport(maths.reverse_kl, k, known, outside, sampled)
    asks = (Ask("teacher", "teacher", Want(dist=True) if ours else Want(topk=k, chosen=sampled or tail)),)
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=about_own_best(k, chosen=sampled or tail) if only_named else asks,
        terms={"match": Term(loss, named(mean))},
        updates=Updates(parts=updates),
        observe=(loss.cut,) if isinstance(loss, SampledTail) and cap else (),
    )
