"""Context distillation on the student's own answers: the teacher reads them after a context that the student lacks.

Paper: OPCD, "On-Policy Context Distillation", Ye et al., arXiv 2602.12275.

When: what a long prompt or a few lessons say should go into the weights.

Equation: L = mean_n sum_{v in S_n} p_v log(p_v / q_v),  S_n = top-K of p = pi(.|x, y_<n),  q = teacher(.|c, x, y_<n)

The context c is experience or a system prompt, the teacher the same model or a larger one (--teacher). As released, the
masses on S are not renormalised and the sum is differentiated as it stands, whose mean gradient is off by the gradient
of p(S): it takes mass out of S whatever the teacher says. At K=256 of a large vocabulary that is little;
`renorm`, which the paper's runs on system prompts used, is free of it.

support=both is the released choice of the student's and the teacher's best tokens together, each once: at most 2 K.
`only_named` asks a teacher elsewhere about the student's best tokens of the start of the batch alone, where otherwise
its whole distribution travels; the student reads its answers once more to name them.

INFERRED: that the teacher stays as it was at the start, where none is named. The prompt is ours: the context, then the
question.
"""

from typing import Literal

from opd import maths
from opd.errors import one_of, require
from opd.method import Ask, Method, Term
from opd.parts.asks import about_own_best
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.parts.support_losses import compared
from opd.parts.views import Privileged, template
from opd.rollout import Sampling


def opcd(
    *,
    k: int = 256,
    support: Literal["student", "both"] = "student",
    renorm: bool = False,
    n: int = 1,
    temperature: float = 0.6,
    top_p: float = 1.0,
    only_named: bool = False,
    mean: str = "token_mean",
) -> Method:
    """
    k: best tokens on which both are compared; 0 for the whole vocabulary
    support: whose best tokens: student or both
    renorm: both are renormalised on these tokens
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    only_named: the teacher is asked about the student's best tokens of the start of the batch alone
    mean: token_mean, sequence_mean or sequence_sum
    """
    one_of("support", support, ("student", "both"))
    if only_named:
        require(k > 0 and support == "student", "only_named", got=f"k={k}, support={support}",
                expected="support=student, and k of at least 1")  # fmt: skip
    known = "teacher" if only_named else support  # of whose distribution no more than the support is known
    loss, want = compared(maths.reverse_kl, k, known, "renormalise" if renorm else "drop")
    view = Privileged(template("context"))
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=about_own_best(k, view) if only_named else (Ask("teacher", "teacher", want, view=view),),
        terms={"match": Term(loss, named(mean))},
        casting={"teacher": "self:frozen"},
    )
